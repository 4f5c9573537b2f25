"""Hosts, faults, and one run from a seed to its outcome."""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim.replication import seams, tasks
from sim.replication.broken import CORRECT, Variant
from sim.replication.checker import Checker, Violation
from sim.replication.command import Oracle
from sim.replication.host import TTL_S, Host
from sim.replication.network import Network
from sustain._native import Control
from sustain.errors import LeaseError
from sustain.failover.lease.record import LeaseRecord
from sustain.testing import MemoryLease, MemoryLeaseStore

if TYPE_CHECKING:
    from sustain._native import ControlWords, Superblock

CALM_S = 1.5
RATE = 0.018  # clocks differ by up to twice this; the lease's margin is 0.02 on either side
LOOK_S = 0.4
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_KINDS = (
    "pause",
    "power-cut",
    "power-cut",
    "kill",
    "kill",
    "orphan",
    "one-way",
    "cut-link",
    "isolate",
    "lease-cut",
    "lease-down",
    "reset",
    "slow-disk",
    "full-disk",
    "failing-disk",
    "stop",
)


@dataclass(slots=True)
class Outcome:
    """What came of a seed."""

    seed: int
    violation: str = ""
    promotions: int = 0
    commits: int = 0
    looks: int = 0  # at contents of stores
    lost: int = 0  # commits that a later primary does not have
    story: list[str] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        """What came of both; without their stories."""
        return Outcome(
            self.seed,
            self.violation or other.violation,
            self.promotions + other.promotions,
            self.commits + other.commits,
            self.looks + other.looks,
            self.lost + other.lost,
        )

    def __str__(self) -> str:
        return (
            f"{self.promotions} promotions, {self.commits} commits, of which {self.lost} stayed behind on a host that "
            f"was primary, {self.looks} looks at what stores hold"
        )


def run_seed(seed: int, variant: Variant = CORRECT) -> Outcome:
    """One run. The same seed and variant always give the same outcome."""
    with tempfile.TemporaryDirectory(prefix="sustain-sim-", dir=_memory()) as root:
        world = World(seed, variant, root)
        outcome = Outcome(seed)
        try:
            with seams.installed(world):
                try:
                    world.run()
                finally:
                    world.end()
        except Violation as violation:
            outcome.violation = world.plain(str(violation))
        except Exception as error:  # noqa: BLE001 - a task of the product that fails so is a finding, too
            outcome.violation = f"{type(error).__name__}: {world.plain(str(error))}"
            world.story += traceback.format_exc().splitlines()
        if outcome.violation:
            world.tell(None, f"VIOLATION: {outcome.violation}")
    outcome.promotions, outcome.looks = world.checker.promotions, world.checker.looks
    outcome.lost = len(world.checker.lost)
    outcome.commits = sum(each.lsn is not None for each in world.oracle.commits.values()) - 1
    outcome.story = world.story
    return outcome


def _memory() -> str | None:
    """A directory in memory with room for a few stores; None: the system's own."""
    return (
        "/dev/shm" if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 256 << 20 else None
    )


class SimLease(MemoryLease):
    """The lease store over a network that delays, cuts off, and loses answers."""

    world: World
    host: Host

    def _access(self, what: str) -> None:
        self.world.lease_trip(self.host, what)

    def _swap(self, old: LeaseRecord, new: LeaseRecord) -> bool:
        swapped = super()._swap(old, new)
        if self.world.rng.random() < self.world.lost_answers:
            self.world.tell(self.host, "FAULT the answer of the lease store is lost")
            raise LeaseError("memory: the answer was lost", hint="end the fault")
        return swapped


class World:
    """Everything, in one thread, in simulated nanoseconds."""

    def __init__(self, seed: int, variant: Variant, root: str) -> None:
        self.rng = rng = random.Random(f"{seed}")
        self.variant = variant
        self.root = root
        self.kernel = tasks.Kernel(rng)
        self.network = Network(rng)
        self.oracle = Oracle()
        self.story: list[str] = []
        self.lease_store = MemoryLeaseStore()
        count = variant.hosts or rng.choice((2, 3))
        self.required = rng.random() < 0.5
        self.all_create = rng.random() < 0.2
        self.bulk_share = rng.choice((0.0, 0.0, 0.2, 0.5))
        self.pace_s = rng.choice((0.03, 0.06, 0.12))
        self.lost_answers = rng.choice((0.0, 0.05, 0.2))
        self.every_s = rng.choice((0.15, 0.3, 0.6))
        self.faults_s = rng.choice((1.0, 1.5, 2.5))
        self.kinds = variant.kinds or (_KINDS if rng.random() < 0.5 else tuple(rng.sample(_KINDS, 4)))
        self.network.slow_s = rng.choice((0.0, 0.0, 0.02))
        if variant.busy:
            self.pace_s, self.network.slow_s, self.faults_s = 0.01, 0.02, 2.5
        self.calm = self.over = False
        self._uuids: dict[str, str] = {}
        self._controls: dict[int, Control] = {}
        tasks.install(self.kernel)
        self.hosts = [
            Host(self, at, 1 + rng.uniform(-RATE, RATE), rng.randrange(10**9, 10**14)) for at in range(count)
        ]
        self.network.hosts = {host.address: host for host in self.hosts}
        self.checker = Checker(self)

    # what the rest asks

    def plain(self, text: str) -> str:
        """Without what differs from run to run: directories and UUIDs."""
        text = text.replace(f"{self.root}/", "")
        return _UUID.sub(lambda found: self._uuids.setdefault(found[0], f"UUID{len(self._uuids) + 1}"), text)

    def tell(self, host: Host | None, text: str) -> None:
        self.story.append(
            f"{self.kernel.now_ns / 1e9:9.4f}  {host.name if host else '*':<2} {self.plain(text)}"
        )

    def named(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def at(self, url: str) -> Host:
        return next(host for host in self.hosts if f"//{host.address}:" in url)

    def lease(self, host: Host) -> SimLease:
        instance = f"{host.name}{host.lives}"
        lease = SimLease(self.lease_store, instance, host.clock, TTL_S)
        lease.world, lease.host = self, host
        return lease

    def lease_trip(self, host: Host, what: str) -> None:
        """There and back, or not."""
        tasks.sleep(self.network.latency_s())
        if not host.lease_cut:
            return
        hangs_s = self.rng.choice((0.1, 0.3, 2.0))  # as a write into a share whose server is away
        while host.lease_cut and hangs_s > 0:
            tasks.sleep(0.05)
            hangs_s -= 0.05
        if host.lease_cut:
            raise LeaseError(f"memory: cannot {what} the lease: unreachable", hint="end the fault")

    def words(self, host: Host) -> ControlWords | None:
        return self._control(host).words()

    def block(self, host: Host) -> Superblock:
        return self._control(host).superblock()

    def _control(self, host: Host) -> Control:
        """Of the file that is there now."""
        inode = os.stat(host.path).st_ino
        if inode not in self._controls:
            self._controls[inode] = Control(host.path)
        return self._controls[inode]

    def accepts(self, host: Host) -> bool:
        """Whether a commit would be accepted there now."""
        words = self.words(host)
        return words is not None and host.clock.boottime_ns() < words["lease_deadline_ns"]

    # running

    def run(self) -> None:
        for host in self.hosts:
            self.kernel.after(self.rng.uniform(0, 0.1), host.start)
        self.kernel.after(0.4, self._fault)
        self.kernel.after(LOOK_S, self._look)
        self.kernel.after(self.faults_s, self._heal)
        self.kernel.run(int((self.faults_s + CALM_S) * 1e9), lambda: None)
        self.checker.at_the_end()

    def end(self) -> None:
        """Nothing is left running; stacks are unwound."""
        self.kernel.error = None
        self.over = True
        for host in self.hosts:
            for process in list(host.processes):
                process.kill()
        self.kernel.run(self.kernel.now_ns + int(1e9), lambda: None)

    def supervisor_ended(self, host: Host) -> None:
        if not self.over:
            self.kernel.after(0.1 if self.calm else self.rng.choice((0.05, 0.3, 1.5, 3.0)), host.start)

    def child_ended(self, host: Host) -> None:
        """SIGCHLD."""
        if host.supervisor is not None:
            host.supervisor._bell.ring()

    def _look(self) -> None:
        self.kernel.after(self.rng.uniform(0.5, 1.5) * LOOK_S, self._look)
        host = self.rng.choice(self.hosts)
        if os.path.exists(host.path) and not host.down:
            self.checker.look(host)

    # faults

    def _fault(self) -> None:
        if self.calm:
            return
        rng = self.rng
        self.kernel.after(rng.expovariate(1 / self.every_s), self._fault)
        primary = self.lease_store.record.holder
        likely = [host for host in self.hosts if host.name == primary]
        host = rng.choice(likely if likely and rng.random() < 0.5 else self.hosts)
        kind = rng.choice(self.kinds)
        span_s = rng.choice((0.05, 0.2, 0.6, 1.0)) * rng.uniform(0.5, 1.5)
        span_s = min(span_s, self.faults_s - self.kernel.now_ns / 1e9)
        host.disturbed_s = max(host.disturbed_s, self.kernel.now_ns / 1e9 + span_s)
        _FAULTS[kind](self, host, span_s)

    def until(self, span_s: float, undo: Callable[[], object]) -> None:
        self.kernel.after(span_s, undo)

    def cut(self, one: Host, other: Host, both: bool, span_s: float) -> None:
        pairs = {(one.name, other.name)} | ({(other.name, one.name)} if both else set())
        self.network.cut |= pairs
        self.until(span_s, lambda: self.network.cut.difference_update(pairs))

    def other(self, host: Host) -> Host:
        return self.rng.choice([each for each in self.hosts if each is not host])

    def power_back(self, host: Host) -> None:
        if host.down:
            host.down = False
            self.tell(host, "power is back")
            host.start()

    def _heal(self) -> None:
        self.tell(None, "all faults end")
        self.calm = True
        self.pace_s = 0.05
        self.network.cut.clear()
        self.network.slow_s = self.lost_answers = 0.0
        for host in self.hosts:
            host.lease_cut = host.disk.full = host.disk.failing = False
            host.disk.slow_s = 0.0
            self.power_back(host)
            host.start()


def _pause(world: World, host: Host, span_s: float) -> None:
    world.tell(host, f"FAULT stops for {span_s:.2f} s")
    host.paused_until_ns = max(host.paused_until_ns, world.kernel.now_ns + int(span_s * 1e9))


def _power_cut(world: World, host: Host, span_s: float) -> None:
    if host.down:
        return
    world.tell(host, f"FAULT power cut, {span_s:.2f} s")
    host.lose_power()
    world.until(span_s, lambda: world.power_back(host))


def _kill(world: World, host: Host, span_s: float) -> None:
    what = world.rng.choice(("work", "work", "ship", "receive"))
    world.tell(host, f"FAULT kill -9 of `{what}`")
    host.kill(what)
    world.child_ended(host)


def _orphan(world: World, host: Host, span_s: float) -> None:
    """What the supervisor has started goes on without it."""
    world.tell(host, "FAULT kill -9 of the supervisor")
    host.kill_supervisor()


def _one_way(world: World, host: Host, span_s: float) -> None:
    other = world.other(host)
    other.disturbed_s = max(other.disturbed_s, host.disturbed_s)
    world.tell(host, f"FAULT nothing gets from here to {other.name}, {span_s:.2f} s")
    world.cut(host, other, False, span_s)


def _cut_link(world: World, host: Host, span_s: float) -> None:
    other = world.other(host)
    other.disturbed_s = max(other.disturbed_s, host.disturbed_s)
    world.tell(host, f"FAULT the link to {other.name} is cut, {span_s:.2f} s")
    world.cut(host, other, True, span_s)


def _isolate(world: World, host: Host, span_s: float) -> None:
    world.tell(host, f"FAULT cut off from all, {span_s:.2f} s")
    for other in world.hosts:
        if other is not host:
            world.cut(host, other, True, span_s)
    _cut_lease(world, host, span_s)


def _lease_cut(world: World, host: Host, span_s: float) -> None:
    world.tell(host, f"FAULT cut off from the lease store, {span_s:.2f} s")
    _cut_lease(world, host, span_s)


def _lease_down(world: World, host: Host, span_s: float) -> None:
    world.tell(None, f"FAULT the lease store is away from all, {span_s:.2f} s")
    for each in world.hosts:
        _cut_lease(world, each, span_s)


def _cut_lease(world: World, host: Host, span_s: float) -> None:
    host.disturbed_s = max(host.disturbed_s, world.kernel.now_ns / 1e9 + span_s)
    host.lease_cut = True
    world.until(span_s, lambda: setattr(host, "lease_cut", False))


def _reset(world: World, host: Host, _: float) -> None:
    other = world.other(host)
    if world.network.reset(host.name, other.name):
        world.tell(host, f"FAULT connections with {other.name} are reset")


def _slow_disk(world: World, host: Host, span_s: float) -> None:
    world.tell(host, f"FAULT the disk is slow, {span_s:.2f} s")
    host.disk.slow_s = world.rng.choice((0.02, 0.2))
    world.until(span_s, lambda: setattr(host.disk, "slow_s", 0.0))


def _full_disk(world: World, host: Host, span_s: float) -> None:
    world.tell(host, f"FAULT the disk is full, {span_s:.2f} s")
    host.disk.full = True
    world.until(span_s, lambda: setattr(host.disk, "full", False))


def _failing_disk(world: World, host: Host, span_s: float) -> None:
    world.tell(host, "FAULT flushes fail")
    host.disk.failing = True
    world.until(min(span_s, 0.3), lambda: setattr(host.disk, "failing", False))


def _stop(world: World, host: Host, _: float) -> None:
    world.tell(host, "FAULT SIGTERM to the supervisor")
    host.ask_to_stop()


_FAULTS: dict[str, Callable[[World, Host, float], None]] = {
    "pause": _pause,
    "power-cut": _power_cut,
    "kill": _kill,
    "orphan": _orphan,
    "one-way": _one_way,
    "cut-link": _cut_link,
    "isolate": _isolate,
    "lease-cut": _lease_cut,
    "lease-down": _lease_down,
    "reset": _reset,
    "slow-disk": _slow_disk,
    "full-disk": _full_disk,
    "failing-disk": _failing_disk,
    "stop": _stop,
}
