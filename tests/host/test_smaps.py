"""Which memory could be mapped large: of recorded files, and of this process."""

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import smaps
from sustain.host.pagemap import BLOCK_BYTES
from sustain.host.processes import Identity, identify

MIB = 1 << 20
RECORDED = """\
55d0c0a00000-55d0c1200000 rw-p 00000000 00:00 0                          [heap]
Size:               8192 kB
VmFlags: rd wr mr mw me ac sd
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
VmFlags: rd wr mr mw me ac sd
7f0000200000-7f0000600000 rw-p 00000000 00:00 0
VmFlags: rd wr mr mw me ac sd nh
7f0000800000-7f0000c00000 rw-s 00200000 00:01 42                         /memfd:db (deleted)
VmFlags: rd wr sh mr mw me ms sd
7f0000d00000-7f0001300000 rw-s 00000000 00:01 42                         /memfd:db (deleted)
VmFlags: rd wr sh mr mw me ms sd
7f0002000000-7f0002400000 rw-p 00000000 00:01 42                         /memfd:db (deleted)
VmFlags: rd wr mr mw me sd
7f0004000000-7f0004400000 rw-s 00000000 00:0f 7                          /anon_hugepage (deleted)
VmFlags: rd wr sh mr mw me ms de ht sd
7f0005000000-7f0005400000 ---p 00000000 00:00 0
VmFlags: mr mw me sd
7f0006000000-7f0006400000 r-xp 00000000 08:01 9                          /usr/lib/libc.so.6
VmFlags: rd ex mr mw me sd
7ffd00000000-7ffd00400000 rw-p 00000000 00:00 0                          [stack]
VmFlags: rd wr mr mw me gd ac
"""


def test_what_is_anonymous_or_shared_and_why_it_stays_small(tmp_path: Path) -> None:
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    (folder / "smaps").write_text(RECORDED)
    found = smaps.read(7, tmp_path)
    assert found is not None
    assert [(each.start, each.shared, each.why_small) for each in found] == [
        (0x55D0C0A00000, False, ""),
        (0x7F0000200000, False, "it was advised MADV_NOHUGEPAGE"),
        (0x7F0000800000, True, ""),
        (0x7F0000D00000, True, "its address and its offset in the shared memory are not aligned alike"),
        (0x7F0002000000, True, "it is a private mapping of shared memory"),
    ]
    assert found[3].blocks == (0x7F0000E00000, 0x7F0001200000)
    assert smaps.read(8, tmp_path) is None


def test_another_program_in_the_same_process(tmp_path: Path) -> None:
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    fields = ["S", *map(str, range(4, 52))]
    (folder / "stat").write_text(f"7 (a ) b) {' '.join(fields)}\n")
    assert smaps.image(7, tmp_path) == 28
    assert smaps.image(8, tmp_path) is None
    assert smaps.image(os.getpid()) not in (None, 0)


def test_this_process() -> None:
    before = smaps.mark(os.getpid())
    with mmap.mmap(-1, 3 * BLOCK_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as view:
        at = ctypes.addressof(ctypes.c_char.from_buffer(view))
        first = -(-at // BLOCK_BYTES) * BLOCK_BYTES

        def reason() -> str:
            (mapping,) = (each for each in smaps.read(os.getpid()) or () if each.start <= first < each.end)
            assert mapping.blocks[0] <= first < mapping.blocks[1]
            return mapping.why_small

        assert smaps.mark(os.getpid()) != before
        assert reason() == ""
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(2 * BLOCK_BYTES), 15)
        assert reason() == "it was advised MADV_NOHUGEPAGE"


def test_a_process_that_forbids_large_pages() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if "THP_enabled" not in Path("/proc/self/status").read_text():
        pytest.skip("this kernel has no large pages")
    assert not smaps.thp_disabled(os.getpid())
    assert libc.prctl(41, 1, 0, 0, 0) == 0
    try:
        assert smaps.thp_disabled(os.getpid())
    finally:
        libc.prctl(41, 0, 0, 0, 0)


def _stat(root: Path, *, state: str = "S", started: int = 9, size: int = 4096, stack: int = 77) -> None:
    folder = root / "proc/7"
    folder.mkdir(parents=True, exist_ok=True)
    fields = [
        state,
        *map(str, range(4, 22)),
        str(started),
        str(size),
        "24",
        "25",
        "26",
        "27",
        str(stack),
        "29",
    ]
    (folder / "stat").write_text(f"7 (a ) b) {' '.join(fields)}\n")


def test_one_that_cannot_be_seen_is_not_one_that_has_gone(tmp_path: Path) -> None:
    who = Identity(7, 9)
    assert smaps.image_of(who, tmp_path) is None
    _stat(tmp_path)
    assert smaps.image_of(who, tmp_path) == 77
    for gone in ({"state": "Z"}, {"started": 10}, {"size": 0, "stack": 0}):
        _stat(tmp_path, **gone)  # type: ignore[arg-type]
        assert smaps.image_of(who, tmp_path) is None, gone
    _stat(tmp_path, stack=0)
    with pytest.raises(HostError, match="may not be looked at"):
        smaps.image_of(who, tmp_path)
    (tmp_path / "proc/7/stat").write_text("7 (a")
    with pytest.raises(HostError, match="cannot be understood"):
        smaps.image_of(who, tmp_path)
    (tmp_path / "proc/7/stat").unlink()
    (tmp_path / "proc/7/stat").mkdir()
    with pytest.raises(HostError):
        smaps.image_of(who, tmp_path)
    me = identify(os.getpid())
    assert me is not None
    assert smaps.image_of(me) == smaps.image(os.getpid())


def test_one_that_is_hidden_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sustain.host.files.text", lambda _: None)
    with pytest.raises(HostError, match="hidden"):
        smaps.image_of(Identity(os.getpid(), 1))
    assert smaps.image_of(Identity(2**22 + 1, 1)) is None  # beyond all numbers of processes
