"""Page classes from the texts of a real kernel, from a balloon, from a cgroup, and from those that lie."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.host import meminfo, pressure, vmstat
from sustain.host.balloon import Statistics
from sustain.host.cgroup import Stat
from sustain.host.pressure import Pressure
from sustain.schedulers.guest_memory import classes
from sustain.schedulers.guest_memory.model import Figures

KIB = 1024

# A guest of 256 MiB, Linux 6.12 (figures that matter here).
MEMINFO = """\
MemTotal:         216180 kB
MemFree:          100000 kB
MemAvailable:     150000 kB
Active(anon):       2000 kB
Inactive(anon):    20000 kB
Active(file):      10000 kB
Inactive(file):    40000 kB
Unevictable:         100 kB
SwapCached:           50 kB
SwapTotal:         65532 kB
SwapFree:          60000 kB
Dirty:                12 kB
Writeback:             3 kB
SUnreclaim:         7000 kB
KernelStack:        1000 kB
PageTables:          500 kB
SecPageTables:         0 kB
Percpu:              300 kB
Hugetlb:               0 kB
"""
VMSTAT = "pswpin 3\npswpout 9\npgmajfault 21\nworkingset_refault_anon 1\nworkingset_refault_file 4\n"
PRESSURE = (
    "some avg10=0.00 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=567\n"
)
SIZE = 256 << 20


def guest(text: str, size: float | None = SIZE, psi: str = PRESSURE) -> classes.Reading:
    return classes.of_guest(meminfo.parse(text), vmstat.parse(VMSTAT), pressure.parse(psi), size)


def test_of_a_guest() -> None:
    reading = guest(MEMINFO)
    assert reading.problems == ()
    assert reading.figures == {
        "total_bytes": 216180 * KIB,
        "free_bytes": 100000 * KIB,
        "available_bytes": 150000 * KIB,
        "inactive_buffer_bytes": 40000 * KIB,
        "active_buffer_bytes": 10000 * KIB,
        "inactive_anonymous_bytes": 20000 * KIB,
        "active_anonymous_bytes": 2000 * KIB,
        "unreclaimable_bytes": 8900 * KIB,
        "dirty_bytes": 15 * KIB,
        "swapped_bytes": (65532 - 60000 - 50) * KIB,
        "swap_free_bytes": 60000 * KIB,
        "stall_us": 1234,
        "full_stall_us": 567,
        "swap_in_bytes": 3 * 4096,
        "refault_bytes": 4 * 4096,
        "major_faults": 21,
    }
    Figures(**reading.figures)  # all of them are names that the model has


def test_what_is_not_said_is_unknown() -> None:
    reading = guest("MemTotal: 100 kB\nMemFree: 0 kB\n", None, "")
    assert reading.figures["free_bytes"] == 0
    assert "unreclaimable_bytes" not in reading.figures
    assert "stall_us" not in reading.figures
    assert any("PSI" in each for each in reading.problems)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no total"),
        ("MemTotal: 0 kB\n", "no total"),
        (MEMINFO.replace("216180", "9999999"), "in a guest of"),
        (MEMINFO.replace("100000", "300000"), "free 307200000 of"),
        (MEMINFO.replace("150000", "300000"), "available"),
        (MEMINFO.replace("40000", "200000"), "inactive_buffer"),
        (MEMINFO.replace("SUnreclaim:         7000", "SUnreclaim:  900000"), "unreclaimable"),
    ],
)
def test_lies_are_not_used(text: str, why: str) -> None:
    reading = guest(text)
    assert reading.figures == {}
    assert "not used" in reading.problems[0]
    assert why in reading.problems[0]


def test_of_a_balloon() -> None:
    said = Statistics(
        updated_s=1,
        free_bytes=10 << 20,
        total_bytes=200 << 20,
        available_bytes=50 << 20,
        disk_caches_bytes=45 << 20,
    )
    reading = classes.of_balloon(said, SIZE)
    assert reading.figures == {
        "total_bytes": 200 << 20,
        "free_bytes": 10 << 20,
        "available_bytes": 50 << 20,
        "buffer_bytes": 45 << 20,
    }
    assert "no anonymous memory" in reading.problems[0]
    lie = classes.of_balloon(Statistics(updated_s=1, free_bytes=300 << 20, total_bytes=200 << 20), SIZE)
    assert lie.figures == {}
    silent = classes.of_balloon(Statistics(updated_s=1, free_bytes=3), SIZE)
    assert silent.figures == {}


def test_of_a_cgroup() -> None:
    stat = Stat(inactive_file_bytes=10, active_anonymous_bytes=5, kernel_bytes=8, slab_reclaimable_bytes=3)
    reading = classes.of_cgroup(stat, 60, 100, Pressure(some_us=4))
    assert reading.figures == {
        "total_bytes": 100,
        "free_bytes": 40,
        "inactive_buffer_bytes": 10,
        "active_anonymous_bytes": 5,
        "unreclaimable_bytes": 5,
        "stall_us": 4,
    }
    assert reading.problems == ()
    unlimited = classes.of_cgroup(stat, 60, None, Pressure())
    assert "free_bytes" not in unlimited.figures
    assert len(unlimited.problems) == 1


@given(st.integers(1, 10_000), st.data())
def test_of_sampling(sampled: int, data: st.DataObject) -> None:
    accessed = data.draw(st.integers(0, sampled))
    figures = classes.of_sampling(accessed, sampled, 1e9, "made up").figures
    assert figures["active_anonymous_bytes"] + figures["inactive_anonymous_bytes"] == pytest.approx(1e9)
    share = accessed / sampled
    assert figures["error_bytes"] >= 1e9 * math.sqrt(share * (1 - share) / sampled) * 0.999
    assert figures["error_bytes"] > 0  # a sample never proves anything


def test_of_an_empty_sample() -> None:
    assert classes.of_sampling(0, 0, 1e9, "made up").figures == {}
