"""A simulated host that serves the work of groups of threads on the packages they are placed on.

Used by `run`. In each interval a group wants its demand and what it could not do before, at most as much as it has
threads. Work is in core-seconds: what a core does in a second that its second thread leaves alone. The kernel spreads
what is placed on a package evenly over its cores. Up to as much work as there are cores each busy thread has its own;
beyond, second threads work too, and two threads on a core do `SMT_YIELD` together, so each is slower; beyond what all
can do, work waits. A share of a group that runs where its memory is not takes `REMOTE_SLOWDOWN` longer, until memory
has followed. A group that is moved costs CPU time there: for its caches, and for each byte of memory that follows.
Nothing is lost: what was wanted is done, or waits.
"""

from dataclasses import dataclass, field

import numpy as np

from sim.packages.balance import balanced
from sim.packages.hardware import Host
from sim.packages.power import PackageStates, package_w
from sim.packages.residency import Floats, Residency, residency

# Assumptions about work, of no host in particular; each is said wherever figures that hang on it are shown.
SMT_YIELD = 1.25  # work of a core with two busy threads
REMOTE_SLOWDOWN = 0.12  # a fifth of the time waits for memory, which is 1.6 times as far
FOLLOWS_S = 600.0  # after which e⁻¹ of the memory has not followed its group (automatic NUMA balancing)
COPY_BYTES_PER_S = 2e9  # by one core
COLD_S = 0.02  # of a core, for each thread that finds its caches cold
WAKEUPS_PER_BUSY_S = 200.0  # a thread that works runs 5 ms at a time
WAKEUPS_PER_THREAD_S = 2.0  # of a thread that does not


@dataclass(frozen=True)
class Interval:
    """What was in one interval; simulated. Arrays over packages unless they say otherwise."""

    seconds: float
    load: Floats  # cores' worth of time that was wanted, remote memory and moves included
    served: Floats  # of that
    threads: Floats  # mean number of busy threads
    core_use: Floats  # packages x cores: share of time in which at least one thread of the core is busy
    states: Residency
    watts: Floats
    host_w: float  # all packages and the base
    done: Floats  # of each group, core-seconds of work
    busy: Floats  # of each group, seconds of its threads that this took
    late: Floats  # of each group, core-seconds of its demand that were not done in the interval
    stood: Floats  # of each group, seconds for which threads of it waited
    waiting: Floats  # of each group, core-seconds that stand over at the end
    memory: Floats  # groups x packages: share of each group's memory, at the end
    simulated: bool = True

    @property
    def cpu_use(self) -> Floats:
        """Of each CPU, packages x cores x threads of a core: the first thread is filled before the second."""
        cores, count = self.core_use.shape[1], self.threads
        first = self.core_use
        second = np.repeat(np.clip(count / cores - 1.0, 0.0, 1.0)[:, None], cores, axis=1)
        return np.stack([first, second], axis=2)


def settle(
    host: Host, threads: Floats, wakeups_per_s: Floats | float = 0.0, aligned: float = 0.0
) -> tuple[Floats, Residency, PackageStates]:
    """Use of cores, residency and states of packages on which so many threads are busy on average, spread evenly, and
    so many wake-ups a second come on top of those of busy threads and of the host itself."""
    first = np.clip(threads / host.cores, 0.0, 1.0)
    use = np.repeat(np.maximum(first, host.background)[:, None], host.cores, axis=1)
    own = host.wakeups_per_s + WAKEUPS_PER_BUSY_S * first + np.asarray(wakeups_per_s) / host.cores
    found = residency(host, use, np.repeat(own[:, None], host.cores, axis=1), aligned)
    states = PackageStates(
        active=use.sum(axis=1),
        c1=found.c1.sum(axis=1),
        pc2=found.pc2,
        pc6=found.pc6,
        smt=np.clip(threads - host.cores, 0.0, host.cores * (host.smt - 1)),
    )
    return use, found, states


@dataclass
class Machine:
    """Groups of `threads` and `memory_bytes` on a host. `places` (groups x packages; rows make 1) says where each group
    may run: where it is not 0. `shares` is where it runs: the kernel spreads it over those (`balance`). Memory begins
    where its group does. Who is not on all packages at the beginning counts as moved: what nobody places is on all.
    `free_moves`: they take no time and memory follows at once."""

    host: Host
    threads: Floats
    memory_bytes: Floats
    aligned: float = 0.0
    free_moves: bool = False
    backlog: Floats = field(init=False)
    places: Floats | None = field(init=False, default=None)
    shares: Floats | None = field(init=False, default=None)
    moved: int = field(init=False, default=0)  # groups that were placed elsewhere than before, all in all
    # Of groups, what ran elsewhere than before; what the kernel moved, too.
    moved_share: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.backlog = np.zeros(len(self.threads))
        self.memory = np.zeros((len(self.threads), self.host.packages))

    def step(self, demand: Floats, places: Floats, seconds: float) -> Interval:
        """One interval. `demand` of each group is in cores."""
        want = np.minimum(demand + self.backlog / seconds, np.maximum(self.threads, demand))
        moving = self._place(places, want, seconds)
        shares = self.shares
        assert shares is not None
        remote = np.clip(shares - self.memory, 0.0, None)
        slow = 1.0 + REMOTE_SLOWDOWN * remote / np.maximum(shares, 1e-12)
        wanted = want[:, None] * shares * slow  # time, not yet work
        load = wanted.sum(axis=0) + moving
        served = np.minimum(load, self._capacity())
        part = served / np.maximum(load, 1e-12)
        threads = self._threads(served)
        stretch = np.where(served > 0, threads / np.maximum(served, 1e-12), 1.0)
        done = (want[:, None] * shares * part).sum(axis=1) * seconds
        busy = (wanted * part * stretch).sum(axis=1) * seconds
        self.backlog = np.maximum(demand * seconds + self.backlog - done, 0.0)
        wakeups = WAKEUPS_PER_THREAD_S * (self.threads[:, None] * shares).sum(axis=0)
        use, found, states = settle(self.host, threads, wakeups, self.aligned)
        watts = package_w(self.host, states)
        return Interval(
            seconds=seconds,
            load=load,
            served=served,
            threads=threads,
            core_use=use,
            states=found,
            watts=watts,
            host_w=float(self.host.watts.base_w + watts.sum()),
            done=done,
            busy=busy,
            late=np.maximum(demand * seconds - done, 0.0),
            stood=np.minimum(self.backlog, self.threads * seconds),
            waiting=self.backlog.copy(),
            memory=self.memory,
        )

    def _place(self, places: Floats, want: Floats, seconds: float) -> Floats:
        """Move what is placed elsewhere, and what the kernel moves; the cores' worth of time that this takes on each
        package."""
        before, had, remembered = self.places, self.shares, self.memory
        if before is None or had is None:
            self.places, self.shares = places.copy(), balanced(want, places)
            self.memory = self.shares.copy()
            self.moved = int((np.ptp(places, axis=1) > 1e-9).sum())
            return np.zeros(self.host.packages)
        anew = np.abs(places - before).max(axis=1) > 1e-9
        self.moved += int(anew.sum())
        self.places, self.shares = places.copy(), balanced(want, places, np.where(anew[:, None], places, had))
        change = np.clip(self.shares - had, 0.0, None)
        self.moved_share += float(change.sum())
        if self.free_moves:
            self.memory = self.shares.copy()
            return np.zeros(self.host.packages)
        self.memory = remembered + (self.shares - remembered) * (1.0 - np.exp(-seconds / FOLLOWS_S))
        followed = (
            np.clip(self.memory - remembered, 0.0, None) * self.memory_bytes[:, None] / COPY_BYTES_PER_S
        )
        cold = change * self.threads[:, None] * COLD_S
        busy: Floats = (followed + cold).sum(axis=0) / seconds
        return busy

    def _capacity(self) -> float:
        return self.host.cores * (SMT_YIELD if self.host.smt > 1 else 1.0)

    def _threads(self, served: Floats) -> Floats:
        """Busy threads that do so many cores' worth of work."""
        over = np.clip(served - self.host.cores, 0.0, None)
        return served + over * (1.0 / (SMT_YIELD - 1.0) - 1.0)
