"""Shipping to an archive: going on, being overrun, being refused, running out of room."""

import os
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

import sustain
from sustain.errors import ArchiveIOError, NotRestorable
from sustain.replication.archive import copy, names
from sustain.replication.archive.contents import read_manifests
from sustain.replication.archive.directory import Directory
from sustain.replication.archive.documents import encode
from sustain.replication.archive.place import Place
from tests.replication.conftest import LIMIT_S

from .conftest import Kit, fails, until


def test_goes_on_where_it_was(kit: Kit) -> None:
    told = kit.tell()
    told.change(20)
    shipping = kit.ship()
    kit.arrived(told)
    shipping.stop()
    snapshots = len(kit.snapshots())
    told.change(20)
    shipping = kit.ship()
    kit.arrived(told)
    shipping.stop()
    assert len(kit.snapshots()) == snapshots, "no snapshot was needed"
    assert kit.held(kit.restore()) == told.states[-1]


def test_segments_by_size_and_time(directory: Kit) -> None:
    kit = directory
    told = kit.tell()
    told.change(5)
    shipping = kit.ship("every=1h&segment=32KiB")
    until(kit.snapshots, "a snapshot: what it holds is in no segment")
    told.change(1000)
    until(lambda: len(kit.segments()) >= 3, "segments")
    sizes = [each.last - each.first for each in kit.segments()]
    assert max(sizes) <= 32 << 10
    assert min(sizes[1:-1]) > 28 << 10, "each as full as commits allow"
    assert told.store.status().destinations[0].acked != told.positions[-1]
    shipping.stop()
    # What is left waits for its hour; a drain does not.
    drained = kit.ship("every=1h", until_drained=True, drain_timeout_s=20).join()
    assert drained.error is None
    assert kit.held(kit.restore()) == told.states[-1]


def test_what_is_left_goes_when_the_application_closes_its_store(directory: Kit) -> None:
    """So a handover does not wait for the hour of a segment."""
    kit = directory
    told = kit.tell()
    told.change(10)
    kit.ship("every=1h")
    until(kit.snapshots, "a snapshot")
    end = told.change(10)
    assert read_manifests(kit.place)[0][1].acked < end
    told.store.close()
    until(lambda: read_manifests(kit.place)[0][1].acked == end, "the rest")


def test_one_commit_larger_than_a_segment(directory: Kit) -> None:
    kit = directory
    told = kit.tell()
    told.change(1)
    shipping = kit.ship("every=1ms&segment=4KiB")
    file = told.store.file("blob")
    file.pwrite(os.urandom(200_000), 0)
    end = told.store.commit()
    kit.arrived(told, end)
    shipping.stop()
    restored = kit.restore()
    with sustain.open(restored.path) as store:
        assert store.file("blob").pread(200_000, 0) == file.pread(200_000, 0)


def test_overrun_is_a_gap_that_is_told(directory: Kit) -> None:
    """A log that was trimmed meanwhile: a new snapshot, and the positions between are known to be missing."""
    kit = directory
    told = kit.tell(log_size="2MiB")
    told.change(30)
    shipping = kit.ship()
    kit.arrived(told)
    before = told.positions[-1]
    shipping.stop()
    while told.positions[-1] < before + (5 << 20):
        told.change(200)
    lost = told.positions[-100]
    shipping = kit.ship()
    kit.arrived(told)
    told.change(10)
    kit.arrived(told)
    shipping.stop()
    assert kit.held(kit.restore()) == told.states[-1]
    assert kit.held(kit.restore(position=before)) == told.at(before)
    middle = next(each for each in told.positions if each > before + (2 << 20))
    error = fails(lambda: kit.restore(position=middle), NotRestorable)
    assert str(before) in str(error)
    assert "never archived" in str(error)
    moment = told.times[told.positions.index(middle)]
    error = fails(lambda: kit.restore(at_ns=moment), NotRestorable)
    assert str(before) in str(error), "not an older one in its place"
    assert lost > before


def test_stopped_behind_a_gap_before_its_snapshot(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log behind a gap leads nowhere until there is a snapshot; what was acknowledged before it still restores."""
    told = kit.tell(log_size="2MiB")
    told.change(30)
    shipping = kit.ship()
    first = kit.arrived(told)
    before = kit.arrived(told, told.change(30))
    shipping.stop()
    while told.positions[-1] < before + (5 << 20):
        told.change(200)
    put = type(kit.place).put

    def no_pages(place: Place, path: str, data: bytes) -> None:
        if names.part_name(path):
            raise ArchiveIOError(f"{path}: no room for pages", hint="none")
        put(place, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(type(kit.place), "put", no_pages)
        shipping = kit.ship()
        until(lambda: len(read_manifests(kit.place)[0][1].runs) == 2, "log behind the gap")
        until(lambda: any("no room" in each for each in shipping.said), "a snapshot that fails")
        shipping.stop()
    assert read_manifests(kit.place)[0][1].acked == before
    restored = kit.restore()
    assert restored.position == before
    assert kit.held(restored) == told.at(before)
    for position in told.positions[-300:-200:50]:
        fails(partial(kit.restore, position=position), NotRestorable)
    for position in [each for each in told.positions if first <= each <= before][::7]:
        assert kit.held(kit.restore(position=position)) == told.at(position)
    shipping = kit.ship()
    kit.arrived(told)
    shipping.stop()
    assert kit.held(kit.restore()) == told.states[-1]


def test_what_the_host_lost_is_not_restored(kit: Kit) -> None:
    """Segments that were put and not promised, of commits that went with the host's power and were made otherwise: they
    count for nobody, though they reach further."""
    told = kit.tell()
    told.change(30)
    shipping = kit.ship()
    kit.arrived(told)
    shipping.stop()
    copy = Path(kit.lab.path("copy"))
    with open(kit.lab.path("a"), "rb") as file:
        copy.write_bytes(file.read())  # as a power cut leaves it: open, and without what comes now
    promised = kit.place.get(names.manifest_path(1))
    assert promised is not None
    lost = told.change(40)
    shipping = kit.ship("every=1ms&segment=4KiB")
    kit.arrived(told)
    shipping.stop()
    kit.place.put(names.manifest_path(1), promised)
    strangers = [each for each in kit.segments() if each.last > told.positions[29]]
    assert strangers
    os.rename(copy, kit.lab.path("back"))
    store = kit.lab.open("back")
    users = store.map("users")
    users[b"other"] = b"way"
    store.commit()
    kit.ship(name="back")
    until(lambda: not set(strangers) & set(kit.segments()), "strangers are removed")
    while store.position <= lost:
        users[b"other"] = os.urandom(200)
        store.commit()
    store.wait(store.position, copies=1, timeout=30)
    assert kit.held(kit.restore()) == dict(users.items())


def test_two_that_ship_the_same_store(directory: Kit) -> None:
    """A copied file, shipped beside its original: whoever comes second is refused, or the first one is told."""
    kit = directory
    told = kit.tell()
    told.change(10)
    shipping = kit.ship("every=5ms")
    kit.arrived(told)
    manifest = kit.place.get(names.manifest_path(1))
    assert manifest is not None
    before = read_manifests(kit.place)[0][1]
    kit.place.put(names.manifest_path(1), encode(msgspec.structs.replace(before, replica="0" * 32)))
    told.change(10)
    until(lambda: any("somebody else ships there" in each for each in shipping.said), "it is told")
    shipping.stop()


def test_snapshots_end_while_segments_follow_one_another(
    directory: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each put of a segment takes until the next one has begun, so that some put is always on its way."""
    kit = directory
    told = kit.tell()
    told.change(10)
    put, turn, begun, ended = Directory.put, threading.Condition(), 0, False

    def overlapping(place: Directory, path: str, data: bytes) -> None:
        nonlocal begun
        if names.segment_name(path):
            with turn:
                begun += 1
                mine = begun
                turn.notify_all()
                turn.wait_for(lambda: begun > mine or ended, LIMIT_S)
        if names.part_name(path):
            with turn:  # so that it begins among them
                turn.wait_for(lambda: begun > 1 or ended, LIMIT_S)
        put(place, path, data)

    monkeypatch.setattr(Directory, "put", overlapping)
    shipping = kit.ship("every=1ms")
    until(lambda: told.change(1) and kit.snapshots(), "a snapshot")
    with turn:
        ended = True
        turn.notify_all()
    kit.arrived(told)
    shipping.stop()
    assert begun > 1


def test_required_keeps_the_log(directory: Kit) -> None:
    kit = directory
    told = kit.tell(log_size="2MiB")
    told.change(30)
    shipping = kit.ship("every=5ms&required=1")
    while told.positions[-1] < 8 << 20:
        told.change(200)
    kit.arrived(told)
    shipping.stop()
    manifests, _ = read_manifests(kit.place)
    assert len(manifests[1].runs) == 1, "nothing was left out"
    assert kit.held(kit.restore()) == told.states[-1]


def test_other_store_is_refused(kit: Kit) -> None:
    told = kit.tell()
    told.change(3)
    shipping = kit.ship()
    kit.arrived(told)
    shipping.stop()
    other = kit.tell("other")
    other.change(3)
    refused = kit.ship(name="other", until_drained=True, drain_timeout_s=20).join()
    assert "another store" in str(refused.error)
    assert kit.held(kit.restore()) == told.states[-1]


def test_snapshots_come_again(directory: Kit) -> None:
    kit = directory
    told = kit.tell()
    told.change(10)
    kit.ship("every=5ms&snapshot=10ms")
    for _ in range(4):
        count = len(kit.snapshots())
        told.change(20)
        kit.arrived(told)
        until(lambda count=count: len(kit.snapshots()) > count, "another snapshot")  # type: ignore[misc]
    newest = kit.snapshots()[-1]
    assert kit.held(kit.restore(position=newest.usable)) == told.at(newest.usable)


def test_changes_during_a_copy(directory: Kit) -> None:
    """A snapshot of an image that changes all the time is usable where it says, and exact."""
    kit = directory
    told = kit.tell(size="16MiB", log_size="4MiB")
    blob = told.store.file("blob")
    for at in range(0, 6 << 20, 1 << 20):
        blob.pwrite(os.urandom(1 << 20), at)
        told.store.commit()
    kit.ship("every=5ms&required=1")
    while not kit.snapshots():
        blob.pwrite(os.urandom(50_000), told.random.randrange(6 << 20) & ~7)
        told.change(3)
    kit.arrived(told)
    snapshot = kit.snapshots()[0]
    assert kit.held(kit.restore(position=snapshot.usable)) == told.at(snapshot.usable)
    restored = kit.restore()
    with sustain.open(restored.path) as store:
        assert store.file("blob").pread(6 << 20, 0) == blob.pread(6 << 20, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_directory_that_fills_its_disk(directory: Kit, small_disk: Path) -> None:
    """It is told, nothing acknowledged is lost, nobody waits, and it goes on when there is room."""
    kit = Kit(directory.lab, f"file://{small_disk}/arch")

    def acked() -> int | None:
        return told.store.status().destinations[0].acked

    def full() -> bool:
        return any("No space" in text for text in shipping.said)

    filler = small_disk / "filler"
    filler.write_bytes(bytes(3600 << 10))
    told = kit.tell(log_size="4MiB")
    told.change(10)
    shipping = kit.ship("every=5ms")
    kit.arrived(told)
    while not full():
        end = told.change(20)
        until(lambda end=end: full() or (acked() or 0) >= end, "the archive takes it, or says why not")  # type: ignore[misc]
    there = acked()
    assert there is not None
    restored = kit.restore()
    assert restored.position >= there
    assert kit.held(restored) == told.at(restored.position)
    assert not [each for each in kit.objects() if each.name.startswith(".put")], "no half object is left"
    filler.unlink()
    kit.arrived(told)
    shipping.stop()
    assert kit.held(kit.restore()) == told.states[-1]
    kit.end()


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
def test_directory_without_room_for_a_snapshot(
    directory: Kit, small_disk: Path, monkeypatch: pytest.MonkeyPatch, required: bool
) -> None:
    """Commits go on, what was put of it goes again, and the next one comes by itself when there is room for one."""
    monkeypatch.setattr(copy, "PART_BYTES", 1 << 20)
    kit = Kit(directory.lab, f"file://{small_disk}/arch")
    told = kit.tell(size="16MiB", log_size="2MiB")
    blob = told.store.file("blob")
    for at in range(0, 6 << 20, 1 << 20):
        blob.pwrite(os.urandom(1 << 20), at)
        told.store.commit()
    told.change(10)

    def pages() -> list[Path]:
        return [each for each in kit.objects() if names.part_name(str(each.relative_to(kit.directory)))]

    shipping = kit.ship(f"every=5ms&required={int(required)}", stall_s=0.3)
    until(pages, "a snapshot begins")
    for _ in range(3):
        seen = len(shipping.said)
        until(
            lambda: not pages() and shipping.shipper.status()[0]["error"],
            "it finds no room, and leaves none taken",
        )
        until(lambda seen=seen: pages() or len(shipping.said) > seen, "it is tried again")  # type: ignore[misc]
    assert any("No space" in text for text in shipping.said)
    while told.positions[-1] < 12 << 20:
        told.change(100)  # whose log is never in the way for longer than the stall time
    assert told.store.status().destinations[0].acked is None, "log without a snapshot is nobody's copy"
    subprocess.run(["mount", "-o", "remount,size=12m", str(small_disk)], check=True)
    told.store.wait(told.change(10), copies=1, timeout=LIMIT_S)
    shipping.stop()
    restored = kit.restore()
    with sustain.open(restored.path) as store:
        assert store.file("blob").pread(6 << 20, 0) == blob.pread(6 << 20, 0)
    assert kit.held(restored) == told.states[-1]
    kit.end()


def test_interrupted_puts_are_swept(directory: Kit) -> None:
    kit = directory
    told = kit.tell()
    told.change(3)
    shipping = kit.ship()
    kit.arrived(told)
    shipping.stop()
    from sustain.replication.archive.directory import _host

    half = kit.directory / "e1" / f".put-{_host()}-0011"
    half.write_bytes(b"half")
    others = kit.directory / "e1" / ".put-elsewhere-0011"
    others.write_bytes(b"another host's")
    assert not [each for each in kit.place.list() if ".put" in each.path], "no half object is listed"
    told.change(3)
    shipping = kit.ship()
    kit.arrived(told)
    shipping.stop()
    assert not half.exists()
    assert others.exists()
