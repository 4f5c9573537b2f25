"""meminfo, vmstat, pressure and swaps: of this machine, and of texts that were made for the test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import files, meminfo, pressure, swaps, vmstat

MEMINFO = """MemTotal:        2048000 kB
MemFree:           10240 kB
Active(file):        100 kB
Inactive(anon):      200 kB
HugePages_Total:       7
Percpu:              bad kB
Novelty:              12 kB
"""


def put(root: Path, path: str, content: str) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def test_meminfo_of_a_text() -> None:
    info = meminfo.parse(MEMINFO)
    assert info.total_bytes == 2048000 * 1024
    assert info.active_file_bytes == 100 * 1024
    assert info.inactive_anonymous_bytes == 200 * 1024
    assert info.per_cpu_bytes is None  # not a number
    assert info.swap_total_bytes is None  # not said, which is not zero
    assert meminfo.parse("") == meminfo.Meminfo()


def test_meminfo_of_this_machine() -> None:
    info = meminfo.read()
    assert info.total_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert info.free_bytes is not None
    assert 0 < info.free_bytes < info.total_bytes


def test_a_host_without_proc(tmp_path: Path) -> None:
    for read in (meminfo.read, vmstat.read, swaps.read):
        with pytest.raises(HostError) as caught:
            read(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "/proc mounted" in caught.value.hint


def test_vmstat_of_a_text() -> None:
    old = vmstat.parse("pswpin 3\nworkingset_refault 5\nnot a line\n")
    assert (old.swap_in_bytes, old.refault_file_bytes, old.refault_anonymous_bytes) == (
        3 * 4096,
        5 * 4096,
        None,
    )
    new = vmstat.parse("workingset_refault_anon 1\nworkingset_refault_file 2\npgsteal_direct 4\n", 16384)
    assert (new.refault_anonymous_bytes, new.refault_file_bytes) == (16384, 2 * 16384)
    assert (new.reclaimed_bytes, new.swap_in_bytes) == (4 * 16384, None)
    assert vmstat.parse("") == vmstat.Vmstat()


def test_vmstat_of_this_machine() -> None:
    before = vmstat.read()
    assert before.major_faults is not None
    assert (vmstat.read().major_faults or 0) >= before.major_faults


def test_pressure_of_a_text() -> None:
    text = (
        "some avg10=1.00 avg60=0.00 avg300=0.00 total=33\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=11\n"
    )
    assert pressure.parse(text) == pressure.Pressure(33, 11)
    assert pressure.parse("some avg10=0.00 total=what\n") == pressure.Pressure(None, None)


def test_a_number_that_no_kernel_has_is_unknown() -> None:
    most = str((1 << 64) - 1)
    for digits in (400, 5000):
        made_up = "9" * digits
        assert meminfo.parse(f"MemTotal: {made_up} kB\nMemFree: {most} kB\n").total_bytes is None
        assert vmstat.parse(f"pgmajfault {made_up}\npswpin {most}\n").major_faults is None
        assert pressure.parse(f"some total={made_up}\nfull total={most}\n").some_us is None
    assert pressure.parse(f"some total={made_up}\n\nfull total={most}\n").full_us == int(most)


def test_pressure_is_unknown_without_psi(tmp_path: Path) -> None:
    assert pressure.of_host(tmp_path) == pressure.Pressure(None, None)


def test_pressure_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "proc/pressure/memory/x", "")  # a directory stands where the file should be
    with pytest.raises(HostError, match="pressure/memory"):
        pressure.of_host(tmp_path)


def test_a_trigger_fires_when_tasks_stall() -> None:
    """On this machine, by CPU pressure: more workers than processors is a stall that can be made at will."""
    path = Path("/proc/pressure/cpu")
    if pressure.read(path).some_us is None:
        pytest.skip("this kernel has no PSI")
    spin = [sys.executable, "-c", "while True: pass"]
    with pressure.Trigger(path, 50_000, 2_000_000) as trigger:
        workers = [subprocess.Popen(spin) for _ in range(2 * (os.cpu_count() or 1))]
        try:
            assert trigger.wait(30)
        finally:
            for each in workers:
                each.kill()
                each.wait()


def test_a_trigger_that_the_kernel_does_not_take() -> None:
    if pressure.of_host().some_us is None:
        pytest.skip("this kernel has no PSI")
    with pytest.raises(HostError) as caught:
        pressure.Trigger(Path("/proc/pressure/memory"), 5, 1)
    assert "window" in caught.value.hint
    with pytest.raises(HostError, match="none"):
        pressure.Trigger(Path("/proc/pressure/none"), 1000, 500_000)


def test_swaps_of_a_tree(tmp_path: Path) -> None:
    put(
        tmp_path,
        "proc/swaps",
        "Filename\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/swap\\040file                          file\t\t2048\t\t48\t\t-2\n"
        "/dev/zram0                              partition\t1024\t\t24\t\t100\n"
        "/dev/zram1                              partition\t1024\t\t0\t\t100\n",
    )
    put(tmp_path, "sys/block/zram0/mm_stat", "  24576  8192  12288  0  12288  1  0  0  0\n")
    put(tmp_path, "sys/module/zswap/parameters/enabled", "N\n")
    found = swaps.read(tmp_path)
    assert [each.path for each in found.areas] == ["/dev/zram0", "/dev/zram1", "/swap file"]
    assert [each.zram for each in found.areas] == [swaps.Zram(24576, 12288), swaps.Zram(None, None), None]
    assert (found.total_bytes, found.free_bytes) == (4096 << 10, (4096 - 72) << 10)
    assert found.zswap is False


def test_a_host_without_swap(tmp_path: Path) -> None:
    put(tmp_path, "proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")
    assert swaps.read(tmp_path) == swaps.Swaps((), None)
    put(tmp_path, "proc/swaps", "Filename Type\nnonsense\n")
    with pytest.raises(HostError, match="nonsense"):
        swaps.read(tmp_path)


def test_swap_of_this_machine_is_what_meminfo_says() -> None:
    assert swaps.read().total_bytes == pytest.approx(meminfo.read().swap_total_bytes, abs=1 << 20)


def test_lists_of_processors() -> None:
    assert files.cpus("0-2,8\n") == {0, 1, 2, 8}
    assert files.cpus("") == files.cpus(None) == frozenset()
