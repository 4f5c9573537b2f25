"""What the kernel says of large pages, in recorded files; what it does when told to split some is in the lab."""

import errno
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import large_pages
from sustain.host.large_pages import Settings

BUDDY = """\
Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      2
Node 0, zone    DMA32      3      2      3      2      3      2      2      1      1      2      0
Node 0, zone   Normal      5      4      1      2      3      2      2      1      1      0    700
"""


def test_settings(tmp_path: Path) -> None:
    assert large_pages.settings(tmp_path) == Settings(None, None, None, None, None)
    folder = tmp_path / "sys/kernel/mm/transparent_hugepage"
    (folder / "khugepaged").mkdir(parents=True)
    (folder / "enabled").write_text("always [madvise] never\n")
    (folder / "defrag").write_text("always defer [defer+madvise] madvise never\n")
    (folder / "shmem_enabled").write_text("always [within_size] advise never deny force\n")
    (folder / "khugepaged/defrag").write_text("1\n")
    assert large_pages.settings(tmp_path) == Settings("madvise", "defer+madvise", "within_size", True, None)


@pytest.mark.parametrize(
    ("enabled", "defrag", "most", "refills"),
    [
        ("always", True, 511, True),
        ("madvise", True, 64, True),
        ("madvise", True, 0, False),
        ("madvise", False, 511, True),  # `defrag` is whether it compacts memory for that
        ("never", True, 511, False),
        ("madvise", True, None, False),  # unknown
        (None, None, None, False),
    ],
)
def test_whether_khugepaged_fills_what_was_taken(
    enabled: str | None, defrag: bool | None, most: int | None, refills: bool
) -> None:
    assert Settings(enabled, None, None, defrag, most).refills == refills


def test_free_runs_of_a_large_page(tmp_path: Path) -> None:
    assert large_pages.free(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/buddyinfo").write_text(BUDDY)
    assert large_pages.free(tmp_path) == (1 + 2 * 2) + 2 + 2 * 700


def test_splitting(tmp_path: Path) -> None:
    assert not large_pages.can_split(tmp_path)
    with pytest.raises(HostError, match="not there") as caught:
        large_pages.split(7, 0, 1, tmp_path)
    assert (caught.value.errno, "debugfs" in caught.value.hint) == (errno.ENOENT, True)
    path = tmp_path / "sys/kernel/debug/split_huge_pages"
    path.parent.mkdir(parents=True)
    path.write_text("")
    large_pages.split(7, 0x200000, 0x400000, tmp_path)
    assert path.read_text() == "7,0x200000,0x400000"
