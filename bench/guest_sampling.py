"""What one look at a guest costs, by each source of its page classes: milliseconds of processor time.

A process holds memory as QEMU does (1 GiB, three quarters of it written, small pages) and is looked at by the real
senses: by its guest agent and by its balloon (sockets of `sustain.testing`; what the guest spends is not in it), and by
the host alone. Beside it what every kernel has, and what sees no guest under KVM: clear_refs, then Referenced of smaps.
Equal: the same process at rest, the same thread; all kernel time spent for the caller counts.

The host alone: page_idle and DAMON, where this kernel has them. Where it has not DAMON for processes, it is measured
on a distribution's kernel in emulation (the lab), beside the same clear_refs there, and called so: only ratios can be
used.
DAMON's cost is that of a window of 10 s: its thread, one reading, and what drawing the pages anew every 300 s comes to.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from bench.guest_census import holding
from bench.harness import Answer, interleave, medians

QUESTION = "processor time of one look at a guest of 1 GiB, by each source"
_DRAWN_S, _WINDOW_S = 300.0, 10.0
_MEMINFO_MIB = {
    "MemTotal": 1000,
    "MemFree": 50,
    "MemAvailable": 500,
    "SUnreclaim": 20,
    "Active(anon)": 300,
    "Inactive(anon)": 100,
    "Active(file)": 300,
    "Inactive(file)": 200,
}


def answer(quick: bool = False) -> Answer:
    """Milliseconds of processor time."""
    size, rounds = (64 << 20, 3) if quick else (1 << 30, 15)
    with holding(size, 1) as (pid, start), ExitStack() as stack:
        looks = _looks(stack, pid, size)
        looks["clear_refs and smaps"] = lambda: _by_smaps(pid)
        found = medians(interleave(rounds, looks))
        sampled, where = by_host(pid, start, size, rounds), "here"
    result = Answer(
        question=QUESTION,
        unit="ms",
        ours=found["guest agent"],
        peers={"clear_refs and smaps": found["clear_refs and smaps"]},
        limit={},
        runs=rounds,
        quick=quick,
    )
    result.details["a whole look, by source, ms"] = {
        name: value for name, value in found.items() if name != "clear_refs and smaps"
    }
    result.details["the host alone, ms"] = {where: sampled}
    if "DAMON" not in sampled and not quick:
        result.details["the host alone, ms"]["in emulation, Linux 6.12"] = in_lab()
    result.ask(
        "less than clear_refs and smaps, which see less",
        found["guest agent"] / found["clear_refs and smaps"],
        lambda ratio: ratio < 1,
    )
    return result


def by_host(pid: int, start: int, size: int, rounds: int) -> dict[str, Any]:
    """What this kernel can, and clear_refs beside it."""
    from sustain.host import damon, page_idle
    from sustain.host.maps import Area

    areas = (Area(start, start + size, "anonymous", ""),)
    found: dict[str, Any] = {
        "clear_refs and smaps": sorted(_by_smaps(pid) for _ in range(rounds))[rounds // 2]
    }
    if page_idle.available():
        found["page_idle"] = sorted(_spent(lambda: _by_page_idle(pid, areas)) for _ in range(rounds))[
            rounds // 2
        ]
    if damon.present() and os.geteuid() == 0:
        found |= _by_damon(pid, areas)
    return found


def in_lab() -> dict[str, Any]:
    """The same on the lab's kernel; why not, where there is none."""
    from tests.lab import vm
    from tests.lab.errors import LabError

    script = 'cd "$TOP" && exec "$PYTHON" -m bench.guest_sampling 256 > /run/lab/found\n'
    with tempfile.TemporaryDirectory() as place:
        try:
            share = Path(place)
            result = vm.Guest(vm.kernel("6.12", share), share, script, memory_mib=1024).run(240)
            if result.status != 0:
                return {"missing": result.output[-300:]}
            found: dict[str, Any] = json.loads((share / "found").read_text())
            return found
        except LabError as error:
            return {"missing": str(error)}


def _looks(stack: ExitStack, pid: int, size: int) -> dict[str, Callable[[], float]]:
    """Whole looks, by the senses as they are."""
    from tests.host.resting import files_at_rest

    from sustain.clock import SystemClock
    from sustain.schedulers.changes import Unnoted
    from sustain.schedulers.guest_memory.config import GuestConfig
    from sustain.schedulers.guest_memory.handles import QemuHandle
    from sustain.schedulers.guest_memory.look import Looker
    from sustain.schedulers.guest_memory.sampling import Sampler
    from sustain.testing.guest import FakeAgent, FakeQemu

    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sustain-bench-")))
    clock = SystemClock()
    files = files_at_rest({name: mib << 10 for name, mib in _MEMINFO_MIB.items()})
    looks: dict[str, Callable[[], float]] = {}
    for name, config in (
        ("guest agent", {"qmp": "a.qmp", "guest_agent": "a.qga"}),
        ("balloon", {"qmp": "b.qmp"}),
        ("the host's view", {}),
    ):
        paths = {key: str(place / file) for key, file in config.items()}
        if "qmp" in paths:
            qemu = stack.enter_context(FakeQemu(paths["qmp"], size))
            qemu.statistics = {"stat-total-memory": size, "stat-free-memory": size // 4}
            qemu.updated_s = int(time.time()) + 3600
        if "guest_agent" in paths:
            stack.enter_context(FakeAgent(paths["guest_agent"], files))
        ways = GuestConfig(name=name, pid=pid, qmp=paths.get("qmp"), guest_agent=paths.get("guest_agent"))
        handle = QemuHandle(ways, Path("/"), 5.0, 5)
        looker = Looker(clock, 0.0 if name == "balloon" else 30.0, Path("/"), Sampler(Unnoted(), clock))
        looks[name] = _look(looker, handle)
    return looks


def _look(looker: Any, handle: Any) -> Callable[[], float]:
    return lambda: _spent(lambda: looker.machine(handle, True, lambda _: None))


def _by_smaps(pid: int) -> float:
    def work() -> None:
        Path(f"/proc/{pid}/clear_refs").write_text("1")
        text = Path(f"/proc/{pid}/smaps").read_text()
        sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Referenced:"))

    return _spent(work)


def _by_page_idle(pid: int, areas: Any) -> None:
    from sustain.host import page_idle

    with closing(page_idle.Held()):
        page_idle.look(pid, page_idle.mark(pid, areas, 1000, 1))


def _by_damon(pid: int, areas: Any) -> dict[str, Any]:
    from sustain.errors import HostError
    from sustain.host.damon import Attributes, Damon
    from sustain.host.pagemap import Pagemap
    from sustain.schedulers.guest_memory.sampling import PAGES, draw

    try:
        ours = Damon(lambda _: None)
    except HostError:
        return {}
    attributes = Attributes(1_000_000, 10_000_000)
    found: list[Any] = []
    try:
        drawing = _spent(lambda: found.append(draw(pid, areas, PAGES)))
        regions = [(page, page + 4096) for page in found[0]]
        setting = _spent(lambda: found.append(ours.watch(pid, regions, attributes)))
        watch, table = found[1], Pagemap(pid)
        kdamond = int((watch._directory / "pid").read_text())
        watch.totals()
        before, begun_s = _ran_ms(kdamond), time.monotonic()
        readings = []
        while time.monotonic() - begun_s < 1.5 * _WINDOW_S:
            readings.append(_spent(watch.totals) + _spent(lambda: table.present(found[0])))
        thread = (_ran_ms(kdamond) - before) / (time.monotonic() - begun_s) * _WINDOW_S
        reading = sorted(readings)[len(readings) // 2]
    finally:
        ours.close()
    parts = {"draw pages": drawing, "set up": setting, "a reading": reading, "the kernel's thread": thread}
    return {"DAMON": (drawing + setting) / (_DRAWN_S / _WINDOW_S) + reading + thread, "of DAMON": parts}


def _ran_ms(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def _spent(work: Callable[[], object]) -> float:
    """Milliseconds of processor time of this thread."""
    begun_ns = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - begun_ns) / 1e6


if __name__ == "__main__":
    mib = int(sys.argv[1])
    with holding(mib << 20, 1) as (holder, where):
        print(json.dumps({"MiB": mib, **by_host(holder, where, mib << 20, 5)}))
