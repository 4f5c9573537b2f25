"""The contract of `sustain.open`, `create`, `Store`: what users rely on."""

import inspect
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

import sustain
from sustain import errors


def test_the_issue_s_example(path: Path) -> None:
    store = sustain.create(path, size="8MiB", log_size="2MiB", durability="auto")
    users = store.map("users")
    balances = store.array("balances", shape=(1000,), dtype="i8")
    blob = store.file("blob")
    users[b"ada"] = b"1815"
    balances[7] = 42
    blob.pwrite(b"hello", 3)
    pos = store.commit()
    assert isinstance(pos, int)
    store.close()

    with sustain.open(path) as store:
        assert store.map("users")[b"ada"] == b"1815"
        balances = store.array("balances")
        assert balances.shape == (1000,)
        assert balances.dtype == np.dtype("i8")
        assert balances[7] == 42
        assert balances.sum() == 42
        assert store.file("blob").pread(100, 0) == b"\0\0\0hello"
        assert sorted(name for name, _, _ in store.objects()) == ["balances", "blob", "users"]
        assert store.position >= pos


def test_positions_grow(store: sustain.Store) -> None:
    users = store.map("users")
    positions = [store.commit()]
    for number in range(20):
        users[b"n"] = str(number).encode()
        positions.append(store.commit())
    assert all(earlier < later for earlier, later in itertools.pairwise(positions[1:]))
    assert store.position == positions[-1]


def test_a_commit_of_nothing_is_allowed(store: sustain.Store) -> None:
    store.map("m")[b"k"] = b"v"
    first = store.commit()
    assert store.commit() >= first
    assert store.map("m")[b"k"] == b"v"


def test_closing_drops_what_was_not_committed(path: Path, store: sustain.Store) -> None:
    store.map("m")[b"kept"] = b"1"
    store.array("a", (10,), "i4")[:] = 1
    store.commit()
    store.map("m")[b"dropped"] = b"2"
    store.array("a")[:] = 2
    store.close()
    with sustain.open(path) as again:
        assert dict(again.map("m")) == {b"kept": b"1"}
        assert again.array("a").tolist() == [1] * 10


def test_leaving_the_with_block_commits_nothing(path: Path) -> None:
    with sustain.create(path, size="8MiB", log_size="2MiB") as store:
        store.map("m")[b"k"] = b"v"
    assert store.closed
    with sustain.open(path) as again:
        assert again.objects() == []


def test_rollback_restores_every_kind(captured: sustain.Store) -> None:
    users, balances, blob = captured.map("m"), captured.array("a", (5000,), "i8"), captured.file("f")
    users[b"k"] = b"old"
    balances[:] = np.arange(5000)
    blob.pwrite(b"old", 0)
    captured.commit()

    users[b"k"] = b"new"
    users[b"more"] = b"x"
    balances[:] = -1
    blob.pwrite(b"newer and longer", 0)
    captured.file("made since")
    captured.rollback()

    assert dict(users) == {b"k": b"old"}
    assert (balances == np.arange(5000)).all()
    assert blob.pread(100, 0) == b"old"
    assert sorted(name for name, _, _ in captured.objects()) == ["a", "f", "m"]

    balances[3] = 99  # capture goes on after a rollback
    captured.commit()
    captured.rollback()
    assert balances[3] == 99


def test_deleted_objects_are_gone_and_their_room_is_free(store: sustain.Store) -> None:
    free = store.usage()["free_bytes"]
    for _ in range(10):  # more than would fit without reuse
        blob = store.file("blob")
        blob.pwrite(b"x" * (4 << 20), 0)
        store.commit()
        store.delete("blob")
        store.commit()
    assert store.objects() == []
    assert store.usage()["free_bytes"] >= free - (1 << 20)
    with pytest.raises(sustain.NoSuchObject):
        store.delete("blob")


def test_a_name_is_of_one_kind(store: sustain.Store) -> None:
    store.map("users")[b"k"] = b"v"
    store.commit()
    with pytest.raises(sustain.NoSuchObject) as caught:
        store.file("users")
    assert "users" in str(caught.value)
    with pytest.raises(sustain.NoSuchObject):
        store.array("users", (3,), "i4")


def test_two_handles_of_one_object_see_the_same(store: sustain.Store) -> None:
    first, second = store.map("m"), store.map("m")
    first[b"k"] = b"v"
    assert second[b"k"] == b"v"
    assert len(second) == 1


def test_a_closed_store_says_so(store: sustain.Store) -> None:
    users, blob = store.map("m"), store.file("f")
    store.close()
    assert store.closed
    for use in (
        store.commit,
        store.rollback,
        store.objects,
        lambda: store.map("m"),
        lambda: users[b"k"],
        lambda: users.__setitem__(b"k", b"v"),
        lambda: len(users),
        lambda: blob.pread(1, 0),
        lambda: blob.pwrite(b"x", 0),
    ):
        with pytest.raises(sustain.StoreClosed):
            use()
    store.close()  # closing twice is fine
    assert "closed" in repr(store)
    assert "closed" in repr(users)
    assert "closed" in repr(blob)


def test_arrays_outlive_close_as_memory(store: sustain.Store) -> None:
    """NumPy memory of a closed store must not crash the interpreter."""
    balances = store.array("a", (1000,), "i8")
    balances[:] = 5
    store.commit()
    store.close()
    assert balances.sum() in (5000, 0)
    balances[0] = 1


def test_create_never_overwrites(path: Path) -> None:
    sustain.create(path, size="8MiB", log_size="2MiB").close()
    before = path.read_bytes()
    with pytest.raises(sustain.StoreError) as caught:
        sustain.create(path, size="8MiB", log_size="2MiB")
    assert str(path) in str(caught.value)
    assert caught.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize("arguments", [{"size": "many"}, {"log_size": "-1"}, {"size": "0.3B"}])
def test_create_refuses_sizes_it_cannot_read(path: Path, arguments: dict[str, str]) -> None:
    with pytest.raises(sustain.ConfigError) as caught:
        sustain.create(path, **arguments)  # type: ignore[arg-type]
    assert caught.value.hint
    assert not path.exists()


def test_sizes_are_whole_blocks(path: Path) -> None:
    with sustain.create(path, size=5_000_000, log_size=1) as store:
        assert store.info()["image_size"] == 6 << 20
        assert store.info()["log_size"] == 2 << 20


def test_create_refuses_an_unknown_durability(path: Path) -> None:
    with pytest.raises(sustain.SustainError):
        sustain.create(path, size="8MiB", log_size="2MiB", durability="eternal")
    assert not path.exists()


@pytest.mark.parametrize("options", [{"capture": "guess"}, {"verify": "never"}])
def test_open_refuses_unknown_options(path: Path, options: dict[str, str]) -> None:
    sustain.create(path, size="8MiB", log_size="2MiB").close()
    with pytest.raises(sustain.SustainError):
        sustain.open(path, **options)  # type: ignore[arg-type]
    sustain.open(path).close()


def test_transaction_commits_at_its_end(path: Path, store: sustain.Store) -> None:
    with store.transaction() as transaction:
        store.map("m")[b"k"] = b"v"
        assert transaction.position is None
    assert transaction.position == store.position
    store.close()
    with sustain.open(path) as again:
        assert again.map("m")[b"k"] == b"v"


def test_transaction_rolls_back_on_an_exception(store: sustain.Store) -> None:
    users = store.map("m")
    users[b"k"] = b"old"
    before = store.commit()
    transaction = store.transaction()
    with pytest.raises(ZeroDivisionError), transaction:
        users.update({b"k": b"%d" % (1 // (len(users) - 1))})
    assert users[b"k"] == b"old"
    assert transaction.position is None
    assert store.position == before
    store.commit()
    assert users[b"k"] == b"old"


def test_transactions_do_not_nest(store: sustain.Store) -> None:
    with store.transaction():
        store.map("m")[b"outer"] = b"1"
        with pytest.raises(sustain.StoreError, match="transaction") as caught, store.transaction():
            raise AssertionError("entered")
        assert caught.value.hint
        store.map("m")[b"still outer"] = b"2"
    store.rollback()
    assert set(store.map("m")) == {b"outer", b"still outer"}


def test_a_transaction_that_cannot_commit_rolls_back(path: Path) -> None:
    with sustain.create(path, size="16MiB", log_size="2MiB", durability="memory") as store:
        blob = store.file("f")
        blob.pwrite(b"old", 0)
        store.commit()
        with pytest.raises(sustain.LogTooSmall), store.transaction():
            blob.pwrite(bytes(range(1, 256)) * (4 << 12), 0)
        assert blob.pread(10, 0) == b"old"
        with store.transaction():  # and the next one works
            blob.pwrite(b"new", 0)
        assert blob.pread(10, 0) == b"new"


def test_other_threads_commits_wait_for_the_transaction(store: sustain.Store) -> None:
    users = store.map("m")
    started, done = threading.Event(), threading.Event()

    def other() -> None:
        started.set()
        store.commit()
        done.set()

    thread = threading.Thread(target=other)
    with store.transaction():
        users[b"first half"] = b"1"
        thread.start()
        assert started.wait(10)
        assert not done.wait(0.2)  # a commit in here would tear the transaction
        users[b"second half"] = b"2"
    assert done.wait(10)
    thread.join(10)
    assert len(users) == 2


def test_threads_write_at_once(path: Path, store: sustain.Store) -> None:
    """Each thread has its own keys and commits; nothing is lost, whoever's commit carried it."""
    users = store.map("m")
    failures: list[BaseException] = []

    def work(thread_number: int) -> None:
        try:
            for number in range(200):
                users[b"%d-%d" % (thread_number, number)] = b"%d" % number
                if number % 5 == 0:
                    store.commit()
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    store.commit()
    store.close()
    with sustain.open(path) as again:
        assert dict(again.map("m")) == {
            b"%d-%d" % (thread, number): b"%d" % number for thread in range(6) for number in range(200)
        }


def test_wait_without_a_destination_says_who_is_missing(store: sustain.Store) -> None:
    store.map("m")[b"k"] = b"v"
    pos = store.commit()
    with pytest.raises(sustain.WaitTimeout) as caught:
        store.wait(pos, copies=1, timeout=0.01)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, sustain.SustainError)
    assert str(pos) in str(caught.value)
    assert "no destination" in str(caught.value)
    assert caught.value.hint
    store.wait(pos, copies=0, timeout=0.01)


def test_status_without_destinations(store: sustain.Store) -> None:
    store.map("m")[b"k"] = b"v"
    pos = store.commit()
    status = store.status()
    assert status == sustain.StoreStatus(committed=pos, durable=pos, destinations=(), poisoned=False)


def test_checkpoint_trims_the_log(store: sustain.Store) -> None:
    store.map("m")[b"k"] = b"v"
    pos = store.commit()
    assert store.checkpoint() == pos
    assert store.words()["tail"] == pos


def test_the_log_goes_round(path: Path) -> None:
    """Many times its size is written; nothing needs to be done about it."""
    with sustain.create(path, size="8MiB", log_size="2MiB", durability="memory") as store:
        blob = store.file("f")
        for number in range(40):
            blob.pwrite(bytes([number + 1]) * 300_000, 0)
            store.commit()
        assert store.position > 10_000_000
    with sustain.open(path) as store:
        assert store.file("f").pread(1 << 20, 0) == bytes([40]) * 300_000


def test_every_error_has_a_name_here_and_a_hint() -> None:
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, Exception)]
    assert len(classes) > 20
    for each in classes:
        assert issubclass(each, sustain.SustainError)
        assert getattr(sustain, each.__name__) is each
        assert each("what", hint="do").hint == "do"
        assert str(each("what", hint="do")) == "what"


def test_exports_are_complete() -> None:
    for name in sustain.__all__:
        assert getattr(sustain, name) is not None
    assert isinstance(sustain.__version__, str)
