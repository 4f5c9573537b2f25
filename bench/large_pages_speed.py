"""Reads at random in a GiB of this machine's real memory: with small pages, a quarter of the blocks large, all large.

Four processes run the same reads (`peers/touches.c`), in turns: nine tenths go to a quarter of the blocks, which lie
scattered; each read waits for the one before. `all small` is advised nothing, `all large` advised MADV_HUGEPAGE before
its memory is written. Of the other two a quarter of the blocks is mapped large by our actuator: of `ours` those that
our decision takes, of `address order` the first ones, as khugepaged would. The counts are not taken here, since few
kernels that run benchmarks can: the decision is given the recorded pattern (hot blocks 512 pages, the others 51) in
place of them. Everything else is real: PAGEMAP_SCAN, process_madvise, the reads and the time. That the blocks are what
they are said to be is looked up in the page tables before they are timed. Needs root, and Linux 6.7.

`gain` is the share of what all large gains over all small. On a host without large pages to be had it cannot be asked.
"""

import os
import random
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np

from bench.harness import Answer, interleave, medians
from sustain.clock import SystemClock
from sustain.errors import HostError
from sustain.host.pagemap import Pagemap
from sustain.host.processes import Identity, identify
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages.act import Actuator
from sustain.schedulers.large_pages.decide import decide
from sustain.schedulers.large_pages.find import Wanted
from sustain.schedulers.large_pages.model import BLOCK_BYTES, Action, Collapse, HostView, Observation
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.sense import Sensor

QUESTION = "random reads with a quarter of the blocks mapped large"
_SHARE = 0.25
_HOT_PAGES, _COLD_PAGES = 512, 51
_POLICY = Policy(counting_s=0.0, least_counts=1, budget_share=_SHARE)


class Process:
    """One that reads."""

    def __init__(self, program: Path, size: int, hot: Path, pages: str) -> None:
        self._process = subprocess.Popen(
            [str(program), str(size), str(hot), pages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        pid, start = self._line().split()
        who = identify(int(pid))
        assert who is not None
        self.who: Identity = who
        self.start, self.blocks = int(start), size // BLOCK_BYTES

    def read(self, count: int) -> float:
        """Nanoseconds of one read."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return float(self._line()) / count * 1e9

    def large(self) -> int:
        """Blocks that are mapped large, by its page tables."""
        table = Pagemap(self.who.pid)
        try:
            return int(table.blocks(self.start, self.start + self.blocks * BLOCK_BYTES).huge.sum())
        finally:
            table.close()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise HostError("the reading program has ended", hint="is there enough memory for four of them?")
        return line


def by_counts(process: Process, hot: Sequence[int]) -> Sequence[Action]:
    """What our decision makes of the recorded pattern, for the blocks that the sensor sees."""
    sensor = Sensor([Wanted(name="reads", pid=process.who.pid)], None, SystemClock())
    try:
        seen = sensor.read()
    finally:
        sensor.close()
    blocks = seen.blocks
    first = np.uint64(process.start)
    inside = (blocks.address >= first) & (blocks.address < first + np.uint64(process.blocks * BLOCK_BYTES))
    rows = np.flatnonzero(inside)
    number = ((blocks.address[rows] - first) // np.uint64(BLOCK_BYTES)).astype(np.int64)
    told = msgspec.structs.replace(
        blocks.rows(rows),
        touched=np.where(np.isin(number, hot), _HOT_PAGES, _COLD_PAGES).astype(np.float32),
        error=np.zeros(len(rows), np.float32),
        age_s=np.zeros(len(rows), np.float32),
    )
    recorded = Observation(now_s=seen.now_s, blocks=told, targets=seen.targets, host=HostView())
    return decide(recorded, None, _POLICY, seen.now_s).plan.actions


def in_order(process: Process, count: int) -> Sequence[Action]:
    """The first blocks of its memory."""
    return [
        Collapse(
            target="reads",
            pid=process.who.pid,
            started=process.who.start_ticks,
            address=process.start + block * BLOCK_BYTES,
            purpose="pays",
            reason="the order of addresses",
        )
        for block in range(count)
    ]


def carry_out(actions: Sequence[Action], journal: Path) -> float:
    """Map them; the seconds that took. Raises HostError when one does not come off."""
    with Journal(journal) as kept:
        actuator = Actuator(kept, most_per_s=1e6, limit_s=60.0, keep=True)
        begun = time.perf_counter()
        failed = [effect for effect in actuator.carry_out(actions) if not effect.done]
        spent = time.perf_counter() - begun
        actuator.close()
    if failed:
        raise HostError(
            f"{len(failed)} of {len(actions)} blocks are not large: {failed[0].outcome}: {failed[0].detail}",
            hint="it needs root, Linux 6.7 and free large pages (sustain pages doctor)",
        )
    return spent


@contextmanager
def processes(blocks: int) -> Iterator[tuple[dict[str, Process], dict[str, float]]]:
    """The four, mapped as they are called; and the seconds that mapping took."""
    hot = sorted(random.Random(5).sample(range(blocks), int(_SHARE * blocks)))
    with tempfile.TemporaryDirectory(prefix="sustain-bench-") as folder, ExitStack() as ended:
        program, pattern = Path(folder, "touches"), Path(folder, "hot")
        source = Path(__file__).parent / "peers/touches.c"
        subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
        pattern.write_bytes(struct.pack(f"<{len(hot)}I", *hot))
        found: dict[str, Process] = {}
        for name in ("ours", "address order", "all small", "all large"):
            pages = "large" if name == "all large" else "small"
            found[name] = Process(program, blocks * BLOCK_BYTES, pattern, pages)
            ended.callback(found[name].close)
        spent = {
            "ours": carry_out(by_counts(found["ours"], hot), Path(folder, "ours.journal")),
            "address order": carry_out(
                in_order(found["address order"], len(hot)), Path(folder, "order.journal")
            ),
        }
        yield found, spent


def answer(quick: bool = False) -> Answer:
    """Nanoseconds of one read."""
    blocks, count, rounds = (64, 100_000, 2) if quick else (512, 4_000_000, 7)
    found = Answer(QUESTION, "ns a read", None, {}, {}, rounds, quick=quick)
    if os.geteuid() != 0:
        reason = "mapping another process's memory large needs root"
        found.missing = dict.fromkeys(("ours", "address order", "all small", "all large"), reason)
        return found
    with processes(blocks) as (each, spent):
        large = {name: process.large() for name, process in each.items()}

        def reads(name: str) -> Callable[[], float]:
            return lambda: each[name].read(count)

        figures = medians(interleave(rounds, {name: reads(name) for name in each}))
    small, best = figures["all small"], figures["all large"]
    found.ours = figures["ours"]
    found.peers = {name: figures[name] for name in ("address order", "all small")}
    found.limit = {"all large": best}
    found.details = {
        "by how it is mapped": {
            name: {
                "ns a read": figures[name],
                "blocks large": large[name],
                "gain": (small - figures[name]) / (small - best) if small > best else None,
                "ms to map a block": 1e3 * spent[name] / max(1, large[name]) if name in spent else None,
            }
            for name in figures
        }
    }
    found.notes = [
        f"{blocks} blocks of 2 MiB each; the pattern is recorded, not counted here",
        f"all large has {large['all large']} of them, {large['ours']} of ours are",
    ]
    wrong = abs(large["ours"] - int(_SHARE * blocks)) + large["all small"]
    found.ask(
        "as many large as are called for, and none of all small", float(wrong), lambda value: value == 0
    )
    found.ask("faster than all small", small / found.ours, lambda value: value > 1)
    found.ask(
        "faster than a quarter in the order of addresses",
        figures["address order"] / found.ours,
        lambda value: value > 1,
    )
    gain = (small - found.ours) / (small - best) if small > best else None
    found.ask("at least three quarters of what all large gains", gain, lambda value: value >= 0.75)
    return found
