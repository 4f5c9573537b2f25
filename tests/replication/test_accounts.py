"""What hosts say of logs that are over: it is noted before anything else happens, survives crashes at each step, and
reaches everybody; and what is known stays bounded."""

import threading
from pathlib import Path

import msgspec
import pytest

from sustain._native import Control
from sustain.replication import accounts as module
from sustain.replication import wire
from sustain.replication.accounts import LIMIT, Book, path_of
from sustain.replication.ship import Shipper
from sustain.replication.standby import Standby
from sustain.replication.wire import Account, Hello, SnapshotBegin, Welcome, decode, encode
from tests.failover.test_losses import STORE, account

from .conftest import Lab, fill, until
from .test_rewind import part


def uuid_of(lab: Lab, name: str) -> bytes:
    control = Control(lab.path(name))
    try:
        return control.superblock()["store_uuid"]
    finally:
        control.close()


def known(lab: Lab, name: str) -> list[Account]:
    return Book(lab.path(name)).accounts(uuid_of(lab, "b"))


def test_both_ends_know_it_and_pass_it_on(lab: Lab) -> None:
    common = part(lab, alone=7)
    with lab.open("a", readonly=True) as lone:
        end = lone.position
    former, other = lab.receiver("a"), lab.receiver("c")
    lab.ship(other, former, name="b")
    until(lambda: known(lab, "b") and known(lab, "c"), "the primary hears, and passes it on")
    (said,) = known(lab, "a")
    assert known(lab, "b") == known(lab, "c") == [said]
    assert (said.host, said.epoch, said.newer_epoch, said.writer) == ("a", 1, 2, True)
    assert (said.common, said.end, said.kept_from) == (common, end, common)
    assert said.before_time_ns is not None
    assert said.first_time_ns is not None
    assert said.last_time_ns is not None
    assert said.before_time_ns <= said.first_time_ns <= said.last_time_ns
    assert Book(lab.path("a")).wrote() is None


def test_who_has_nothing_more_says_so(lab: Lab) -> None:
    common = part(lab, alone=0)
    lab.ship(lab.receiver("a"), name="b")
    until(lambda: known(lab, "b"), "the primary hears")
    (said,) = known(lab, "b")
    assert (said.writer, said.common, said.end, said.kept_from) == (True, common, common, common)
    assert said.last_time_ns is None


def test_a_standby_that_holds_more_is_no_writer(lab: Lab) -> None:
    """c has more of a's log than b, who takes over."""
    a, b, c = lab.create("a"), lab.receiver("b"), lab.receiver("c")
    running = lab.ship(b, c)
    a.wait(fill(a, 0, 20), copies=2, timeout=20)
    running.stop()
    running = lab.ship(c)
    end = fill(a, 100, 5)
    a.wait(end, copies=1, timeout=20)
    running.stop()
    a.close()
    common = b.promote(2)
    lab.open("b")
    lab.ship(c, name="b")
    until(lambda: known(lab, "b"), "the primary hears")
    (said,) = known(lab, "b")
    assert (said.writer, said.common, said.end) == (False, common, end)


def test_who_was_promoted_and_never_opened_wrote_its_epoch(lab: Lab) -> None:
    common = part(lab, alone=0)
    lab.stores["b"].close()
    former = lab.receiver("a")
    former.stop()
    standby = Standby(lab.path("a"), "a", "auto", None)
    standby.open()
    Book(lab.path("a")).note_writer(None)  # as on a host that had been a standby before
    start = standby.promote(3)
    assert start == common
    again = lab.receiver("a")
    lab.open("b")
    # b's store is of epoch 2; it is given a newer one, as a takeover would.
    lab.stores["b"].close()
    lab.receiver("b").promote(4)
    lab.open("b")
    lab.ship(again, name="b")
    until(lambda: known(lab, "b"), "the primary hears")
    (said,) = known(lab, "b")
    assert (said.epoch, said.writer, said.opened, said.last_time_ns) == (3, True, 1, None)


def begun(lab: Lab, common: int) -> tuple[SnapshotBegin, Hello]:
    control = Control(lab.path("b"))
    try:
        block = control.superblock()
    finally:
        control.close()
    with lab.open("b", readonly=True) as store:
        committed = store.position
    sizes = {"image_size": block["image_size"], "log_size": block["log_size"], "durability": "memory"}
    history = [(epoch, start) for epoch, start in block["history"]]
    facts = {"store": block["store_uuid"], "epoch": 2, "history": history, **sizes}
    hello = Hello(protocol=1, replica=block["replica_uuid"], name="b", tail=0, committed=committed, **facts)  # type: ignore[arg-type]
    begin = SnapshotBegin(
        start=common,
        start_seq=21,
        start_chain=0,
        common=common,
        reason="",
        total_bytes=1,
        compare=False,
        **facts,  # type: ignore[arg-type]
    )
    return begin, hello


class Killed(BaseException):
    """Stands for SIGKILL: nothing that would clean up catches it."""


@pytest.mark.parametrize("step", ["before", "written", "after"])
def test_killed_between_the_tail_and_the_account(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Wherever it was: the next session says the same."""
    common = part(lab, alone=7)
    lab.stores["b"].close()
    begin, hello = begun(lab, common)
    standby = Standby(lab.path("a"), "a", "memory", None)
    standby.open()

    def killed(*_: object, **__: object) -> None:
        raise Killed

    add = Book.add

    def killed_after(self: Book, accounts: list[Account], *, settled: bool = False) -> None:
        add(self, accounts, settled=settled)
        raise Killed

    with monkeypatch.context() as patch:
        if step == "before":
            patch.setattr(Book, "add", killed)
        elif step == "written":
            patch.setattr(module.wholefile.os, "replace", killed)
        else:
            patch.setattr(Book, "add", killed_after)
        with pytest.raises(Killed):
            standby.begin_snapshot(begin, hello)
    assert sorted(lab.directory.glob("a.sus.orphan-*.json"))  # the tail is safe
    standby.close()
    again = Standby(lab.path("a"), "a", "memory", None)
    again.open()
    assert again.rewinding
    again.begin_snapshot(begin, hello)
    again.close()
    (said,) = known(lab, "a")
    assert (said.writer, said.common, said.end_seq - 21) == (True, common, 7)
    assert Book(lab.path("a")).wrote() is None


def test_who_wrote_last_is_noted_before_a_receiver_has_the_store(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    part(lab, alone=3)
    with monkeypatch.context() as patch:
        patch.setattr("sustain.replication.standby.Replica", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            Standby(lab.path("a"), "a", "memory", None).open()
    control = Control(lab.path("a"))
    assert Book(lab.path("a")).wrote() == control.superblock()["replica_uuid"]
    assert not control.superblock()["received"]
    control.close()
    Standby(lab.path("a"), "a", "memory", None).open()


def test_what_is_known_is_dropped_and_what_is_kept_is_bounded(tmp_path: Path) -> None:
    book = Book(str(tmp_path / "a.sus"))
    assert book.add([account()]) == [account()]
    assert book.add([account(), account(noted_ns=5)]) == []
    assert book.version == 1
    assert len(book.add([account(epoch=epoch) for epoch in range(3, 3 + LIMIT)])) == LIMIT
    held = book.accounts(STORE.bytes)
    assert [each.epoch for each in held] == list(range(3, 3 + LIMIT))
    before = path_of(str(tmp_path / "a.sus")).read_bytes()
    assert book.add([account(), account(epoch=1)]) == []  # the oldest are not taken again
    assert path_of(str(tmp_path / "a.sus")).read_bytes() == before
    assert book.accounts(b"o" * 16) == []


def test_a_file_that_is_damaged_is_set_aside_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    store = str(tmp_path / "a.sus")
    for damage in (b"{", b"\xff\xfe", b'{"version": 1, "accounts": [{"store": 7}]}', b"[" * 5000):
        path_of(store).write_bytes(damage)
        book = Book(store, said.append)
        assert book.accounts(STORE.bytes) == []
        assert book.add([account()]) == [account()]
        assert Book(store).accounts(STORE.bytes) == [account()]
    assert len(said) == len(list(tmp_path.glob("*.damaged-*"))) == 4
    path_of(store).write_bytes(b"")
    assert Book(store).accounts(STORE.bytes) == []


def test_a_disk_that_takes_nothing_is_said_and_the_account_still_goes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    book = Book(str(tmp_path / "a.sus"), said.append)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.wholefile, "replace", full)
        assert book.add([account()]) == [account()]
    assert "No space left" in said[0]
    assert book.accounts(STORE.bytes) == [account()]
    assert book.add([account(epoch=3)]) == [account(epoch=3)]
    assert len(Book(str(tmp_path / "a.sus")).accounts(STORE.bytes)) == 2


def test_several_add_at_once(tmp_path: Path) -> None:
    store = str(tmp_path / "a.sus")
    books = [Book(store) for _ in range(4)]
    threads = [
        threading.Thread(
            target=lambda n=n, book=book: [book.add([account(epoch=n * 8 + at + 1)]) for at in range(8)]
        )
        for n, book in enumerate(books)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Book(store).accounts(STORE.bytes)) == 32


def test_a_peer_that_does_not_know_them_is_sent_none(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older version's introduction has no such field: none goes, and all else does."""
    assert decode(Welcome, msgspec.msgpack.encode({"name": "b", "later": 1})).accounts is False
    part(lab, alone=7)
    said: list[Account] = []
    monkeypatch.setattr(Book, "add", lambda _, accounts, **__: said.extend(accounts) or [])
    hello = Shipper.hello
    monkeypatch.setattr(Shipper, "hello", lambda self: msgspec.structs.replace(hello(self), accounts=False))
    lab.ship(lab.receiver("a"), name="b")
    new = lab.stores["b"]
    new.wait(fill(new, 50, 1), copies=1, timeout=20)
    assert len(said) == 1  # by the host itself; nobody else has heard it


def test_an_account_fits_its_frame() -> None:
    most = {
        name: wire.MOST for name in Account.__struct_fields__ if isinstance(getattr(account(), name), int)
    }
    largest = account(**most | {"writer": True}, host="h" * 64)
    assert len(encode(largest)) <= wire.PAYLOAD_LIMIT[wire.Kind.ACCOUNT]
    assert decode(Account, encode(largest)) == largest


def test_one_of_another_store_ends_the_connection(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not kept: what a host says is of the store that it has."""
    store, receiver = lab.create(), lab.receiver()
    monkeypatch.setattr(Book, "accounts", lambda *_: [account()])
    lab.ship(receiver)
    until(lambda: "ACCOUNT does not fit" in str(receiver.status()["last_error"]), "it is turned away")
    assert not path_of(lab.path("b")).exists()
    monkeypatch.undo()
    store.wait(fill(store, 0, 3), copies=1, timeout=20)
