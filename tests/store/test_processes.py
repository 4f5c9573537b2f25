"""Several processes and one store: one writer, readers beside it, forked children refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sustain

_WRITER = """
import sys, sustain
with sustain.open(sys.argv[1]) as store:
    users = store.map("m")
    print("open", flush=True)
    for line in sys.stdin:
        number = int(line)
        for key in (b"left", b"right"):
            users[key] = b"%d" % number
        print(store.commit(), flush=True)
"""


class Writer:
    """Another process that holds the store, and commits the number it is told under two keys."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "open"

    def commit(self, number: int) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return int(self._line())

    def end(self) -> None:
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def made(path: Path) -> Path:
    sustain.create(path, size="8MiB", log_size="2MiB", durability="memory").close()
    return path


def test_one_writer(made: Path) -> None:
    writer = Writer(made)
    with pytest.raises(sustain.StoreBusy) as caught:
        sustain.open(made)
    assert str(made) in str(caught.value)
    assert str(writer.process.pid) in str(caught.value) + caught.value.hint
    assert caught.value.hint
    writer.commit(1)
    writer.end()
    sustain.open(made).close()


def test_one_writer_within_a_process(made: Path) -> None:
    with sustain.open(made), pytest.raises(sustain.StoreBusy):
        sustain.open(made)
    sustain.open(made).close()


def test_a_killed_writer_leaves_the_store_free(made: Path) -> None:
    writer = Writer(made)
    writer.commit(5)
    writer.process.kill()
    writer.process.communicate(timeout=30)
    with sustain.open(made) as store:
        assert dict(store.map("m")) == {b"left": b"5", b"right": b"5"}


def test_readers_see_a_committed_state_while_the_writer_works(made: Path) -> None:
    writer = Writer(made)
    writer.commit(1)
    with sustain.open(made, readonly=True) as reader, sustain.open(made, readonly=True) as other:
        assert reader.readonly
        seen = reader.map("m")
        assert dict(seen) == {b"left": b"1", b"right": b"1"}
        for number in range(2, 300):
            position = writer.commit(number)
            assert seen[b"left"] == b"%d" % (number - 1)  # stands still until asked to move
            assert reader.refresh() == position
            assert seen[b"left"] == seen[b"right"] == b"%d" % number
            assert reader.position == position
        assert dict(other.map("m")) == {b"left": b"1", b"right": b"1"}
        other.refresh()
        assert dict(other.map("m")) == {b"left": b"299", b"right": b"299"}
    writer.end()


def test_a_reader_whose_log_was_overwritten_meanwhile(made: Path) -> None:
    """The writer goes round the log several times: the reader starts over, and sees a commit all the same."""
    with sustain.open(made) as writer:
        blob = writer.file("f")
        blob.pwrite(b"\1" * 200_000, 0)
        writer.commit()
        with sustain.open(made, readonly=True) as reader:
            seen = reader.file("f")
            assert seen.pread(1 << 20, 0) == b"\1" * 200_000
            for number in range(2, 40):
                blob.pwrite(bytes([number]) * 200_000, 0)
                writer.commit()
            assert seen.pread(1 << 20, 0) == b"\1" * 200_000
            assert reader.refresh() == writer.position
            assert reader.file("f").pread(1 << 20, 0) == b"\x27" * 200_000


def test_readers_change_nothing(made: Path) -> None:
    with sustain.open(made) as store:
        store.map("m")[b"k"] = b"v"
        store.file("f").pwrite(b"x", 0)
        store.array("a", (3,), "i8")
        store.commit()
    before = made.read_bytes()
    with sustain.open(made, readonly=True) as reader:
        for change in (
            lambda: reader.map("m").__setitem__(b"k", b"w"),
            lambda: reader.map("m").__delitem__(b"k"),
            lambda: reader.map("m").clear(),
            lambda: reader.map("new"),
            lambda: reader.file("f").pwrite(b"y", 0),
            lambda: reader.file("f").truncate(0),
            lambda: reader.array("new", (3,), "i8"),
            lambda: reader.array("a", (30,)),
            lambda: reader.delete("m"),
            reader.commit,
            reader.checkpoint,
        ):
            with pytest.raises((sustain.StoreReadOnly, sustain.NoSuchObject)) as caught:
                change()
            assert caught.value.hint
        assert reader.map("m")[b"k"] == b"v"
    assert made.read_bytes() == before


def test_a_read_only_file_can_be_read(made: Path) -> None:
    with sustain.open(made) as store:
        store.map("m")[b"k"] = b"v"
        store.commit()
    made.chmod(0o444)
    with sustain.open(made, readonly=True) as reader:
        assert reader.map("m")[b"k"] == b"v"


def test_forked_children_are_refused(made: Path) -> None:
    with sustain.open(made) as store:
        users = store.map("m")
        users[b"k"] = b"parent"
        store.commit()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                refused = 0
                for use in (store.commit, lambda: users[b"k"], lambda: users.__setitem__(b"k", b"child")):
                    try:
                        use()
                    except sustain.StoreClosed as error:
                        refused += bool(error.hint)
                code = 0 if refused == 3 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        users[b"k"] = b"parent still"
        store.commit()
        with pytest.raises(sustain.StoreBusy):  # the child's end did not give up our lock
            sustain.open(made)
    with sustain.open(made) as store:
        assert store.map("m")[b"k"] == b"parent still"


def test_a_forked_child_may_live_on_after_the_parent_closed(made: Path) -> None:
    """A worker pool started before `close` must not hold the writer's lock."""
    store = sustain.open(made)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    try:
        store.close()
        sustain.open(made).close()
    finally:
        os.close(write_end)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_dead_writers_damaged_log_is_damage_to_readers(made: Path) -> None:
    writer = Writer(made)
    writer.commit(1)
    end = writer.commit(2)
    writer.process.kill()
    writer.process.communicate()
    with made.open("r+b") as file:
        file.seek((2 << 20) + end - 20)  # in the last commit record; the log begins at 2 MiB
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(sustain.StoreCorrupt) as caught:
        sustain.open(made, readonly=True)
    assert str(made) in str(caught.value)
    assert caught.value.hint
