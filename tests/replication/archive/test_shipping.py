"""Shipping to an archive: going on, being overrun, being refused, running out of room."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import sustain
from sustain.errors import NotRestorable
from sustain.replication.archive.contents import read_manifests

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
    assert lost > before


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
