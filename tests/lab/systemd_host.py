"""A host with systemd that runs the agent's own unit over three guests, and what is done to it there.

`python -m tests.lab.systemd_host TOP` runs in the lab's guest, as a unit; it leaves what it saw in /run/lab/seen.json,
for test_systemd. The unit is as it is packaged, with the path of this checkout's `sustain`, and a shorter watchdog.

Two guests are processes of another user with the memory and the sockets of one (sustain.testing); what their balloons
take leaves them. The third is a cgroup, a unit with a process in it.
"""

import contextlib
import json
import mmap
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sustain.agent.http import get
from sustain.errors import AgentError
from sustain.host import balloon
from sustain.host.qmp import Qmp
from sustain.testing.guest import FakeAgent, FakeQemu
from tests.host.resting import files_at_rest

RUN = Path("/run/guests")
SIZE_BYTES = 128 << 20
NOBODY = 65534
LIMIT_S = 240.0
UNIT = "sustain-agent.service"

CONFIG = f"""
[agent]
hung_after = "1s"  # and ten periods

[guest_memory]
period = "1s"

[guest_memory.urgency]
period = "1s"

[[guest_memory.guests]]
name = "vm"
qmp = "{RUN}/vm/qmp"
guest_agent = "{RUN}/vm/agent"

[[guest_memory.guests]]
name = "cold"
qmp = "{RUN}/cold/qmp"
guest_agent = "{RUN}/cold/agent"

[[guest_memory.guests]]
name = "box"
kind = "cgroup"
cgroup = "/sys/fs/cgroup/system.slice/box.service"

[guest_memory.policy]
goal_free = "4GiB"  # more than this host has
least_change = "4MiB"
bounds = {{ clear = "4GiB", soft = "4GiB", hard = "3GiB", low = "1MiB" }}

[guest_memory.policy.guests.cold]
mechanisms = ["pageout"]

[guest_memory.policy.guests.box]
reservation = "1GiB"  # nothing is taken from it
"""

BOX = """
[Service]
ExecStart={python} -c 'import time; memory = bytearray(range(256)) * (64 << 12); \
exec("while True: memory[::4096] = bytes(len(memory) // 4096); time.sleep(0.2)")'
"""


def told(free: int, inactive: int) -> dict[str, str]:
    """What the agent of a guest with so many MiB free and of inactive anonymous memory is asked for."""
    total = SIZE_BYTES >> 20
    sizes = {"MemTotal": total, "MemFree": free, "MemAvailable": free, "Inactive(anon)": inactive}
    sizes |= {"Active(anon)": total - free - inactive - 8, "SUnreclaim": 8, "SwapTotal": 0, "SwapFree": 0}
    others = (
        "Active(file)",
        "Inactive(file)",
        "Unevictable",
        "Dirty",
        "Writeback",
        "KernelStack",
        "PageTables",
    )
    sizes |= dict.fromkeys((*others, "Percpu", "Shmem"), 0)
    return files_at_rest({name: size << 10 for name, size in sizes.items()})


class Qemu(FakeQemu):
    """One whose balloon gives its pages back, and whose guest takes at once what it is left."""

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self._memory = memory
        super().__init__(path, SIZE_BYTES)

    def _return(self, command: str, arguments: dict[str, Any]) -> Any:
        found = super()._return(command, arguments)
        if command == "balloon":
            end = self.target_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            touch(self._memory, end)
            if end < self.size_bytes:
                self._memory.madvise(mmap.MADV_DONTNEED, end, self.size_bytes - end)
        return found


def touch(memory: mmap.mmap, end: int) -> None:
    """Every page up to there."""
    for at in range(0, end, mmap.PAGESIZE):
        memory[at] = 1


def guest(name: str, free: int, inactive: int) -> None:
    """Its process, until it is killed: another user's, in a folder that is closed to others."""
    memory = mmap.mmap(-1, SIZE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTFORK)
    touch(memory, SIZE_BYTES)
    folder = RUN / name
    folder.mkdir(mode=0o700, parents=True)
    os.chown(folder, NOBODY, NOBODY)
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.umask(0o077)
    with FakeAgent(folder / "agent", told(free, inactive)), Qemu(folder / "qmp", memory) as qemu:
        qemu.statistics = {"stat-free-memory": free << 20, "stat-total-memory": SIZE_BYTES}
        while True:
            qemu.updated_s = int(time.time())
            time.sleep(1)


def until(what: str, look: Callable[[], Any]) -> Any:
    """What `look` finds, when it finds something. SystemExit when it does not in time."""
    begun_s = time.monotonic()
    end = begun_s + LIMIT_S
    while time.monotonic() < end:
        with contextlib.suppress(AgentError):
            if found := look():
                print(
                    f"{time.monotonic():4.0f} s: {what}, after {time.monotonic() - begun_s:.0f} s", flush=True
                )
                return found
        time.sleep(0.1)
    log = Path("/run/agent.log")
    print(ctl("status", UNIT, "--no-pager"), log.read_text() if log.exists() else "no log", sep="\n")
    raise SystemExit(f"not within {LIMIT_S:g} s: {what}")


def ctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def shown(name: str) -> str:
    """A property of the unit."""
    return ctl("show", UNIT, "-p", name, "--value").strip()


def page(path: str) -> Any:
    return json.loads(get(("127.0.0.1", 9750), path).body)


def status() -> dict[str, Any]:
    found: dict[str, Any] = page("/status")["schedulers"][0]
    return found


def balloon_bytes() -> int:
    with Qmp(str(RUN / "vm/qmp")) as qmp:
        return balloon.actual(qmp) or 0


def swapped_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmSwap:"))


def prepare(top: Path) -> dict[str, int]:
    """Swap, the guests, the units; the pids of the guests by name."""
    for command in (
        "modprobe zram",
        "echo 512M > /sys/block/zram0/disksize",
        "mkswap /dev/zram0",
        "swapon /dev/zram0",
    ):
        subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)
    pids = {}
    for name, free, inactive in (("vm", 64, 16), ("cold", 4, 100)):
        process = multiprocessing.get_context("fork").Process(target=guest, args=(name, free, inactive))
        process.start()
        assert process.pid is not None
        pids[name] = process.pid
    for name in pids:
        until(f"guest {name}", (RUN / name / "qmp").exists)
    Path("/etc/sustain").mkdir(exist_ok=True)
    Path("/etc/sustain/agent.toml").write_text(CONFIG)
    units = Path("/run/units")
    text = (top / "packaging/systemd" / UNIT).read_text()
    sustain = Path(sys.executable).parent / "sustain"
    (units / UNIT).write_text(text.replace("/usr/bin/sustain", str(sustain)))
    (units / f"{UNIT}.d").mkdir()
    (units / f"{UNIT}.d/lab.conf").write_text(
        "[Service]\nWatchdogSec=10\nRestartSec=1\nStandardOutput=append:/run/agent.log\nStandardError=append:/run/agent.log\n"
    )
    (units / "box.service").write_text(BOX.format(python=sys.executable))
    ctl("daemon-reload")
    return pids


def watch(seen: dict[str, Any], cold: int) -> None:
    """It starts, works, and feeds the watchdog."""
    seen["start"] = ctl("start", "box.service", UNIT)  # returns when the unit has said READY
    seen["active"] = shown("ActiveState"), shown("SubState")
    seen["capabilities"] = next(
        line.split()[1]
        for line in Path(f"/proc/{shown('MainPID')}/status").read_text().splitlines()
        if line.startswith("CapEff:")
    )
    until("the balloon of vm is moved", lambda: balloon_bytes() < SIZE_BYTES)
    seen["paged out"] = until("pages of cold are in swap", lambda: swapped_bytes(cold))
    seen["guests"] = page("/schedulers/guest-memory")["observation"]["guests"]
    fed = {shown("WatchdogTimestampMonotonic")}
    until("the watchdog is fed", lambda: fed.add(shown("WatchdogTimestampMonotonic")) or len(fed) >= 3)


def press(seen: dict[str, Any]) -> None:
    """The container lacks memory: the kernel rings."""
    seen["watched"] = until("alarms", lambda: status()["watched"])
    seen["unwatched"] = status()["unwatched"]
    high = Path("/sys/fs/cgroup/system.slice/box.service/memory.high")
    high.write_text(str(24 << 20))
    seen["rung"] = until("an alarm rings", lambda: status()["rung"])
    high.write_text("max")


def answer(fifo: Path, content: str) -> None:
    """From now on it is a file with that content."""
    while True:
        with fifo.open("w") as file:  # waits for a reader
            file.write(content)
        with contextlib.suppress(OSError):  # ENXIO: nobody reads it any more
            while True:
                os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
                time.sleep(0.01)


def hang(seen: dict[str, Any]) -> None:
    """A file of the host's kernel does not answer: the loop hangs, and nothing else of the process."""
    pid = shown("MainPID")
    fifo = Path("/run/fifo")
    os.mkfifo(fifo)
    seen["restarts before"] = shown("NRestarts")
    subprocess.run(["mount", "--bind", str(fifo), "/proc/swaps"], check=True)
    # Its socket still answers: so it is this that ends it, and not an emulation too slow to feed the watchdog.
    seen["troubles"] = until("the loop hangs", lambda: page("/status")["troubles"])
    results: set[str] = set()

    def anew() -> bool:
        results.add(shown("Result"))
        return shown("NRestarts") != "0" and shown("MainPID") not in (pid, "0")

    until("systemd starts it anew", anew)
    # The new one waits at the same place, before its first plan: what is back now, the end of the old one has put back.
    seen["ended by"] = sorted(results)
    seen["restarts"] = shown("NRestarts")
    seen["balloon after the kill"] = balloon_bytes()
    threading.Thread(target=answer, args=(fifo, "Filename Type Size Used Priority\n"), daemon=True).start()
    until("it works again", lambda: balloon_bytes() < SIZE_BYTES)


def stop(seen: dict[str, Any]) -> None:
    seen["stop"] = ctl("stop", UNIT)
    seen["stopped"] = shown("ActiveState"), shown("Result")
    seen["balloon after the stop"] = balloon_bytes()
    seen["journal"] = len(Path("/run/sustain/guest-memory.journal").read_text().splitlines())
    seen["log"] = Path("/run/agent.log").read_text()


def main(top: Path) -> None:
    seen: dict[str, Any] = {}
    pids = prepare(top)
    try:
        watch(seen, pids["cold"])
        press(seen)
        hang(seen)
        stop(seen)
    finally:
        Path("/run/lab/seen.json").write_text(json.dumps(seen))
        for pid in pids.values():
            os.kill(pid, 9)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
