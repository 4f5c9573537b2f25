"""A container as a guest, for real: a process in a memory cgroup with memory that it uses, memory that it has not used
for long, and files in the page cache; its classes are seen, it is reclaimed, that is verified, and all is as it was.

Runs on this machine's kernel and version of cgroups, and in the lab (tests/lab/test_host_surfaces.py) on version 2.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sustain.host.cgroup import Cgroup
from sustain.schedulers.guest_memory.act import Actuator
from sustain.schedulers.guest_memory.config import GuestConfig, GuestsConfig
from sustain.schedulers.guest_memory.model import Figures, Guest, Reclaim
from sustain.schedulers.guest_memory.sense import Sensor
from sustain.schedulers.journal import Journal
from tests.host.held import MIB, own_cgroup, some_swap

COLD, HOT, FILE, LIMIT = 48 * MIB, 16 * MIB, 32 * MIB, 256 * MIB

# Writes all of its memory and a file; then, for each line, reads what is hot, or all, and says how much is right; or
# reads the file.
_PROGRAM = """
import mmap, os, sys
path, cold, hot, size = sys.argv[1], *map(int, sys.argv[2:])
with open(path, "wb", buffering=0) as file:
    for _ in range(size >> 20):
        file.write(os.urandom(1 << 20))
    os.fsync(file.fileno())
view = mmap.mmap(-1, cold + hot, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, cold + hot, 4096):
    view[page : page + 8] = page.to_bytes(8, "little")
print("ready", flush=True)
for line in sys.stdin:
    if line == "file\\n":
        with open(path, "rb", buffering=0) as file:
            print(len(file.read()), flush=True)
        continue
    first = 0 if line == "all\\n" else cold
    right = sum(view[page : page + 8] == page.to_bytes(8, "little") for page in range(first, cold + hot, 4096))
    print(right * 4096, flush=True)
"""


@dataclass
class Container:
    group: Cgroup
    process: subprocess.Popen[str]

    def use(self, what: str) -> int:
        """Have it use its hot memory, or "all"; bytes that were right."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    with some_swap(128 * MIB), own_cgroup() as group:
        group.set_limit(LIMIT)
        enter = f'echo $$ > {group.directory}/cgroup.procs && exec "$@"'
        sizes = (str(each) for each in (COLD, HOT, FILE))
        process = subprocess.Popen(
            ["sh", "-c", enter, "sh", sys.executable, "-c", _PROGRAM, str(tmp_path / "file"), *sizes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield Container(group, process)
        finally:
            process.kill()
            process.communicate()
            (tmp_path / "file").unlink(missing_ok=True)  # its pages are charged to the group


def anonymous_of(figures: Figures) -> float:
    return (figures.active_anonymous_bytes or 0) + (figures.inactive_anonymous_bytes or 0)


def buffers_of(figures: Figures) -> float:
    return (figures.active_buffer_bytes or 0) + (figures.inactive_buffer_bytes or 0)


def seen(sensor: Sensor, condition: Callable[[Figures], bool] = lambda figures: True) -> Guest:
    """The container, at the latest when that is true of it: each processor counts pages for a while (up to 2 s) before
    memory.stat has them."""
    deadline_s = time.monotonic() + 20
    while True:
        (guest,) = sensor.read().guests
        if condition(guest.figures) or time.monotonic() > deadline_s:
            return guest
        time.sleep(0.2)


def test_a_container_is_seen_reclaimed_and_whole(container: Container, tmp_path: Path) -> None:
    group = container.group
    ways = GuestsConfig(
        guests=(GuestConfig(name="box", kind="cgroup", cgroup=str(group.directory)),), timeout_s=20
    )
    with Journal(tmp_path / "journal") as journal:
        sensor = Sensor(ways, changes=journal)

        def whole(each: Figures) -> bool:
            return anonymous_of(each) >= COLD + HOT and buffers_of(each) >= FILE

        before = seen(sensor, whole)
        if not whole(before.figures):  # a host that others press takes buffers first
            assert container.use("file") == FILE
            before = seen(sensor, whole)
        figures = before.figures
        assert (before.kind, before.source, before.can) == ("cgroup", "cgroup", ("reclaim",))
        assert before.life == str(group.directory.stat().st_ino)
        assert figures.size_bytes == figures.total_bytes == LIMIT

        assert COLD + HOT <= anonymous_of(figures) < COLD + HOT + 24 * MIB  # the rest is the program's own
        assert FILE <= buffers_of(figures) < FILE + 16 * MIB
        assert figures.resident_bytes is not None
        assert figures.free_bytes == pytest.approx(LIMIT - figures.resident_bytes, abs=2 * MIB)
        assert (figures.unreclaimable_bytes or 0) < 16 * MIB
        assert figures.host_swapped_bytes == 0

        # More than there is of files: anonymous memory goes, too.
        wanted = FILE + 24 * MIB
        assert container.use("hot") == HOT
        actuator = Actuator(sensor.handles, journal, limit_s=120)
        (effect,) = actuator.carry_out(
            [Reclaim(guest="box", life=before.life, amount_bytes=wanted, reason="a test")]
        )
        after = seen(
            sensor, lambda each: buffers_of(each) < FILE and (each.host_swapped_bytes or 0) > 8 * MIB
        ).figures
        print(f"version {group.version}: {effect}\n{after}")
        assert effect.done, effect.problem
        assert effect.freed_bytes is not None
        assert effect.freed_bytes > wanted * 0.8
        assert figures.resident_bytes - (after.resident_bytes or 0) == pytest.approx(
            effect.freed_bytes, abs=4 * MIB
        )
        assert (after.host_swapped_bytes or 0) > 8 * MIB
        assert buffers_of(after) < FILE
        # As it was: its limit, whether it is killed, and what it holds, which comes back when it is used.
        assert group.own_limit_bytes() == LIMIT
        assert group.kills()
        assert journal.entries() == ()
        assert actuator.restore().undone == ()
        assert container.use("all") == COLD + HOT
        left = (after.host_swapped_bytes or 0) - 8 * MIB
        assert (
            seen(sensor, lambda each: (each.host_swapped_bytes or 0) < left).figures.host_swapped_bytes or 0
        ) < left
        sensor.close()


def test_another_life_of_its_place_is_left_alone(container: Container, tmp_path: Path) -> None:
    group = container.group
    ways = GuestsConfig(guests=(GuestConfig(name="box", kind="cgroup", cgroup=str(group.directory)),))
    with Journal(tmp_path / "journal") as journal:
        sensor = Sensor(ways, changes=journal)
        used = seen(sensor).figures.resident_bytes or 0
        actuator = Actuator(sensor.handles, journal, limit_s=30)
        (effect,) = actuator.carry_out(
            [Reclaim(guest="box", life="1", amount_bytes=16 * MIB, reason="a test")]
        )
        assert not effect.done
        assert "anew" in (effect.problem or "")
        assert (seen(sensor).figures.resident_bytes or 0) > used - 4 * MIB
        sensor.close()
