"""What the agent costs a host while nothing has to be done: processor time, and resident memory.

The real `sustain agent` as a process, at its default period, over processes that have the memory of a guest, a part of
it touched, and serve its QMP and guest-agent sockets (sustain.testing): every tick asks each of them for everything and
looks at its page tables. There is no peer with a like task. Processor time is the agent's own (utime + stime).
"""

import mmap
import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from tests.host.resting import files_at_rest

from bench.harness import Answer, memory_dir
from sustain.agent.http import get
from sustain.errors import AgentError
from sustain.testing.guest import FakeAgent, FakeQemu

QUESTION = "what does an idle agent cost, with 20 guests asked every 10 s?"
_GUESTS = 20
_PERIOD_S = 10.0
_SIZE_BYTES, _TOUCHED_BYTES = 2 << 30, 32 << 20
_FILES = files_at_rest(
    {
        "MemTotal": 2000000,
        "MemFree": 900000,
        "MemAvailable": 1500000,
        "Active(anon)": 300000,
        "Inactive(anon)": 100000,
        "Active(file)": 300000,
        "Inactive(file)": 200000,
        "Unevictable": 0,
        "Dirty": 100,
        "Writeback": 0,
        "SUnreclaim": 40000,
        "KernelStack": 3000,
        "PageTables": 5000,
        "Percpu": 2000,
        "SwapTotal": 0,
        "SwapFree": 0,
        "Shmem": 1000,
    }
)

_STATISTICS = {
    "stat-total-memory": 2000000 << 10,
    "stat-free-memory": 900000 << 10,
    "stat-available-memory": 1500000 << 10,
    "stat-disk-caches": 500000 << 10,
    "stat-swap-in": 0,
    "stat-swap-out": 0,
    "stat-major-faults": 10,
    "stat-minor-faults": 1000,
}


def _guest(qmp: Path, agent: Path) -> None:
    """A process with a guest's memory and sockets, until it is killed."""
    memory = mmap.mmap(-1, _SIZE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTFORK)  # as QEMU marks it, by which it is found
    for at in range(0, _TOUCHED_BYTES, mmap.PAGESIZE):
        memory[at] = 1
    with FakeQemu(qmp, _SIZE_BYTES) as qemu, FakeAgent(agent, _FILES):
        qemu.statistics = _STATISTICS
        while True:  # its balloon's driver sends them at each period
            qemu.updated_s = int(time.time())
            time.sleep(qemu.period_s or 1)


class _Agent:
    """The process, and what the kernel says of it."""

    def __init__(self, config: Path, socket: Path) -> None:
        self._socket = str(socket)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sustain.cli", "agent", "--config", str(config)],
            stderr=subprocess.PIPE,
            text=True,
        )

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(get(self._socket, "/status").body)["schedulers"][0]
        return found

    def until(self, ticks: int) -> dict[str, Any]:
        """Its status when it has made so many. Rarely asked: asking costs it something, too."""
        deadline = time.monotonic() + 60 + ticks * _PERIOD_S * 2
        while True:
            try:
                found = self.status()
                if found["ticks"] >= ticks:
                    return found
                time.sleep((ticks - found["ticks"] - 1) * _PERIOD_S + 1)
            except AgentError:
                if self._process.poll() is not None:
                    assert self._process.stderr is not None
                    raise RuntimeError(f"the agent ended: {self._process.stderr.read()}") from None
                time.sleep(0.2)
            if time.monotonic() > deadline:
                raise RuntimeError(f"the agent has not made {ticks} ticks")

    def answered(self) -> int:
        """Guests whose agent's answer was in the last observation."""
        found = msgspec.json.decode(get(self._socket, "/schedulers/guest-memory").body)["observation"]
        return sum(guest["source"] == "guest-agent" for guest in found["guests"])

    def processor_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmHWM:"))

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=90)


def answer(quick: bool = False) -> Answer:
    """Share of one core, over whole periods."""
    ticks = 1 if quick else 12
    with memory_dir() as directory, ExitStack() as stack:
        lines = [f'[agent]\nlisten = "unix:{directory}/agent"\nstate_dir = "{directory}"\n']
        lines += [f'[guest_memory]\nperiod = "{_PERIOD_S:g}s"\n']
        for number in range(_GUESTS):
            qmp, agent = directory / f"{number}.qmp", directory / f"{number}.qga"
            guest = multiprocessing.get_context("fork").Process(target=_guest, args=(qmp, agent), daemon=True)
            guest.start()
            stack.callback(guest.kill)
            lines.append(
                f'[[guest_memory.guests]]\nname = "vm{number}"\nqmp = "{qmp}"\nguest_agent = "{agent}"\n'
            )
        config = directory / "agent.toml"
        config.write_text("\n".join(lines))
        process = _Agent(config, directory / "agent")
        stack.callback(process.close)
        first = process.until(2)
        begun_s, spent_s = time.monotonic(), process.processor_s()
        last = process.until(first["ticks"] + ticks)
        share = (process.processor_s() - spent_s) / (time.monotonic() - begun_s)
        made = last["ticks"] - first["ticks"]
        resident = process.resident_bytes()
        answered = process.answered()
    if last["failed"] or answered != _GUESTS:
        raise RuntimeError(f"{answered} guests answered, {last['failed']} ticks failed: {last['problem']}")
    result = Answer(
        question=QUESTION, unit="of a core", ours=share, peers={}, limit={}, runs=made, quick=quick
    )
    result.ask("processor: at most 1 % of a core", share, lambda value: value <= 0.01)
    result.ask("memory: at most 80 MB", resident / 1e6, lambda value: value <= 80)
    result.details["a tick"] = {
        "processor ms": share * _PERIOD_S * 1e3,
        "processor ms a guest": share * _PERIOD_S * 1e3 / _GUESTS,
        "sense ms": last["last"]["sense_s"] * 1e3,
        "decide ms": last["last"]["decide_s"] * 1e3,
    }
    result.notes.append(
        f"{_GUESTS} guests, {made} ticks; guests answer at once, so waiting for slow ones is not in it"
    )
    return result
