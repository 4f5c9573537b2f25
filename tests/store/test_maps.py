"""Maps: the MutableMapping protocol in full, against dict as the model, and the cost of opening a large
one."""

import subprocess
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import sustain


@pytest.fixture
def users(store: sustain.Store) -> sustain.Map:
    return store.map("users")


def test_protocol(users: sustain.Map) -> None:
    assert isinstance(users, MutableMapping)
    assert len(users) == 0
    assert not users
    users[b"a"] = b"1"
    users[b"b"] = b""
    users[b""] = b"empty key"
    assert users[b"a"] == b"1"
    assert users[b"b"] == b""
    assert users[b""] == b"empty key"
    assert len(users) == 3
    assert b"a" in users
    assert b"x" not in users
    assert users.get(b"a") == b"1"
    assert users.get(b"x") is None
    assert users.get(b"x", b"d") == b"d"
    assert set(users) == {b"a", b"b", b""}
    assert sorted(users.keys()) == [b"", b"a", b"b"]
    assert sorted(users.values()) == [b"", b"1", b"empty key"]
    assert sorted(users.items()) == [(b"", b"empty key"), (b"a", b"1"), (b"b", b"")]
    assert b"a" in users.keys()  # noqa: SIM118 - the view is what is tested
    assert (b"a", b"1") in users.items()
    assert (b"a", b"2") not in users.items()
    assert b"1" in users.values()
    assert b"2" not in users.values()
    assert len(users.items()) == 3
    assert users.keys() & {b"a", b"zz"} == {b"a"}
    assert users.setdefault(b"a", b"other") == b"1"
    assert users.setdefault(b"c", b"3") == b"3"
    users.update({b"d": b"4"})
    users.update([(b"e", b"5")])
    assert users.pop(b"e") == b"5"
    assert users.pop(b"e", b"gone") == b"gone"
    with pytest.raises(KeyError):
        users.pop(b"e")
    del users[b"d"]
    assert users == {b"": b"empty key", b"a": b"1", b"b": b"", b"c": b"3"}
    assert users != {b"a": b"1"}
    taken = dict([users.popitem() for _ in range(4)])
    assert taken == {b"": b"empty key", b"a": b"1", b"b": b"", b"c": b"3"}
    with pytest.raises(KeyError):
        users.popitem()
    users[b"x"] = b"y"
    users.clear()
    assert len(users) == 0
    assert list(users) == []
    assert "users" in repr(users)


def test_missing_keys(users: sustain.Map) -> None:
    with pytest.raises(KeyError) as caught:
        users[b"nobody"]
    assert caught.value.args[0] == b"nobody"
    with pytest.raises(KeyError):
        del users[b"nobody"]


@pytest.mark.parametrize("wrong", ["text", 5, None, ("a",)])
def test_keys_and_values_are_bytes(users: sustain.Map, wrong: Any) -> None:
    with pytest.raises(TypeError):
        users[wrong] = b"v"
    with pytest.raises(TypeError):
        users[b"k"] = wrong
    with pytest.raises(TypeError):
        users[wrong]
    assert len(users) == 0


def test_maps_are_not_hashable(users: sustain.Map) -> None:
    with pytest.raises(TypeError):
        hash(users)


@pytest.mark.parametrize("length", [1, 7, 8, 100, 4095, 4096, 4097, 70_000, 1_000_000])
def test_values_of_every_size(users: sustain.Map, length: int) -> None:
    value = bytes(number % 251 for number in range(length))
    users[b"k"] = value
    users[value[:2000]] = b"key of many bytes"
    assert users[b"k"] == value
    assert users[value[:2000]] == b"key of many bytes"
    users[b"k"] = value[: length // 2]  # shrinks
    assert users[b"k"] == value[: length // 2]
    users[b"k"] = value  # and grows again
    assert users[b"k"] == value


def test_changing_keys_while_iterating_is_refused(users: sustain.Map) -> None:
    users.update({b"%d" % number: b"v" for number in range(1000)})
    for spoil in (
        lambda: users.__setitem__(b"new", b"v"),
        lambda: users.pop(b"5"),
        users.clear,
    ):
        iterator = iter(users)
        next(iterator)
        spoil()
        with pytest.raises(RuntimeError):
            list(iterator)
        users.update({b"%d" % number: b"v" for number in range(1000)})


def test_replacing_values_while_iterating_is_fine(users: sustain.Map) -> None:
    users.update({b"%d" % number: b"old" for number in range(1000)})
    seen = 0
    for key, value in users.items():
        assert value == b"old"
        users[key] = b"new and longer, so that it has to move" * 3
        seen += 1
    assert seen == 1000
    assert set(users.values()) == {b"new and longer, so that it has to move" * 3}


def test_iteration_while_growing_between_scans_is_complete(users: sustain.Map) -> None:
    for size in (1, 10, 63, 64, 65, 1000, 5000):
        users.update({b"%d" % number: b"%d" % number for number in range(size)})
        found = list(users.items())
        assert len(found) == size
        assert dict(found) == {b"%d" % number: b"%d" % number for number in range(size)}


class MapMachine(RuleBasedStateMachine):
    """A map, a dict that says what it must hold, and a dict that says what the last commit held."""

    keys = st.binary(max_size=12) | st.sampled_from([b"a", b"b", b"c", b"k" * 300])
    values = st.binary(max_size=40) | st.integers(0, 9000).map(lambda length: b"v" * length)

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name, "model.sus")
        self.store = sustain.create(self.path, size="4MiB", log_size="2MiB", durability="memory")
        self.map = self.store.map("m")
        self.model: dict[bytes, bytes] = {}
        self.store.commit()
        self.committed: dict[bytes, bytes] = {}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.directory.cleanup()

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        self.map[key] = value
        self.model[key] = value

    @rule(first=st.integers(0, 1000), count=st.integers(1, 200), value=st.binary(max_size=40))
    def put_many(self, first: int, count: int, value: bytes) -> None:
        many = {b"%d" % number: value for number in range(first, first + count)}
        self.map.update(many)
        self.model.update(many)

    @rule(key=keys)
    def remove(self, key: bytes) -> None:
        assert self.map.pop(key, None) == self.model.pop(key, None)

    @rule(keep=st.integers(1, 7))
    def remove_many(self, keep: int) -> None:
        for key in sorted(self.model)[::keep]:
            del self.map[key]
            del self.model[key]

    @rule()
    def clear(self) -> None:
        self.map.clear()
        self.model.clear()

    @rule()
    def pop_some(self) -> None:
        if self.model:
            key, value = self.map.popitem()
            assert self.model.pop(key) == value

    @rule()
    def commit(self) -> None:
        self.store.commit()
        self.committed = dict(self.model)

    @rule()
    def rollback(self) -> None:
        self.store.rollback()
        self.model = dict(self.committed)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = sustain.open(self.path)
        self.map = self.store.map("m")
        self.model = dict(self.committed)

    @rule(key=keys)
    def look(self, key: bytes) -> None:
        assert self.map.get(key) == self.model.get(key)
        assert (key in self.map) == (key in self.model)

    @invariant()
    def same(self) -> None:
        if hasattr(self, "map"):
            assert len(self.map) == len(self.model)
            assert dict(self.map.items()) == self.model


TestMapAgainstDict = MapMachine.TestCase
TestMapAgainstDict.settings = settings(max_examples=60, stateful_step_count=40)

_OPEN_AND_READ = """
import resource, sys
import sustain
def cost():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    read = next(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("rchar"))
    return usage.ru_minflt + usage.ru_majflt, read
cost()
faults, read = cost()
with sustain.open(sys.argv[1]) as store:
    users = store.map("users")
    assert users[b"7"] == b"value 7" and len(users) == int(sys.argv[2])
    faults, read = (after - before for after, before in zip(cost(), (faults, read)))
print(faults, read)
"""


def _cost_of_opening(directory: Path, entries: int) -> tuple[int, int]:
    """(page faults, bytes read by system calls) of opening a map with `entries` entries and reading one."""
    path = directory / f"{entries}.sus"
    with sustain.create(path, size="512MiB", log_size="64MiB", durability="memory") as store:
        users = store.map("users")
        for begin in range(0, entries, 100_000):
            users.update((b"%d" % n, b"value %d" % n) for n in range(begin, min(entries, begin + 100_000)))
            store.commit()
        store.checkpoint()  # the log's length, which opening may have to read, is not what is measured
    command = [sys.executable, "-c", _OPEN_AND_READ, str(path), str(entries)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    path.unlink()
    faults, read = done.stdout.split()
    return int(faults), int(read)


def test_opening_a_map_of_millions_touches_no_more_pages(tmp_path: Path) -> None:
    """Counted in page faults and bytes read, not in time: 2,000 times the entries, about the same work."""
    small_faults, small_read = _cost_of_opening(tmp_path, 1000)
    large_faults, large_read = _cost_of_opening(tmp_path, 2_000_000)
    assert large_faults < small_faults + 50
    assert large_read < small_read + (1 << 20)
