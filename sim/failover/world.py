"""Time, faults, links, and one run from a seed to its outcome."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sim.failover.broken import CORRECT, Variant
from sim.failover.checker import Checker, Violation
from sim.failover.handovers import LITTLE, Handovers
from sim.failover.host import Host, SimClock, SimStore
from sim.failover.power import Feed, outage
from sustain.failover.types import Policy
from sustain.testing import MemoryLeaseStore
from sustain.units import to_ns

TTL_S = 1.0
FAULTS_S = 14.0
CALM_S = 12.0
RATE = 0.018  # clocks differ by up to twice this; the lease's margin is 0.02 on either side


@dataclass(slots=True)
class Faults:
    """How bad this run is."""

    every_s: float
    lost_answers: float
    slow: float
    kinds: tuple[str, ...]


@dataclass(slots=True)
class Outcome:
    """What came of a seed."""

    seed: int
    violation: str = ""
    promotions: int = 0
    commits: int = 0
    outages: int = 0
    kept: int = 0  # promises of batteries that were put to the test
    handovers: int = 0  # that were asked for, and done
    story: list[str] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        """What came of both; without their stories."""
        return Outcome(
            self.seed,
            self.violation or other.violation,
            self.promotions + other.promotions,
            self.commits + other.commits,
            self.outages + other.outages,
            self.kept + other.kept,
            self.handovers + other.handovers,
        )

    def __str__(self) -> str:
        return (
            f"{self.promotions} promotions, {self.commits} commits, {self.outages} outages, of which {self.kept} put a "
            f"battery's promise to the test, {self.handovers} handovers as asked"
        )


def run_seed(seed: int, variant: Variant = CORRECT) -> Outcome:
    """One run. The same seed and variant always give the same outcome."""
    world = World(seed, variant)
    outcome = Outcome(seed)
    try:
        world.run()
    except Violation as violation:
        outcome.violation = str(violation)
        world.tell(None, f"VIOLATION: {violation}")
    outcome.promotions, outcome.commits = world.checker.promotions, world.commits
    outcome.outages = sum(host.feed.outages for host in world.hosts if host.feed is not None)
    outcome.kept, outcome.handovers = world.checker.kept, world.handovers.done
    outcome.story = world.story
    return outcome


_KINDS = (
    "pause",
    "pause",
    "crash",
    "crash",
    "kill-supervisor",
    "command-fails",
    "cut-off",
    "cut-off",
    "cut-link",
    "stop",
    "part-fails",
)


class World:
    """Everything, in one thread, in simulated nanoseconds."""

    def __init__(self, seed: int, variant: Variant) -> None:
        self.rng = random.Random(seed)
        self.power_rng = random.Random(f"power {seed}")  # apart, so that runs without it stay what they were
        self.variant = variant
        self.now_ns = 0
        self.story: list[str] = [f"seed {seed}, variant {variant.name}"]
        self.commits = 0
        self.lease_store = MemoryLeaseStore()
        self.cut_links: set[frozenset[str]] = set()
        self.checker = Checker(self)
        self.handovers = Handovers(self, seed)
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.calm = False
        rng = self.rng
        count = variant.hosts or rng.choice((2, 2, 3))
        kinds = variant.kinds or tuple(rng.sample(_KINDS, rng.randint(2, len(_KINDS))))
        self.faults = Faults(rng.choice((0.7, 1.5, 4.0)), rng.choice((0.0, 0.0, 0.02)), 0.02, kinds)
        power_rng = self.power_rng
        self.powered = power_rng.random() < 0.6 if variant.power is None else variant.power
        self.volatile = power_rng.random() < 0.5  # stores of `memory` durability
        self.one_at_a_time = power_rng.random() < 0.6  # hosts on different feeds
        self.outages_every_s = power_rng.choice((1.0, 2.0, 4.0))
        self._rates: dict[tuple[str, str], float] = {}
        self._sent: dict[tuple[str, str], tuple[float, float]] = {}  # when, and what was left over
        if self.powered and power_rng.random() < 0.5:
            # Outages alone, one after the other, so that there are many in which nothing else goes wrong.
            self.faults = Faults(1.0, 0.0, 0.0, ())
            self.one_at_a_time = True
        self.finishes_s = rng.uniform(3, FAULTS_S + 3) if variant.finishes or rng.random() < 0.15 else None
        self.hosts = [self._host(f"{chr(97 + at)}", count) for at in range(count)]
        if rng.random() < 0.5:  # the hosts have the store already
            for host in self.hosts:
                host.store = SimStore("one")
        if self.powered:
            for host in self.hosts:
                host.feed = Feed(self, host)

    def _host(self, name: str, count: int) -> Host:
        rng = self.rng
        clock = SimClock(self, rng.randrange(10**9, 10**14), 1 + rng.uniform(-RATE, RATE))
        policy = Policy(
            name=name,
            instance=name,
            ttl_ns=to_ns(TTL_S),
            create=True,
            peers=count - 1,
            restarts=rng.choice((0, 1, 3)),
            stop_timeout_ns=to_ns(0.5),
            drain_timeout_ns=to_ns(1.0),
            backoff_limit_ns=to_ns(1.0),
            little_bytes=LITTLE,
        )
        if self.powered:
            power_rng = self.power_rng
            policy = replace(
                policy,
                outage_hold_ns=to_ns(power_rng.choice((0.0, 0.0, 5.0))),
                outage_stop_ns=to_ns(power_rng.choice((0.3, 0.8))),
                signal_early=power_rng.random() < 0.3,
                sheds=power_rng.random() < 0.5,
                arrival_limit_ns=to_ns(3.0),
            )
        return Host(self, name, clock, policy)

    # time

    @property
    def now_s(self) -> float:
        return self.now_ns / 1e9

    def at(self, when_ns: int, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(when_ns, self.now_ns), next(self._order), what))

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        self.at(self.now_ns + to_ns(delay_s), what)

    def tell(self, host: Host | None, text: str) -> None:
        self.story.append(f"{self.now_s:9.4f}  {host.name if host else '*':<2} {text}")

    def host(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def run(self) -> None:
        for host in self.hosts:
            self.after(self.rng.uniform(0, 0.2), host.start)
            self.after(self.rng.uniform(0, 0.02), lambda host=host: self._ship(host))  # type: ignore[misc]
        if self.faults.kinds:
            self.after(1.5, self._fault)
        if self.powered:
            self.after(1.5, self._power_fault)
        self.handovers.begin()
        self.after(FAULTS_S, self._heal)
        end_ns = to_ns(FAULTS_S + CALM_S)
        while self._queue and self._queue[0][0] <= end_ns:
            self.now_ns, _, what = heapq.heappop(self._queue)
            what()
            self.checker.accepting()
        self.now_ns = end_ns
        self.checker.at_the_end()

    # the command

    def command_started(self, host: Host) -> None:
        started = host.command.changed_ns

        def work() -> None:
            if not host.command.running or host.command.changed_ns != started:
                return
            if not host.paused and host.accepts() and host.has_room():
                assert host.store is not None
                self.commits += 1
                host.store.log.append(self.commits)
                host.last_commit_s = self.now_s
                if self.finishes_s is not None and self.now_s >= self.finishes_s and host.supervised:
                    self.tell(host, "the command finishes its work")
                    host.command_ends(0)
                    return
            self.after(self.rng.uniform(0.01, 0.03), work)

        self.after(0.02, work)

    def supervisor_ended(self, host: Host) -> None:
        host.command = type(host.command)()
        self.after(self.rng.uniform(0.2, 1.5), lambda: self._revive(host))

    def _revive(self, host: Host) -> None:
        if not host.supervised:
            host.disturbed_s = self.now_s
            host.start()

    # links

    def _ship(self, host: Host) -> None:
        """A primary's shipper sends to every other host what that lacks."""
        self.after(self.rng.uniform(0.01, 0.03), lambda: self._ship(host))
        if not host.shipper.running or host.paused or host.store is None:
            return
        if host.store.epochs[-1] != host.command_epoch:
            return
        for other in self.hosts:
            slow = self.rng.random() < 0.3  # standbys do not hear everything at the same time
            if other is not host and not slow and frozenset((host.name, other.name)) not in self.cut_links:
                self._send(host, other)

    def _send(self, host: Host, other: Host) -> None:
        if other.paused or not other.receiver.running or not host.shipper.running:
            host.acked.pop(other.name, None)
            return
        source, target = host.store, other.store
        assert source is not None
        if target is not None and target.epoch > source.epochs[-1]:
            self.tell(host, f"is refused by {other.name}: epoch {target.epoch} exists")
            source.fence_epoch = max(source.fence_epoch, target.epoch)
            host.part_fails("shipper")
            return
        if target is not None and target.complete and target.uuid != source.uuid:
            return
        if target is None or not target.complete:
            self._snapshot(host, other)
            return
        target.epoch = max(target.epoch, source.epochs[-1])
        capacity = self._capacity(host, other)
        if not capacity:
            return
        common = _common(source.log, target.log)
        if common < len(target.log):
            self.tell(other, f"keeps {len(target.log) - common} orphaned commits aside")
            del target.log[common:]
        batch = source.log[common : common + self.rng.choice((1, 5, 50, 1000))][:capacity]
        target.log.extend(batch)
        link = (host.name, other.name)
        self._sent[link] = (self.now_s, self._sent[link][1] - len(batch))
        begun = [each for each in source.epochs if source.begins.get(each, 0) <= len(target.log)]
        target.epochs, target.begins = begun, {each: source.begins.get(each, 0) for each in begun}
        acked = len(target.log)
        self.after(self.rng.uniform(0.001, 0.02), lambda: self._acknowledge(host, other, acked))

    def rate(self, host: str, other: str) -> float:
        """What the link carries, in commits per second."""
        if not self.powered or self.calm:
            return 1e6
        link = (host, other)
        if link not in self._rates:
            self._rates[link] = self.power_rng.choice((1e6, 60.0, 30.0, 15.0))
        return self._rates[link]

    def _capacity(self, host: Host, other: Host) -> int:
        """Commits that the link carries now, since it was used last."""
        link, rate = (host.name, other.name), self.rate(host.name, other.name)
        saved = self._sent.get(link, (self.now_s, 0.0))
        # What was not used lately may be made up for: the link is full, only this shipper does not look all the time.
        tokens = min(saved[1] + (self.now_s - saved[0]) * rate, 1 + 0.3 * rate)
        self._sent[link] = (self.now_s, tokens)
        return int(tokens)

    def _acknowledge(self, host: Host, other: Host, acked: int) -> None:
        source = host.store
        if source is None or host.paused or not host.shipper.running:
            return
        before = host.acked.get(other.name, 0)
        host.acked[other.name] = max(before, acked)
        if host.accepts():  # a copy that is confirmed after the deadline is not confirmed to the application
            self.checker.acknowledged(source.log[:acked][-200:], other.name)

    def _snapshot(self, host: Host, other: Host) -> None:
        source = host.store
        assert source is not None
        if other.store is None:
            self.tell(other, f"begins a snapshot from {host.name}")
            # In the middle of it some pages are there and some are not.
            other.store = SimStore(
                source.uuid, source.log[len(source.log) // 3 :], list(source.epochs), epoch=source.epochs[-1]
            )
            other.store.complete = False
        elif self.rng.random() < (0.2 if self.calm else 0.02):
            self.tell(other, "has its snapshot")
            other.store = SimStore(
                source.uuid, list(source.log), list(source.epochs), dict(source.begins), source.epochs[-1]
            )

    # faults

    def _fault(self) -> None:
        if self.calm:
            return
        rng = self.rng
        self.after(rng.expovariate(1 / self.faults.every_s), self._fault)
        host = rng.choice(self.hosts)
        kind = rng.choice(self.faults.kinds)
        span_s = rng.choice((0.1, 0.5, 1.2, 3.0)) * rng.uniform(0.5, 1.5)
        self.tell(host, f"FAULT {kind}, {span_s:.2f} s")
        if kind != "command-fails":
            host.disturbed_s = max(host.disturbed_s, self.now_s + span_s)
        match kind:
            case "pause":
                host.pause(self.now_ns + to_ns(span_s))
                self.at(host.paused_until_ns, host.step)
            case "crash":
                host.crash()
                self.after(span_s, lambda: self._revive(host))
            case "kill-supervisor":
                host.kill_supervisor()
                self.after(span_s, lambda: self._revive(host))
            case "command-fails":
                host.command_ends(1)
            case "cut-off":
                host.cut_off = True
                self.after(span_s, lambda: self._join(host))
            case "cut-link":
                other = rng.choice([each for each in self.hosts if each is not host])
                link = frozenset((host.name, other.name))
                other.disturbed_s = max(other.disturbed_s, self.now_s + span_s)
                self.cut_links.add(link)
                self.after(span_s, lambda: self.cut_links.discard(link))
            case "stop":
                if host.supervised:
                    host.ask_to_stop()
            case "part-fails":
                host.part_fails("shipper")
                host.part_fails("receiver")

    def _power_fault(self) -> None:
        if self.calm:
            return
        rng = self.power_rng
        self.after(rng.expovariate(1 / self.outages_every_s), self._power_fault)
        running = [each for each in self.hosts if each.command.running]
        host = rng.choice(running if running and rng.random() < 0.6 else self.hosts)
        feed = host.feed
        assert feed is not None
        if self.one_at_a_time and any(each.feed and each.feed.in_trouble() for each in self.hosts):
            return
        kind = rng.choice(("outage", "outage", "outage", "outage", "source-lost", "forced"))
        if kind == "source-lost":
            span_s = rng.choice((0.3, 1.5, 3.0))
            self.tell(host, f"FAULT the power source is lost, {span_s} s")
            feed.lost, feed.troubled_s = True, self.now_s
            self.after(span_s, feed.found)
        elif feed.mains and not feed.forced and host.powered:
            if kind == "outage":
                self.tell(host, f"FAULT {outage(self, feed, lambda: self._mains_back(host))}")
                return
            feed.force()
            self.after(rng.uniform(0.8, 3.0), host.power_cut)
            self.after(rng.uniform(3.1, 4.0), lambda: self._mains_back(host))

    def _mains_back(self, host: Host) -> None:
        feed = host.feed
        assert feed is not None
        feed.set_mains(True)
        if not host.powered:
            feed.forget_orders()
            host.powered = True
            self.after(self.power_rng.uniform(0.1, 0.6), lambda: self._revive(host))

    def _join(self, host: Host) -> None:
        host.cut_off = False

    def _heal(self) -> None:
        self.tell(None, "all faults end")
        self.calm = True
        self.cut_links.clear()
        self.faults.lost_answers = self.faults.slow = 0.0
        for host in self.hosts:
            host.cut_off = False
            if host.feed is not None:
                host.feed.found()
                if not host.feed.forced:  # who is forced down is cut soon, and comes back by itself
                    self._mains_back(host)
            if not host.supervised:
                self.after(0.1, lambda host=host: self._revive(host))  # type: ignore[misc]


def _common(one: list[int], two: list[int]) -> int:
    if one[: len(two)] == two:
        return len(two)
    return next(
        (at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )
