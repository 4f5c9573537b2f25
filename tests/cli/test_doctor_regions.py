"""What `sustain doctor` says of region evacuation on other hosts than this one."""

from pathlib import Path

import pytest

from sustain.cli.doctor_regions import check_freezing, check_rights, check_tracking
from sustain.host.freezer import cgroup_freezers

HERE = Path(__file__)


@pytest.mark.parametrize(
    ("scan", "soft_dirty", "release", "state", "word", "enable"),
    [
        (True, True, (6, 12), "ok", "write-protect, soft-dirty, content", ""),
        (True, False, (6, 18), "ok", "write-protect, content", ""),
        (False, True, (6, 1), "reduced", "soft-dirty, content", "boot Linux"),
        (False, False, (6, 1), "reduced", "content", "boot Linux"),
        (False, False, (6, 18), "reduced", "content", "seccomp"),
        (False, False, None, "reduced", "content", "boot Linux"),
    ],
)
def test_ways_to_find_changed_pages(
    scan: bool, soft_dirty: bool, release: tuple[int, int] | None, state: str, word: str, enable: str
) -> None:
    found = check_tracking(scan=scan, soft_dirty=soft_dirty, library=HERE, release=release)
    assert (found.state, found.found) == (state, word)
    assert enable in found.enable


def test_without_the_library_and_without_rights() -> None:
    found = check_tracking(scan=True, soft_dirty=True, library=HERE / "none.so", release=(6, 12))
    assert (found.state, found.enable) == ("reduced", "make build")
    assert check_rights(0).state == "ok"
    assert check_rights(1000).state == "reduced"


def test_cgroups_that_can_be_frozen(tmp_path: Path) -> None:
    assert cgroup_freezers(tmp_path) == []
    assert "mount" in check_freezing([]).enable
    for name in ("freezer/cgroup.procs", "unified/cgroup.controllers"):
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True)
        path.touch()
    found = cgroup_freezers(tmp_path)
    assert [each.split(" at ")[0] for each in found] == ["version 2", "version 1"]
    assert check_freezing(found).enable == ""
