"""A host of guests for agents that are killed: stand-ins for QEMU with memory of their own, a container, and a trigger
that kills whoever acts on them at a chosen call.

Used by test_kill_agent. The guests live in the process of the test, so each outlives every agent. What is asked of one
is carried out also after who asked has been killed, as QEMU does.
"""

import mmap
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from sustain.host.cgroup import Cgroup
from sustain.testing.guest import FakeAgent, FakeQemu
from tests.crash.processes import LIMIT_S, TOP
from tests.host.resting import files_at_rest

MIB = 1 << 20
PAGE = 4096
CHANGES = ("balloon", "qom-set")


class Trigger:
    """Kills one process at the `count`-th call of `among` (any, where empty), `late`: once it is carried out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._victim: subprocess.Popen[Any] | None = None
        self._left = 0
        self._among: tuple[str, ...] = ()
        self._late = False
        self.fired = False

    def aim(
        self, victim: subprocess.Popen[Any], count: int, among: tuple[str, ...] = (), *, late: bool
    ) -> None:
        with self._lock:
            self._victim, self._left, self._among, self._late = victim, count, among, late
            self.fired = False

    def call(self, command: str, *, late: bool) -> None:
        """From the threads of the guests, before and after each call is carried out."""
        with self._lock:
            if self._victim is None or late != self._late or (self._among and command not in self._among):
                return
            self._left -= 1
            if self._left <= 0:
                self._victim.send_signal(signal.SIGKILL)
                self._victim, self.fired = None, True


class Qemu(FakeQemu):
    """With RAM, which its balloon takes from the end; what is below the least that it was ever left stays as it was."""

    def __init__(
        self,
        path: Path,
        size_bytes: int,
        trigger: Trigger,
        *,
        driver: bool = True,
        prior_bytes: int | None = None,
        period_s: int = 0,
    ) -> None:
        self._trigger = trigger
        # What is not of the RAM lies between it and the next: areas that touch would be one.
        self._ram = mmap.mmap(-1, size_bytes + 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._ram.madvise(mmap.MADV_DONTFORK, 0, size_bytes)
        self._ram.madvise(mmap.MADV_NOHUGEPAGE, 0, size_bytes)
        self._kept_bytes = size_bytes
        self._asked = threading.Condition()
        super().__init__(path, size_bytes, driver=driver)
        self._write(0, size_bytes)
        if prior_bytes is not None:
            self._balloon(prior_bytes)
        self.prior = self.target_bytes, period_s
        self.period_s = period_s

    def answer(self, request: dict[str, Any]) -> bytes:
        command = request["execute"]
        self._trigger.call(command, late=False)
        self.updated_s = int(time.time())
        if command == "balloon":
            self._balloon(request["arguments"]["value"])
        said = super().answer(request)
        with self._asked:
            self._asked.notify_all()
        self._trigger.call(command, late=True)
        return said

    def wait_for(self, command: str) -> None:
        """Until it is asked that once more."""
        before = self.calls.count(command)
        with self._asked:
            assert self._asked.wait_for(lambda: self.calls.count(command) > before, LIMIT_S)

    def put_right(self) -> None:
        """As it began."""
        to_bytes, self.period_s = self.prior
        self._balloon(to_bytes)

    def works(self) -> bool:
        """Its memory is what it wrote."""
        return all(self._ram[page] == page // PAGE % 255 + 1 for page in range(0, self._kept_bytes, PAGE))

    def _balloon(self, to_bytes: int) -> None:
        before, self.target_bytes = self.target_bytes, min(to_bytes, self.size_bytes)
        if not self.driver:
            return
        at = self.target_bytes // PAGE * PAGE
        if at < before:
            self._ram.madvise(mmap.MADV_DONTNEED, at, self.size_bytes - at)
            self._kept_bytes = min(self._kept_bytes, at)
        else:
            self._write(before // PAGE * PAGE, at)  # it uses what it is given

    def _write(self, start: int, end: int) -> None:
        for page in range(start, end, PAGE):
            self._ram[page] = page // PAGE % 255 + 1


# On a line: reads its file into memory anew, in its own cgroup, and takes and frees as much.
_BOXED = """
import os, sys
path, size = sys.argv[1], int(sys.argv[2])
for line in sys.stdin:
    with open(path, "wb", buffering=0) as file:
        file.write(bytes(size))
        os.fsync(file.fileno())
    held = bytearray(size)
    print("works", flush=True)
"""


class Box:
    """A container in which something runs."""

    LIMIT_BYTES = 512 * MIB

    def __init__(self, group: Cgroup, place: Path, size_bytes: int = 24 * MIB) -> None:
        self.group = group
        group.set_limit(self.LIMIT_BYTES)
        enter = f'echo $$ > {group.directory}/cgroup.procs && exec "$@"'
        words = [sys.executable, "-c", _BOXED, str(place / "boxed"), str(size_bytes)]
        self._process = subprocess.Popen(
            ["sh", "-c", enter, "sh", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def work(self) -> None:
        """Have it read and write; raises AssertionError when it does not come back."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Timer(LIMIT_S, process.kill)
        late.start()
        try:
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout.readline() == "works\n", "what runs in the container has come to an end"
        finally:
            late.cancel()

    def as_before(self) -> bool:
        return self.group.own_limit_bytes() == self.LIMIT_BYTES and self.group.kills()

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


def _files(total_mib: int) -> dict[str, str]:
    """A guest that hardly uses half of its memory."""
    kib = total_mib << 10
    names = [
        "Unevictable",
        "Dirty",
        "Writeback",
        "KernelStack",
        "PageTables",
        "Percpu",
        "SwapTotal",
        "SwapFree",
        "Shmem",
    ]
    return files_at_rest(
        dict.fromkeys(names, 0)
        | {
            "MemTotal": kib,
            "MemFree": kib // 4,
            "MemAvailable": kib * 3 // 4,
            "Active(anon)": kib // 8,
            "Inactive(anon)": kib // 8,
            "Active(file)": kib // 16,
            "Inactive(file)": kib // 4,
            "SUnreclaim": kib // 16,
        }
    )


class Host:
    """Guests of each kind; `other` is not configured."""

    def __init__(self, place: Path, group: Cgroup | None) -> None:
        self.place = place
        self.trigger = trigger = Trigger()
        self.guests = {
            "full": Qemu(place / "full", 40 * MIB, trigger),
            "shrunk": Qemu(place / "shrunk", 48 * MIB, trigger, prior_bytes=40 * MIB, period_s=9),
            "mute": Qemu(place / "mute", 56 * MIB, trigger),
            "deaf": Qemu(place / "deaf", 64 * MIB, trigger, driver=False),
            "other": Qemu(place / "other", 32 * MIB, Trigger(), period_s=3),
        }
        self.guests["mute"].statistics = {"stat-total-memory": 54 * MIB, "stat-free-memory": 30 * MIB}
        self._agents = [
            FakeAgent(place / f"{name}.agent", _files(self.guests[name].size_bytes // MIB - 2))
            for name in ("full", "shrunk", "deaf")
        ]
        self.box = None if group is None else Box(group, place)
        self._running: list[subprocess.Popen[str]] = []

    def configure(self, policy: str) -> Path:
        """Of the agent: `policy` are lines of that section."""
        config = self.place / "agent.toml"
        guests = "".join(
            f'[[guest_memory.guests]]\nname = "{name}"\nqmp = "{self.guests[name].path}"\n'
            + ("" if name == "mute" else f'guest_agent = "{self.place}/{name}.agent"\n')
            for name in self.guests
            if name != "other"
        )
        if self.box is not None:
            guests += f'[[guest_memory.guests]]\nname = "box"\nkind = "cgroup"\ncgroup = "{self.box.group.directory}"\n'
        config.write_text(
            f"""
            [agent]
            listen = ""
            state_dir = "{self.place}/state"
            [guest_memory]
            period = "1s"
            urgency.period = "500ms"
            {guests}
            [guest_memory.policy]
            rise = "1s"
            least_change = "1MiB"
            step = 0.2
            {policy}
            """
        )
        return config

    def start(self, config: Path, *words: str, module: str = "sustain.cli") -> subprocess.Popen[str]:
        """`sustain agent WORDS`, as a process."""
        process = subprocess.Popen(
            [sys.executable, "-m", module, "agent", *words, "--config", str(config)],
            cwd=TOP,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._running.append(process)
        return process

    def wrong(self) -> list[str]:
        """What is not as it was before any agent, and who no longer works."""
        found = []
        for name, guest in self.guests.items():
            now = guest.target_bytes, guest.period_s
            if now != guest.prior:
                found.append(f"{name}: balloon and statistics {now}, were {guest.prior}")
            if not guest.works():
                found.append(f"{name}: its memory is not what it wrote")
        if "balloon" in self.guests["other"].calls:
            found.append("a guest that nobody was to touch was")
        if self.box is not None and not self.box.as_before():
            group = self.box.group
            found.append(f"box: limit {group.own_limit_bytes()}, kills {group.kills()}")
        return found

    def put_right(self) -> None:
        """As before, by hand."""
        for guest in self.guests.values():
            guest.put_right()
        if self.box is not None:
            if not self.box.group.kills():
                self.box.group.set_kills(True)
            self.box.group.set_limit(Box.LIMIT_BYTES)

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        if self.box is not None:
            self.box.close()
        for each in (*self.guests.values(), *self._agents):
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
