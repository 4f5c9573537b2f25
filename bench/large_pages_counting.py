"""What counting costs: processor time as a share of one core, for each GiB that is counted, at the default period.

Each way of counting that there is, by the scheduler's own sensing (counting_costs.py says what is counted, and what of
it is charged). A kernel that benchmarks run on can rarely count: then it is done by real kernels in software emulation
(tests/lab): Debian's for DAMON, one that scripts/build-page-idle-kernel.sh has built for exact counts. Such a machine's
clock goes on by a nanosecond with each instruction (QEMU's `-icount`), so what it says of processor time is a count of
instructions, which is the same on every machine. How many of them this machine's processor does in a nanosecond is
measured for several kinds of work, by the same programs here and there. So these are told apart:
- counted: at one instruction a nanosecond;
- estimated: what that is on this machine's processor. What runs in the kernel, by the pace of reading pagemap, since
  the kernel's part of counting walks page tables, too; what runs in user mode, by that of Python's loop or of NumPy's
  arithmetic, whichever is less;
- at most: all of it by the least pace of any kind of work of the kernel, of Python or of NumPy. Left out is what no
  part of counting consists of: single accesses to pages that no cache has, and arithmetic each step of which waits.
A machine that is shared is at times half as fast as at others. So its pace is measured again and again, before and
after each emulated run: an estimate takes the medians, "at most" the slowest of all.
Where this kernel itself can count nothing is estimated, and that figure is judged.

Of exact counting any kernel can do all but the bitmap: that is measured here, with a file in the bitmap's place, and
stands beside the estimate. Counts are made each period here, whatever that costs; the agent has longer
periods where it would be more than 1 %, which is told beside it. There is no peer that counts so.
"""

import contextlib
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.lab import vm
from tests.lab.errors import LabError
from tests.schedulers.large_pages.touching import touching

from bench.counting_costs import USED_PAGES, WAYS, Parts, Way, costs, speeds
from bench.harness import Answer
from sustain.errors import HostError
from sustain.host.damon import Damon
from sustain.host.pagemap import BLOCK_BYTES
from sustain.schedulers.large_pages.counting import LONGEST, PERIODS_S, SHARE, impossible
from sustain.schedulers.large_pages.counting_page_idle import PageIdleCounter
from sustain.testing import FakeClock

QUESTION = "what does counting used pages cost, for each GiB at the default period?"
_REACH = 1.0  # % of a core
_KERNELS: dict[Way, str] = {"page-idle": vm.PAGE_IDLE, "damon": "6.12"}
_SOURCE = Path(__file__).parent / "peers/speeds.c"
_SCRIPT = """
set -e
cd "$TOP"
echo never > /sys/kernel/mm/transparent_hugepage/enabled
cp /run/lab/speeds /dev/shm/speeds
TMPDIR=/dev/shm "$PYTHON" -m bench.counting_costs $WORDS > /run/lab/found
"""
_BOOT_S = 280.0  # at most, with what is not counting: how fast that machine is
_NOT_ALIKE = ("arithmetic", "access")  # work of no part of counting


def answer(quick: bool = False) -> Answer:
    """Percent of a core, for each GiB; `ours` is the dearest way, or where none could be measured what there is of
    exact counting."""
    mib, periods = (64, 1) if quick else (512, 5)
    lasts_s = {way: 2.0 if quick else PERIODS_S[way] for way in WAYS}
    result = Answer(
        question=QUESTION, unit="% of a core", ours=None, peers={}, limit={}, runs=periods, quick=quick
    )
    judged: dict[Way, float] = {}
    with _compiled() as program:
        rounds = 1 if quick else 5
        here = _speeds(program, rounds)
        emulated: dict[str, dict[str, float]] = {}
        found: dict[Way, tuple[str, dict[str, Any]]] = {}
        for series, ways in _places(quick):
            try:
                costs_of, there = _measured(series, ways, program, mib, periods, lasts_s[ways[0]])
            except (LabError, HostError) as error:
                result.missing |= dict.fromkeys(ways, str(error))
                continue
            found |= {way: (series, costs_of[way]) for way in ways}
            if there is not None:
                emulated[series] = there
                here += _speeds(program, rounds)
    for way, (series, cost) in found.items():
        table = _shares(cost, mib)
        judged[way] = table["all"]
        if series:
            table |= _estimates(cost, _paces(emulated[series], here), mib)
            judged[way] = table["estimated"]
        where = f"Linux {series}, instructions" if series else "here"
        result.details[f"{way}, {where}: % of a core for each GiB"] = table
        result.details[f"{way}: used pages of a block, as counted"] = cost["pages"]
    spent = without_bitmap(mib, periods)
    parts = {part: _percent(spent_s, lasts_s["page-idle"], mib) for part, spent_s in spent.items()}
    result.details["page-idle but for the bitmap, here: % of a core for each GiB"] = {
        **parts,
        "all": sum(parts.values()),
    }
    for series, there in emulated.items():
        result.details[f"instructions in a nanosecond, of Linux {series} here"] = {
            name: {"median": pace.median, "least": pace.least} for name, pace in _paces(there, here).items()
        }
    result.ours = max(judged.values(), default=sum(parts.values()))
    for way in WAYS:
        _ask(result, way, judged.get(way))
    result.notes += [
        f"{mib} MiB in small pages, {USED_PAGES} of 512 in use, {periods} periods of "
        + ", ".join(f"{lasts_s[way]:g} s ({way})" for way in WAYS),
        "instructions that were counted are no processor's time, and what is estimated of them was not measured",
    ]
    return result


def _ask(result: Answer, way: Way, percent: float | None) -> None:
    """What is asked of each way, of which the agent has longer periods where they would cost more."""
    result.ask(f"{way}, each period: at most 1 % of a core", percent, lambda value: value <= _REACH)
    if percent is not None:
        periods = min(max(1, math.ceil(percent / (100 * SHARE))), LONGEST)
        result.details[f"{way}: a count each, at the agent's share"] = f"{periods * PERIODS_S[way]:g} s"


def _places(quick: bool) -> list[tuple[str, tuple[Way, ...]]]:
    """Where which ways are measured: kernels of the lab, or here (""). The one that is built has both, which is for a
    smoke run, since a boot takes long."""
    here = tuple(way for way in WAYS if _possible(way))
    there = tuple(way for way in WAYS if way not in here)
    found: list[tuple[str, tuple[Way, ...]]] = (
        [("", here)] if quick and here else [("", (way,)) for way in here]
    )
    if quick and there and (vm.LAB / vm.PAGE_IDLE / "release").exists():
        return [*found, (vm.PAGE_IDLE, there)]
    return found + [(_KERNELS[way], (way,)) for way in there]


def _possible(way: Way) -> bool:
    """Whether this kernel can count that way; whether its DAMON can watch processes shows when it is taken."""
    if impossible(way) is not None:
        return False
    if way == "damon":
        try:
            Damon(lambda _: None).close()
        except HostError:
            return False
    return True


def _measured(
    series: str, ways: Sequence[Way], program: Path, mib: int, periods: int, period_s: float
) -> tuple[dict[str, Any], dict[str, float] | None]:
    """Costs by way; and the speeds of the machine where they were measured, None: here. Raises LabError."""
    if not series:
        return {way: costs(way, mib, periods, period_s) for way in ways}, None
    words = f"{mib} {periods} {period_s:g} /dev/shm/speeds {' '.join(ways)}"
    with tempfile.TemporaryDirectory(prefix="sustain-bench-") as place:
        share = Path(place)
        shutil.copy(program, share / "speeds")
        kernel = vm.kernel(series, share)
        guest = vm.Guest(
            kernel, share, _SCRIPT, memory_mib=mib + 768, environment={"WORDS": words}, counted=True
        )
        # A period before the first count, and one for what is late.
        result = guest.run(_BOOT_S + (periods + 2) * period_s * len(ways))
        if result.status != 0:
            raise LabError(result.output[-500:])
        found = json.loads((share / "found").read_text())
    return found["costs"], found["speeds"]


def _shares(found: dict[str, Any], mib: int) -> dict[str, float]:
    """Of a core, for each GiB, in percent."""
    parts = {**found["parts"], "kdamond": found["kdamond"], "all": found["process"] + found["kdamond"]}
    return {part: _percent(spent_s, found["wall"], mib) for part, spent_s in parts.items() if spent_s}


def _speeds(program: Path, rounds: int) -> list[dict[str, float]]:
    return [speeds(program) for _ in range(rounds)]


@dataclass(frozen=True)
class _Pace:
    """Instructions in a nanosecond, of the rounds."""

    median: float
    least: float


def _paces(there: dict[str, float], here: Sequence[dict[str, float]]) -> dict[str, _Pace]:
    """By kind of work. `there`: of an emulated machine, each instruction of which takes a nanosecond."""
    found = {}
    for name, instructions in there.items():
        paces = [instructions / each[name] for each in here]
        found[name] = _Pace(median(paces), min(paces))
    return found


def _estimates(found: dict[str, Any], paces: dict[str, _Pace], mib: int) -> dict[str, float]:
    kernel_s = found["process, in the kernel"] + found["kdamond"]
    user_s = found["process"] - found["process, in the kernel"]
    user = min(paces["Python"].median, paces["NumPy, arithmetic"].median)
    least = min(pace.least for name, pace in paces.items() if name not in _NOT_ALIKE)
    return {
        "estimated": _percent(kernel_s / paces["pagemap"].median + user_s / user, found["wall"], mib),
        "at most": _percent((kernel_s + user_s) / least, found["wall"], mib),
    }


def _percent(spent_s: float, wall_s: float, mib: int) -> float:
    return 100 * spent_s / wall_s / (mib / 1024)


@contextlib.contextmanager
def _compiled() -> Iterator[Path]:
    """The program that tells how fast a machine is."""
    if shutil.which("gcc") is None:
        raise HostError("no gcc", hint="apt-get install gcc")
    with tempfile.TemporaryDirectory(prefix="sustain-bench-") as place:
        program = Path(place) / "speeds"
        subprocess.run(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-o", program, _SOURCE], check=True)
        yield program


def without_bitmap(mib: int, rounds: int) -> dict[str, float]:
    """What a period of exact counting costs here, seconds of processor time by part, with a file in place of the
    bitmap: half of all marks are there at each look. The first period, in which all pages are new, is left out."""
    parts = Parts()
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sustain-bench-", dir="/dev/shm")))
        (root / "proc").symlink_to("/proc")
        bitmap = root / "sys/kernel/mm/page_idle/bitmap"
        bitmap.parent.mkdir(parents=True)
        bitmap.touch()
        toucher = stack.enter_context(touching([USED_PAGES] * ((mib << 20) // BLOCK_BYTES)))
        clock = FakeClock()
        counter = PageIdleCounter(PERIODS_S["page-idle"], clock, root)
        stack.callback(counter.close)
        stack.enter_context(parts.watching())
        for number in range(rounds + 1):
            counter.start([toucher.memory()])
            if counter.problems():
                raise HostError(str(counter.problems()))
            bitmap.write_bytes(b"\x55" * bitmap.stat().st_size)
            clock.advance(PERIODS_S["page-idle"])
            counter.read()
            if not number:
                parts.spent_s.clear()
    return {part: spent_s / rounds for part, spent_s in parts.spent_s.items()}
