"""What an archive says is not believed: names that lead elsewhere, sizes that nothing has, files that are none."""

import os
from pathlib import Path

import msgspec
import pytest

from sustain._native import digest
from sustain.errors import ArchiveCorrupt, ArchiveError, SustainError
from sustain.replication.archive import names
from sustain.replication.archive.contents import read_contents, read_snapshot
from sustain.replication.archive.documents import Part, Snapshot, encode

from .conftest import Kit, Told, fails


@pytest.fixture
def filled(directory: Kit) -> tuple[Kit, Told]:
    told = directory.tell()
    told.change(60)
    shipping = directory.ship("every=5ms")
    directory.arrived(told)
    told.change(20)
    directory.arrived(told)
    shipping.stop()
    return directory, told


def snapshot_of(kit: Kit) -> tuple[names.SnapshotName, Snapshot]:
    contents = read_contents(kit.place)
    name = contents.snapshots()[0]
    return name, read_snapshot(kit.place, name, contents.store)


@pytest.mark.parametrize(
    "path", ["../../outside", "/dev/zero", "e1/../../outside", "e1/manifest", "e1/pages-zz"]
)
def test_parts_that_lie_elsewhere(filled: tuple[Kit, Told], path: str) -> None:
    kit, _ = filled
    outside = kit.directory.parent.parent / "outside"
    outside.write_bytes(b"not for anybody")
    name, snapshot = snapshot_of(kit)
    kit.place.put(
        name.path,
        encode(msgspec.structs.replace(snapshot, parts=[Part(path=path, size=len("not for anybody"))])),
    )
    error = fails(kit.restore, ArchiveCorrupt)
    assert "no part of it" in str(error)
    assert outside.read_bytes() == b"not for anybody"


@pytest.mark.parametrize(
    "field", [{"image_size": 2**62}, {"log_size": 2**62}, {"image_size": 4096}, {"start": 2**63 - 1}]
)
def test_sizes_of_a_snapshot(filled: tuple[Kit, Told], field: dict[str, int]) -> None:
    kit, _ = filled
    name, snapshot = snapshot_of(kit)
    kit.place.put(name.path, encode(msgspec.structs.replace(snapshot, **field)))
    fails(kit.restore, ArchiveCorrupt)
    assert not list(kit.lab.directory.glob("restored*"))


@pytest.mark.parametrize("size", [0, 2**40, 2**62])
def test_sizes_of_a_whole_archive(filled: tuple[Kit, Told], size: int) -> None:
    """Snapshot and manifest agree on sizes that no store has."""
    kit, _ = filled
    name, snapshot = snapshot_of(kit)
    kit.place.put(name.path, encode(msgspec.structs.replace(snapshot, image_size=size, log_size=size)))
    manifest = msgspec.structs.replace(read_contents(kit.place).newest, image_size=size, log_size=size)
    kit.place.put(names.manifest_path(1), encode(manifest))
    fails(kit.restore, SustainError)
    assert not list(kit.lab.directory.glob("restored*"))


def test_objects_that_are_larger_than_they_say(filled: tuple[Kit, Told]) -> None:
    """A sparse file of a tebibyte is not read."""
    kit, _ = filled
    for path in kit.objects():
        before = path.read_bytes()
        os.truncate(path, 1 << 40)
        if "holds" not in str(path):
            with pytest.raises(ArchiveError, match=r"bytes"):
                kit.restore()
        path.unlink()
        path.write_bytes(before)


def test_segments_that_name_more_than_any_log(filled: tuple[Kit, Told]) -> None:
    kit, told = filled
    first = kit.segments()[0].first
    huge = kit.directory / names.SegmentName(1, first, 2**62).path
    huge.write_bytes(b"")
    error = fails(kit.restore, ArchiveError)
    assert huge.name in str(error)
    huge.unlink()
    assert kit.held(kit.restore()) == told.states[-1]


def test_what_is_no_regular_file(filled: tuple[Kit, Told], tmp_path: Path) -> None:
    """A pipe that nobody writes to hangs nobody, a link leads nowhere."""
    kit, told = filled
    segment = kit.directory / kit.segments()[-1].path
    whole = segment.read_bytes()
    segment.unlink()
    os.mkfifo(segment)
    fails(kit.restore, ArchiveError)
    segment.unlink()
    aside = tmp_path / "aside"
    aside.write_bytes(whole)
    segment.symlink_to(aside)
    fails(kit.restore, ArchiveError)
    segment.unlink()
    segment.write_bytes(whole)
    assert kit.held(kit.restore()) == told.states[-1]


@pytest.mark.parametrize("name", ["e0", "e01", "e١", "e" + "9" * 200, "e-1", "e1x", "E1"])
def test_names_that_are_no_epochs(filled: tuple[Kit, Told], name: str) -> None:
    kit, told = filled
    (kit.directory / name).mkdir()
    (kit.directory / name / "manifest").write_bytes(b"SUSARCD1" + digest(b"{}") + b"{}")
    assert kit.place.epochs() == {1}
    assert kit.held(kit.restore()) == told.states[-1]
