"""The region itself: files with holes and odd sizes, targets, devices (a DAX device is a file in disguise here)."""

import mmap
import os
from pathlib import Path

import pytest

from sustain import RegionBusy, RegionError, RegionFull, RegionIOError
from sustain.host import devices
from sustain.powerfail.regions.manifest import PAGE_BYTES
from sustain.powerfail.regions.medium import DaxMedium, open_medium, open_target

MIB = 1 << 20


def test_reads_whole_pages_of_an_odd_size(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_bytes(b"a" * (PAGE_BYTES + 5))
    with open_medium(path) as medium:
        assert (medium.size_bytes, medium.pages, medium.kind) == (PAGE_BYTES + 5, 2, "file")
        buffer = bytearray(b"x" * PAGE_BYTES)
        medium.read(1, buffer)
        assert buffer == b"a" * 5 + bytes(PAGE_BYTES - 5)
        view = medium.view()
        assert bytes(view) == path.read_bytes()
        view.release()


def test_writes_do_not_make_it_longer(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_bytes(bytes(PAGE_BYTES + 5))
    with open_medium(path, writable=True) as medium:
        medium.write(1, b"b" * PAGE_BYTES)
        medium.flush()
    assert path.read_bytes() == bytes(PAGE_BYTES) + b"b" * 5


def test_holes_are_known(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with path.open("wb") as file:
        file.truncate(16 * MIB + 100)
        file.seek(4 * MIB)
        file.write(b"x" * MIB)
    with open_medium(path) as medium:
        assert list(medium.data_runs()) == [(4 * MIB // PAGE_BYTES, MIB // PAGE_BYTES)]
        spans = list(medium.spans(medium.pages, 1000))
        assert [first for first, _, _ in spans] == [
            sum(n for _, n, _ in spans[:at]) for at in range(len(spans))
        ]
        assert sum(n for _, n, _ in spans) == medium.pages
        assert sum(n for _, n, data in spans if data) == MIB // PAGE_BYTES
        for pages in (1, 1024, 1100, 1280, 1281):
            assert sum(n for _, n, _ in medium.spans(pages, 7)) == pages
    whole = tmp_path / "whole"
    whole.write_bytes(b"x" * 3 * PAGE_BYTES)
    with open_medium(whole) as medium:
        assert list(medium.spans(3, 2)) == [(0, 2, True), (2, 1, True)]


def test_a_region_that_shrinks_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_bytes(b"x" * 10 * PAGE_BYTES)
    with open_medium(path) as medium:
        view = medium.view()
        os.truncate(path, PAGE_BYTES)
        with pytest.raises(RegionIOError, match="shorter"):
            medium.read(5, bytearray(PAGE_BYTES))
        with pytest.raises(RegionIOError, match="pages 5 to 6"):
            medium.populate(5, 2)
        medium.populate(0, 1)
        view.release()


@pytest.mark.parametrize("what", ["missing", "empty", "folder", "character device"])
def test_what_is_no_region_is_said(tmp_path: Path, what: str) -> None:
    path = tmp_path / "r"
    if what == "empty":
        path.write_bytes(b"")
    elif what == "folder":
        path.mkdir()
    elif what == "character device":
        path = Path("/dev/null")
    with pytest.raises(RegionError, match=str(path)) as caught:
        open_medium(path)
    assert caught.value.hint


def test_targets_are_made_or_grown(tmp_path: Path) -> None:
    with open_target(tmp_path / "new", 3 * PAGE_BYTES) as target:
        assert target.size_bytes == 3 * PAGE_BYTES
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"s" * 10)
    large.write_bytes(b"l" * 10 * PAGE_BYTES)
    with open_target(small, 3 * PAGE_BYTES):
        assert small.stat().st_size == 3 * PAGE_BYTES
    with open_target(large, 3 * PAGE_BYTES) as target:
        assert target.size_bytes == large.stat().st_size == 10 * PAGE_BYTES


def test_a_target_that_a_program_writes_to_is_refused(tmp_path: Path) -> None:
    import mmap

    path = tmp_path / "r"
    path.write_bytes(bytes(PAGE_BYTES))
    with path.open("r+b") as file:
        with pytest.raises(RegionBusy, match="open for writing"):
            open_target(path, PAGE_BYTES)
        mapping = mmap.mmap(file.fileno(), PAGE_BYTES)
    with pytest.raises(RegionBusy):
        open_target(path, PAGE_BYTES)
    mapping.close()
    open_target(path, PAGE_BYTES).close()


def test_no_room_for_a_target(tmp_path: Path) -> None:
    from tests.powerfail.regions.test_directory import file_size_limit

    with file_size_limit(PAGE_BYTES), pytest.raises(RegionFull):
        open_target(tmp_path / "r", 3 * PAGE_BYTES)


def test_dax_devices_by_sys(tmp_path: Path) -> None:
    folder = tmp_path / "sys/dev/char/250:7"
    folder.mkdir(parents=True)
    device = os.makedev(250, 7)
    assert devices.dax(device, tmp_path) is None
    (folder / "size").write_text("8388608\n")
    (folder / "align").write_text("4194304\n")
    assert devices.dax(device, tmp_path) == devices.Dax(8388608, 4194304)
    (folder / "subsystem").symlink_to("../../../class/tty")
    assert devices.dax(device, tmp_path) is None


def test_mapped_media_read_and_write(tmp_path: Path) -> None:
    """What a DAX device gets: everything through a mapping."""
    path = tmp_path / "dax"
    path.write_bytes(b"a" * 2 * MIB)
    fd = os.open(path, os.O_RDWR)
    with DaxMedium(str(path), fd, 2 * MIB, writable=True) as medium:
        buffer = bytearray(3 * PAGE_BYTES)
        medium.read(5, buffer)
        assert buffer == b"a" * len(buffer)
        medium.write(511, b"b" * PAGE_BYTES)
        medium.flush()
        medium.read(509, buffer)
        assert buffer == b"a" * 2 * PAGE_BYTES + b"b" * PAGE_BYTES
        assert list(medium.data_runs()) == [(0, 512)]
    assert path.read_bytes()[-PAGE_BYTES:] == b"b" * PAGE_BYTES


def test_a_file_that_nobody_writes_can_be_held_still(tmp_path: Path) -> None:
    path = tmp_path / "region"
    path.write_bytes(bytes(3 * PAGE_BYTES))
    with open_medium(path) as medium, open_medium(path) as other:
        assert medium.hold_still()
        assert other.hold_still()  # several may read
        assert medium.held_still()
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_RDWR | os.O_NONBLOCK)
        assert not medium.held_still()  # whoever waits for it may get it after a while


def test_a_file_that_somebody_writes_cannot_be_held_still(tmp_path: Path) -> None:
    path = tmp_path / "region"
    path.write_bytes(bytes(3 * PAGE_BYTES))
    with path.open("r+b") as file, open_medium(path) as medium:
        assert not medium.hold_still()
        mapped = mmap.mmap(file.fileno(), 0)
        file.close()
        assert not medium.hold_still()  # the mapping counts
        mapped.close()
        assert medium.hold_still()
