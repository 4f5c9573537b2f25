"""Real guests with scripted loads on a host that is just so large, under one policy; and what came of it.

Used by `guest_memory_guests`. The guests are those of the lab (tests/lab/guests.py): QEMU in software emulation, a
distribution's kernel, a real balloon, guest agent and swap. All are begun from one saved guest, so each policy finds
them alike. Their loads go through pages at a bounded rate, which leaves processor time over: work that is not done was
kept back by memory.

The host's size is made: its /proc says so (tests/lab/small_host.py), and its kernel holds the guests to it, by a cgroup
that all of them are in. What they hold beyond that it swaps, blindly, as a host does. What it swaps to is its own
memory (zram), and counts as taken.
"""

import contextlib
import os
import re
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace
from tests.host.cgroups import made_cgroup
from tests.lab.errors import LabError
from tests.lab.guests import GuestVm, Images, boot, host_swap
from tests.lab.small_host import SmallHost

from sustain.errors import HostError
from sustain.host import guest_frames, swaps
from sustain.host.cgroup import Cgroup
from sustain.host.guest_agent import GuestAgent
from sustain.host.guest_frames import GuestFrames
from sustain.host.maps import guest_ram
from sustain.host.pagemap import Pagemap, Run
from sustain.host.qmp import Qmp
from sustain.schedulers.guest_memory.config import GuestConfig, GuestsConfig
from sustain.schedulers.guest_memory.model import Action, Balloon, Effect, Guest, Observation, Policy
from sustain.schedulers.guest_memory.plan import HostPlan, Plan, State
from sustain.schedulers.loop import Loop

MIB = 1 << 20
SIZE_MIB = 256
SWAP_MIB = 192
_LOADS = ("anon", "busy", "hot", "seek")  # commands that hold until the next of the same
_WATCH_S = 0.25
_GOAL_MET = 0.98
_TIMEOUT_S = 2.0


class Controller(Protocol):
    """A policy: what it would do about what it sees."""

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]: ...


@dataclass(frozen=True)
class Script:
    """What a guest's workload does: (second, command, bytes), at so many pages a second."""

    pace: int
    steps: tuple[tuple[float, str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is the same for all policies."""

    scripts: dict[str, Script]
    total_bytes: int
    goal_bytes: int
    seconds: float
    period_s: float
    faster: float = 1.0  # than the clock, that time goes for our decision


@dataclass(kw_only=True)
class Ran:
    """What came of one run. Means are over its time."""

    pages: dict[str, int]  # gone through, by guest
    held_bytes: float  # of the host's memory, with what its swap takes of it; mean
    stall: float  # share of time that some task in the guest waited for memory; mean of guests
    free_swapped_bytes: int  # at the end: free for its guest, and in the host's swap
    host_swapped_bytes: int  # the most at once
    swings: int  # balloons that were turned around
    goal_share: float  # of the time
    goal_after_s: (
        float | None
    )  # since the host first fell below its goal; None: never came back, or never fell
    killed: int  # workloads, by their guest's kernel
    guests_killed: int  # whose kernel found no memory any more, and panicked; their work ends there
    ticks: int
    skipped: int  # periods, because a tick took longer
    refused: int  # actions that did not come off
    tick_s: float  # processor time of the scheduler, a tick and guest
    idle: float  # share of this machine's processors
    pressed_limit: int  # how often the host could not hold its guests to its size
    limited: bool  # whether anything held them to it
    balloons: dict[str, list[float]] = field(default_factory=dict)  # MiB, each period: where they were sent


@contextlib.contextmanager
def saved_guest(images: Images, place: Path) -> Iterator[Path]:
    """A guest that has booted and holds little of the host's memory, saved."""
    path = place / "saved-guest"
    with GuestVm("saved", images, memory_mib=SIZE_MIB, swap_mib=SWAP_MIB) as guest:
        with GuestAgent(str(guest.agent_path), timeout_s=20) as agent:
            agent.ask("guest-ping")
        for size_mib in (
            SIZE_MIB // 2,
            SIZE_MIB,
        ):  # what the boot has touched and freed goes back to the host
            guest.qmp("balloon", value=size_mib * MIB)
            _until_balloon(guest, size_mib * MIB)
        guest.do("swapon")  # with nothing in it: the disk is not saved
        guest.save(path)
    yield path


def _until_balloon(guest: GuestVm, size_bytes: int) -> None:
    deadline = time.monotonic() + 30
    while guest.balloon_bytes() != size_bytes:
        if time.monotonic() > deadline:
            raise LabError(f"guest {guest.name}: its balloon does not move\n{guest.report()}")
        time.sleep(0.05)


@contextlib.contextmanager
def before_others() -> Iterator[bool]:
    """What is started meanwhile, guests too, gets the processor before other work of this machine; False: only root may
    have that."""
    usual, session = os.getpriority(os.PRIO_PROCESS, 0), Path("/proc/self/autogroup")
    words = session.read_text().split() if session.exists() else []  # sched(7): a session's nice comes first
    group = words[-1] if words else None  # none: no session has been made since the kernel's first process
    try:
        os.setpriority(os.PRIO_PROCESS, 0, usual - 10)
        if group is not None:
            session.write_text("-10")
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)
        if group is not None:
            session.write_text(group)


class _GuestKilled(Exception):
    """Its kernel has panicked and begun anew."""


class Driver(threading.Thread):
    """Has a guest's workload do what its script says, and counts what it has done. `died` is what ended it early.

    A guest whose kernel panics begins anew, with nothing in it. It is left so: what it has done counts, and it waits
    for the rest of the time."""

    def __init__(self, guest: GuestVm, script: Script, seconds: float) -> None:
        super().__init__(name=f"drive {guest.name}")
        self.pages = 0
        self.killed = 0
        self.stall_s = 0.0
        self.processor_s = 0.0
        self.died: BaseException | None = None
        self.guest_killed = False
        self.guest_name = guest.name
        self._guest = guest
        self._script = script
        self._seconds = seconds
        self._counted = 0
        self._lost = False
        self._now: dict[str, int] = {}  # loads that go on

    def run(self) -> None:
        try:
            self._drive()
        except BaseException as error:  # noqa: BLE001 - raised where the run ends
            self.died = error
        self.processor_s = time.thread_time()

    def _drive(self) -> None:
        begun_s = time.monotonic()
        try:
            self._follow(begun_s)
        except _GuestKilled:
            self.guest_killed = True
            self.stall_s = max(0.0, begun_s + self._seconds - time.monotonic())

    def _follow(self, begun_s: float) -> None:
        stalled_us = _stalled_us(self._guest)
        self._do("pace", self._script.pace)
        for at_s, command, size in (*self._script.steps, (self._seconds, "", 0)):
            while (left_s := begun_s + at_s - time.monotonic()) > 0:
                time.sleep(min(left_s, 1.0))
                self._count()
            if command:
                self._do(command, size)
        self._count()
        self.stall_s = (_stalled_us(self._guest) - stalled_us) / 1e6

    def _do(self, command: str, size: int) -> None:
        if command in _LOADS:
            self._now[command] = size
        self._unless_killed(command, size)

    def _count(self) -> None:
        if self._lost:  # what was killed is begun again; when that is killed, too, a second later
            self._lost = False
            for command, size in (("pace", self._script.pace), *self._now.items()):
                if self._unless_killed(command, size) is None:
                    return
        said = self._unless_killed("work", "")
        if said is not None:
            self.pages += int(said) - self._counted
            self._counted = int(said)

    def _unless_killed(self, command: str, size: int | str) -> str | None:
        """Its answer; None: the workload was killed."""
        try:
            return self._guest.do(command, size, limit_s=120)
        except LabError as error:
            if str(error).startswith(f"guest {self._guest.name}: ready\n"):  # as it says when it has booted
                raise _GuestKilled from error
            if not str(error).startswith(f"guest {self._guest.name}: killed\n"):
                raise
        self.killed += 1 + self._guest.take_up()
        self._counted, self._lost = 0, True
        return None


def _stalled_us(guest: GuestVm) -> int:
    found = re.search(r"^some .*total=(\d+)", guest.read("/proc/pressure/memory"), re.MULTILINE)
    if found is None:
        raise LabError(f"guest {guest.name}: its kernel does not tell how long it waits")
    return int(found[1])


class Walls:
    """The cgroup that the guests' QEMUs are in. What these take beside the guests' memory is not of the host that is
    made, so the limit follows it."""

    def __init__(self, group: Cgroup, total_bytes: int) -> None:
        self.directory = group.directory
        self.failed = 0
        self._group = group
        self._total_bytes = total_bytes

    def hold(self, resident_bytes: int, swap_bytes: int) -> None:
        """`swap_bytes`: of the host's memory, that its swap takes."""
        used = self._group.current_bytes()
        if used is None:
            raise LabError("the guests' cgroup has gone")
        try:
            self._group.set_limit(self._total_bytes - swap_bytes + max(0, used - resident_bytes))
        except HostError:  # it could not be made smaller now
            self.failed += 1


@contextlib.contextmanager
def walls(total_bytes: int) -> Iterator[Walls | None]:
    """None: this machine lets us make no cgroup with a memory controller. Whoever runs in it must end before."""
    with made_cgroup("bench") as group:
        yield None if group is None else Walls(group, total_bytes)


class Host(SmallHost):
    """The host under a policy. `controller` None: our own decision."""

    def __init__(
        self, place: Path, guests: Sequence[GuestVm], ways: GuestsConfig, case: Case, policy: Policy,
        controller: Controller | None, device: str | None,
    ) -> None:  # fmt: skip
        self._controller = controller
        self._device = device
        self._faster = case.faster
        self.look_s = 0.0  # processor time of `look`
        self.free_swapped_bytes = 0
        self._look_s: float | None = None
        self.looked = threading.Event()
        self.lost: set[str] = set()  # guests that were killed: what they would say now is of another system
        self._frames = {guest.name: _frames(guest) for guest in guests}
        super().__init__(place, guests, ways, case.total_bytes, policy, case.period_s)

    def swap_bytes(self) -> int:
        """What the host's swap takes of its memory."""
        areas = [each for each in swaps.read().areas if each.path == self._device]
        return sum(each.zram.memory_bytes or 0 for each in areas if each.zram)

    def taken_bytes(self) -> int:
        return super().taken_bytes() + self.swap_bytes()

    def look_at(self, time_s: float) -> None:
        """Have `look` done in the first tick from then on (time.monotonic)."""
        self._look_s = time_s

    def sense(self) -> Observation:
        if self._look_s is not None and time.monotonic() >= self._look_s:
            self._look_s = None
            self.look()
            self.looked.set()
        return super().sense()

    def look(self) -> None:
        """How much of what guests call free is in the host's swap now."""
        there = [guest for guest in self._guests if guest.name not in self.lost]
        with ThreadPoolExecutor(len(self._guests)) as pool:
            found = list(pool.map(self._look, there))
        self.look_s += sum(spent_s for _, spent_s in found)
        self.free_swapped_bytes = sum(size for size, _ in found)

    def _look(self, guest: GuestVm) -> tuple[int, float]:
        begun_s = time.thread_time()
        size = free_and_swapped_bytes(guest, self._frames[guest.name])
        return size, time.thread_time() - begun_s

    def decide(
        self, observation: Observation, state: State | None, now_s: float, effects: Sequence[Effect]
    ) -> tuple[Plan, State]:
        if self._controller is None:
            return super().decide(faster(observation, self._faster), state, now_s * self._faster, effects)
        actions = tuple(self._controller.plan(observation, effects))
        host = HostPlan(
            state="unknown", available_bytes=observation.host.available_bytes,
            goal_bytes=self.policy.goal_free_bytes, capacity_bytes=None,
        )  # fmt: skip
        self.plans.append(Plan(now_s, host, actions, (), (), {}, {}))
        return self.plans[-1], State(now_s, "unknown", (), {}, {}, ())


def faster(seen: Observation, times: float) -> Observation:
    """The same, where a second is as many: shares of time stay what they are."""

    def scaled(value: float | None) -> float | None:
        return None if value is None else value * times

    def guest(each: Guest) -> Guest:
        figures = replace(
            each.figures,
            classes_at_s=scaled(each.figures.classes_at_s),
            stall_us=scaled(each.figures.stall_us),
            full_stall_us=scaled(each.figures.full_stall_us),
        )
        return replace(each, figures=figures)

    return replace(seen, at_s=seen.at_s * times, guests=tuple(guest(each) for each in seen.guests))


def _frames(guest: GuestVm) -> GuestFrames:
    frames = GuestFrames(
        guest.memory_mib * MIB,
        lambda: Qmp(str(guest.qmp_path), 20.0),
        lambda: GuestAgent(str(guest.agent_path), 20.0),
    )
    for address in range(0, frames.end_bytes, guest_frames.CHUNK_BYTES):
        frames.place(address)
    return frames


def free_and_swapped_bytes(guest: GuestVm, frames: GuestFrames) -> int:
    """Of the guest's memory: free by its own kernel's word, and in the host's swap by the host's page tables."""
    areas = guest_ram(guest.pid)
    assert areas is not None
    found = 0
    with contextlib.closing(Pagemap(guest.pid)) as table:
        for address in range(0, frames.end_bytes, guest_frames.CHUNK_BYTES):
            place = frames.place(address)
            if place is None or not any(each.start <= place < each.end for each in areas):
                continue
            swapped = table.census(place, place + guest_frames.CHUNK_BYTES).swapped
            if swapped:
                free = [
                    (begin - address + place, end - address + place) for begin, end in frames.free(address)
                ]
                found += _common_bytes(free, swapped)
    return found


def _common_bytes(some: Sequence[Run], others: Sequence[Run]) -> int:
    return len(_pages(some) & _pages(others)) * guest_frames.FRAME_BYTES


def _pages(runs: Sequence[Run]) -> set[int]:
    return {page for begin, end in runs for page in range(begin, end, guest_frames.FRAME_BYTES)}


def run(
    case: Case, images: Images, saved: Path, place: Path, policy: Policy, controller: Controller | None
) -> Ran:
    """One run: its own guests, the case's loads, that policy (None: ours)."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(before_others())
        try:
            device = stack.enter_context(host_swap(2048))
        except LabError:
            device = None
        # Without swap the kernel could only kill what does not fit.
        wall = stack.enter_context(walls(case.total_bytes)) if device else None
        guests = [
            GuestVm(
                name, images, memory_mib=SIZE_MIB, swap_mib=SWAP_MIB, disk_latency_us=500, saved=saved,
                cgroup=wall.directory if wall else None, large_pages=True,
            )
            for name in case.scripts
        ]  # fmt: skip
        stack.enter_context(boot(*guests))
        ways = GuestsConfig(
            guests=tuple(
                GuestConfig(
                    name=guest.name,
                    qmp=str(guest.qmp_path),
                    # The peers know what the balloon tells, and ask no agent.
                    guest_agent=str(guest.agent_path) if controller is None else None,
                )
                for guest in guests
            ),
            timeout_s=_TIMEOUT_S,
            statistics_period_s=1,
        )
        host = Host(place, guests, ways, case, policy, controller, device)
        return _watched(case, host, guests, wall)


def _watched(case: Case, host: Host, guests: Sequence[GuestVm], wall: Walls | None) -> Ran:
    drivers = [Driver(guest, case.scripts[guest.name], case.seconds) for guest in guests]
    begun_s, spent_s, own_s = time.monotonic(), time.process_time(), time.thread_time()
    host.look_at(begun_s + case.seconds)
    cpu = _processors()
    held: list[int] = []
    swapped: list[int] = []
    with host.running() as loop:
        for driver in drivers:
            driver.start()
        while (
            (now_s := time.monotonic()) < begun_s + case.seconds
            or any(each.is_alive() for each in drivers)
            or not host.looked.is_set()
        ):
            host.lost.update(each.guest_name for each in drivers if each.guest_killed)
            resident, in_swap = sum(each.resident_bytes() for each in guests), host.swap_bytes()
            if wall is not None:
                wall.hold(resident, in_swap)
            if now_s < begun_s + case.seconds:
                held.append(resident + in_swap)
                swapped.append(sum(each.swapped_bytes() for each in guests))
            elif now_s > begun_s + 3 * case.seconds + 60:
                raise LabError("a guest does not come to the end of its script")
            time.sleep(_WATCH_S)
        idle = _idle(cpu, _processors())
        spent_s, own_s = time.process_time() - spent_s, time.thread_time() - own_s
        counts = loop.counts
        failure = _failure(loop, drivers)
    if failure is not None:
        raise failure
    spent_s -= own_s + host.look_s + sum(each.processor_s for each in drivers)
    available = [host.total_bytes - each for each in held]
    return Ran(
        pages={guest.name: driver.pages for guest, driver in zip(guests, drivers, strict=True)},
        held_bytes=statistics.fmean(held),
        stall=statistics.fmean(driver.stall_s / case.seconds for driver in drivers),
        free_swapped_bytes=host.free_swapped_bytes,
        host_swapped_bytes=max(swapped),
        swings=_swings(host.effects),
        goal_share=statistics.fmean(each >= _GOAL_MET * case.goal_bytes for each in available),
        goal_after_s=_back_after_s(available, _GOAL_MET * case.goal_bytes, case.seconds),
        killed=sum(driver.killed for driver in drivers),
        guests_killed=sum(driver.guest_killed for driver in drivers),
        ticks=counts.ticks,
        skipped=counts.skipped,
        refused=counts.refused,
        tick_s=spent_s / max(1, counts.ticks) / len(guests),
        idle=idle,
        pressed_limit=0 if wall is None else wall.failed,
        limited=wall is not None,
        balloons=_balloons(host.effects),
    )


def _failure(loop: Loop[Observation, State, Plan, Effect], drivers: Sequence[Driver]) -> BaseException | None:
    if loop.failure:
        return LabError(f"the scheduler's loop failed: {loop.failure}")
    return next((each.died for each in drivers if each.died is not None), None)


def _swings(effects: Sequence[Effect]) -> int:
    """Balloons that were sent the other way than the time before."""
    ways: dict[str, bool] = {}
    found = 0
    for each in effects:
        if isinstance(each.action, Balloon):
            up = each.action.to_bytes > each.action.from_bytes
            found += ways.get(each.action.guest, up) != up
            ways[each.action.guest] = up
    return found


def _balloons(effects: Sequence[Effect]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for each in effects:
        if isinstance(each.action, Balloon):
            found.setdefault(each.action.guest, []).append(round(each.action.to_bytes / MIB))
    return found


def _back_after_s(available: Sequence[int], goal_bytes: float, seconds: float) -> float | None:
    below = next((at for at, each in enumerate(available) if each < goal_bytes), None)
    if below is None:
        return None
    back = next((at for at, each in enumerate(available) if at > below and each >= goal_bytes), None)
    return None if back is None else (back - below) * seconds / len(available)


def _processors() -> list[int]:
    return [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def _idle(before: Sequence[int], after: Sequence[int]) -> float:
    spent = [new - old for old, new in zip(before, after, strict=True)]
    return (spent[3] + spent[4]) / max(1, sum(spent))
