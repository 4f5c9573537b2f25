"""A made-up host for tests of deciding: packages whose counters follow a simple rule, and groups that use some of it.

The rule: work is spread as evenly as where groups may run allows. A package without work is in its deep state but
for a hundredth of the time; one with any is in it for `fragmented` of its idle time. Where states are coordinated it is
in it only as long as the busiest package lets it. Watts are `asleep_w` or `awake_w` and `core_w` for each processor at
work. It is no model of real hardware: that is the simulator's.
"""

from dataclasses import dataclass, field

import numpy as np
from sim.packages.balance import balanced

from sustain.schedulers.packages.decide import decide
from sustain.schedulers.packages.model import (
    MIXED,
    Action,
    Cpus,
    Effect,
    Finding,
    Groups,
    Node,
    Observation,
    Package,
    Place,
    Release,
    Verdict,
)
from sustain.schedulers.packages.plan import Plan
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.state import State

INDEPENDENT = "independent"


@dataclass
class Group:
    """One group; `cpus` None: all of them."""

    use: float
    cpus: tuple[int, ...] | None = None
    realtime: int = 0
    pinned: int = 0
    life: str = "1"
    bytes: tuple[float, ...] = ()  # by node
    found: tuple[int, ...] | None = None  # where it was before anybody placed it
    ours: tuple[int, ...] | None = None  # where we placed it


@dataclass
class Machine:
    """Advance it by `tick`, which also carries plans out."""

    packages: int = 2
    cores: int = 8
    groups: dict[str, Group] = field(default_factory=dict)
    independence: str | None = INDEPENDENT  # what is known of pc6
    coordinated: bool = False  # what is so
    counters: bool = True
    watts: bool = True
    asleep_w: float = 20.0
    awake_w: float = 45.0
    core_w: float = 3.0
    fragmented: float = 0.1
    parked_w: float | None = None
    noise_w: float = 0.0
    policy: Policy = field(default_factory=Policy)
    metrics: dict[str, float] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    pressure: float | None = None
    offline: frozenset[int] = frozenset()
    outside: dict[int, float] = field(default_factory=dict)  # use by package of what is in no group
    seed: int = 1
    now_s: float = 1000.0

    def __post_init__(self) -> None:
        count = self.packages * self.cores
        self.busy_s, self.idle_s = np.zeros(count), np.zeros(count)
        self.pc6_s, self.energy_j = np.zeros(self.packages), np.zeros(self.packages)
        self.used_s: dict[str, float] = {}
        self.state: State | None = None
        self.effects: tuple[Effect, ...] = ()
        self.written = 0
        self.refuse: set[str] = set()
        self.later: set[str] = set()
        self.mixed: set[str] = set()  # groups a part of which somebody else has bound
        self.unseen: set[str] = set()  # groups that are there, and not in the next looks
        self.random = np.random.default_rng(self.seed)

    @property
    def online(self) -> tuple[int, ...]:
        return tuple(cpu for cpu in range(self.packages * self.cores) if cpu not in self.offline)

    def cpus_of(self, package: int) -> tuple[int, ...]:
        return tuple(range(package * self.cores, (package + 1) * self.cores))

    def use(self) -> np.ndarray:
        """Of each package, processors in use: the kernel balances groups among those that they may use."""
        outside = np.array([self.outside.get(each, 0.0) for each in range(self.packages)])
        want = [*outside.tolist(), *(group.use for group in self.groups.values())]
        places = [*np.eye(self.packages), *(self.place(group.cpus) for group in self.groups.values())]
        shares = balanced(np.array(want), np.array(places))
        return np.minimum((np.array(want)[:, None] * shares).sum(axis=0), self.cores)

    def place(self, cpus: tuple[int, ...] | None) -> np.ndarray:
        """The share of its processors that each package has."""
        packages = [cpu // self.cores for cpu in (cpus or self.online) if cpu not in self.offline]
        return np.bincount(packages, minlength=self.packages) / max(1, len(packages))

    def residency(self, use: np.ndarray) -> np.ndarray:
        shares = np.where(use < 0.01, 0.99, self.fragmented * (1 - use / self.cores))
        if self.coordinated:
            for package in range(self.packages):
                most = max(min(1.0, use[other]) for other in range(self.packages))
                shares[package] = min(shares[package], 1 - most)
        return shares

    def run(self, seconds: float) -> None:
        """Time passes."""
        use = self.use()
        shares = self.residency(use)
        for package in range(self.packages):
            rows = [cpu for cpu in self.cpus_of(package) if cpu not in self.offline]
            self.busy_s[rows] += seconds * use[package] / max(1, len(rows))
            self.idle_s[rows] += seconds * (1 - use[package] / max(1, len(rows)))
            self.pc6_s[package] += seconds * shares[package]
            watts = shares[package] * self.asleep_w + (1 - shares[package]) * self.awake_w
            watts += self.core_w * use[package] + self.noise_w * self.random.standard_normal()
            self.energy_j[package] += seconds * watts
        for name, group in self.groups.items():
            self.used_s[name] = self.used_s.get(name, 0.0) + seconds * group.use
        self.now_s += seconds

    def look(self) -> Observation:
        online = np.array(self.online, np.int32)
        rows = online.tolist()
        cpus = Cpus(
            number=online,
            package=(online // self.cores).astype(np.int32),
            die=np.zeros(len(online), np.int32),
            core=(online % self.cores).astype(np.int32),
            node=(online // self.cores).astype(np.int32),
            busy_s=self.busy_s[rows],
            idle_s=self.idle_s[rows],
            asleep_s=np.full(len(online), np.nan),
        )
        places: list[tuple[int, ...]] = []
        place = []
        shown = {name: group for name, group in self.groups.items() if name not in self.unseen}
        for name, group in shown.items():
            if name in self.mixed and group.ours is not None:
                place.append(MIXED)
                continue
            where = tuple(sorted(group.cpus)) if group.cpus else self.online
            if where not in places:
                places.append(where)
            place.append(places.index(where))
        groups = list(shown.values())
        nodes = self.packages
        return Observation(
            now_s=self.now_s,
            cpus=cpus,
            groups=Groups(
                name=tuple(shown),
                life=tuple(each.life for each in groups),
                kind=("cgroup",) * len(groups),
                used_s=np.array([self.used_s.get(name, 0.0) for name in shown]),
                threads=np.full(len(groups), 4, np.int32),
                realtime=np.array([each.realtime for each in groups], np.int32),
                pinned=np.array([each.pinned for each in groups], np.int32),
                place=np.array(place, np.int32),
                memory_bytes=np.array([each.bytes or (0.0,) * nodes for each in groups], float).reshape(-1),
            ),
            packages=tuple(
                Package(
                    number=each,
                    residency_s={"pc6": float(self.pc6_s[each])} if self.counters else {},
                    read_s=self.now_s if self.counters else None,
                    source="perf" if self.counters else "none",
                    energy_j=float(self.energy_j[each]) if self.watts else None,
                    energy_read_s=self.now_s if self.watts else None,
                    power_source="powercap" if self.watts else "none",
                )
                for each in range(self.packages)
            ),
            nodes=tuple(Node(number=each, total_bytes=64e9, free_bytes=32e9) for each in range(nodes)),
            places=tuple(places),
            host="made up",
            findings=()
            if self.independence is None
            else tuple(
                Finding(
                    package=each,
                    state="pc6",
                    independence=self.independence,  # type: ignore[arg-type]
                    how="active test",
                    parked_w=self.parked_w,
                )
                for each in range(self.packages)
            ),
            verdicts=self.verdicts,
            metrics=dict(self.metrics),
            pressure=self.pressure,
        )

    def tick(self, seconds: float = 10.0) -> Plan:
        """Let time pass, look, decide, act."""
        self.run(seconds)
        seen = self.look()
        decision = decide(seen, self.state, self.policy, self.now_s, self.effects)
        self.state = decision.state
        self.effects = tuple(self.act(each) for each in decision.plan.actions)
        return decision.plan

    def act(self, action: Action) -> Effect:
        assert isinstance(action, (Place, Release))
        group = self.groups.get(action.group)
        if action.group in self.later:
            return Effect(action=action, outcome="again later")
        if group is None or group.life != action.life:
            return Effect(action=action, outcome="gone")
        if action.group in self.refuse:
            return Effect(action=action, outcome="refused", detail="as the test wants it")
        if group.ours is not None and group.cpus != group.ours and self.online_of(group.ours):
            group.found = group.ours = None
            return Effect(action=action, outcome="changed")
        self.written += 1
        if isinstance(action, Place):
            if group.found is None:
                group.found = group.cpus or ()
            group.cpus = group.ours = action.cpus
        elif group.ours is not None:
            group.cpus = group.found or None
            group.found = group.ours = None
        return Effect(action=action, outcome="done", written=1)

    def online_of(self, cpus: tuple[int, ...]) -> bool:
        return any(cpu in self.online for cpu in cpus)

    def ticks(self, seconds: float, step_s: float = 10.0) -> list[Plan]:
        """So long, in steps."""
        return [self.tick(step_s) for _ in range(round(seconds / step_s))]
