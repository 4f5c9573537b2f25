"""Regions on block devices: loop devices, made by root. (/dev/pmem0, /dev/dax0.0: tests/lab/test_region_devices.py.)"""

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sustain import RegionBusy, RegionFull
from sustain.powerfail.regions.manifest import RegionIdentity
from sustain.powerfail.regions.medium import open_medium, open_target
from sustain.powerfail.regions.save import Request, save
from tests.powerfail.regions.test_save_restore import NAME, SIZE, UUID, at, restore_from

MIB = 1 << 20
Devices = Callable[[str, int], Path]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Devices]:
    """`device(name, size)`: a loop device over a file of zeros."""
    made: list[str] = []

    def make(name: str, size: int) -> Path:
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(size)
        words = ["losetup", "--find", "--show", str(path)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("no losetup here")
        if done.returncode:
            pytest.skip(f"no loop devices here: {done.stderr.strip()}")
        made.append(done.stdout.strip())
        return Path(made[-1])

    yield make
    for each in made:
        subprocess.run(["losetup", "--detach", each], check=False)
        for beside in (f"{each}.region-id", f"{each}.restoring"):
            Path(beside).unlink(missing_ok=True)


def test_from_one_to_a_larger_one(tmp_path: Path, device: Devices) -> None:
    one, larger = device("one", 8 * MIB), device("larger", 12 * MIB)
    data = random.Random(1).randbytes(8 * MIB)
    one.write_bytes(data)
    region = RegionIdentity(UUID, 8 * MIB, NAME)
    report = save(Request(str(one), region, 1, 1, "host-a", "test", 1), [at(tmp_path / "s")])
    assert report.complete
    restored = restore_from(tmp_path / "s", larger)
    assert restored.target_bytes == 12 * MIB
    with larger.open("rb") as file:
        assert file.read(8 * MIB) == data
    assert restore_from(tmp_path / "s", larger).copied_bytes == 0


def test_one_that_is_too_small_is_refused_untouched(tmp_path: Path, device: Devices) -> None:
    small = device("small", MIB)
    with pytest.raises(RegionFull, match=f"has {MIB} bytes"):
        open_target(small, SIZE)


def test_one_that_is_mounted_is_refused(tmp_path: Path, device: Devices) -> None:
    disk = device("disk", 8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True)
    (tmp_path / "mounted").mkdir()
    mounted = subprocess.run(["mount", str(disk), str(tmp_path / "mounted")], check=False)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    try:
        with pytest.raises(RegionBusy, match="in use"):
            open_target(disk, MIB)
        with open_medium(disk) as medium:
            assert (medium.kind, medium.size_bytes) == ("block device", 8 * MIB)
    finally:
        subprocess.run(["umount", str(tmp_path / "mounted")], check=True)
    open_target(disk, MIB).close()
