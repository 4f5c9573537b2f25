"""Our own decision on a simulated host: it sees counters as a real host has them, and its actions are carried out.

Used by the benchmark and the tests. The kernel balances each group over the packages that it may use (`balance`). What
the agent finds out once, by `sustain packages test`, is found out here on the model in the same way (`findings`). A
core of the model has one speed, and that is what it tells. Looks are `LOOK_S` apart, and `TRIAL_S` while a transaction
is under way or room is short, so that a month takes seconds; on a host they are `every` apart (10 s), which only
shortens the time to act.
"""

from dataclasses import dataclass, field

import numpy as np

from sim.packages.groups import Load
from sim.packages.hardware import ROME, Host
from sim.packages.machine import Interval
from sim.packages.policies import Seen
from sim.packages.power import PackageStates, package_w
from sim.packages.residency import Floats, Residency, residency
from sustain.schedulers.packages.decide import decide
from sustain.schedulers.packages.model import (
    Action,
    Cpus,
    Effect,
    Finding,
    Groups,
    Independence,
    Kind,
    Node,
    Observation,
    Package,
    Place,
    Release,
)
from sustain.schedulers.packages.plan import Plan
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.state import State

LOOK_S = 60.0
TRIAL_S = 20.0
_START_S = 1000.0
_HZ = 2.6e9
_STATES = ("pc2", "pc6")


@dataclass
class Ours:
    """A controller. `noise_w`: one standard deviation of what the energy counter of each package shows for an interval.
    `tested`: whether `sustain packages test` was run. `trials`, `kept`: transactions that were begun, and kept."""

    load: Load
    host: Host
    policy: Policy = field(default_factory=Policy)
    noise_w: float = 0.0
    seed: int = 1
    tested: bool = True
    state: State | None = None
    plan: Plan | None = None
    trials: int = 0
    kept: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)  # plans by their verdict

    def __post_init__(self) -> None:
        host, count = self.host, self.host.threads
        self._random = np.random.default_rng(self.seed)
        self._now_s = _START_S
        self._busy_s, self._idle_s = np.zeros(count), np.zeros(count)
        self._energy_j = np.zeros(host.packages)
        self._residency_s = {state: np.zeros(host.packages) for state in _STATES}
        self._used_s = np.zeros(len(self.load.names))
        self._pressure = 0.0
        self._effects: tuple[Effect, ...] = ()
        self._findings = findings(host) if self.tested else ()
        each = host.cores * host.smt
        numbers = np.arange(count, dtype=np.int32)
        self._package = numbers // each
        self._core = numbers % each // host.smt
        self._numbers = numbers
        self._memory = np.full((len(self.load.names), host.packages), 1.0 / host.packages)
        self._places: list[tuple[int, ...]] = [tuple(numbers.tolist())]
        self._place = np.zeros(len(self.load.names), np.int32)
        self._kinds: tuple[Kind, ...] = tuple("cgroup" for _ in self.load.names)
        self._rows = {name: row for row, name in enumerate(self.load.names)}

    @property
    def tick_s(self) -> float:
        """When to look again."""
        hurried = self.state is not None and (
            self.state.trial is not None or np.isfinite(self.state.short_since_s)
        )
        return TRIAL_S if hurried else LOOK_S

    def place(self, seen: Seen, last: Interval | None) -> Floats:
        if last is not None:
            self._passed(last)
        observed = self.observe()
        had = self.state.trial if self.state is not None else None
        made = decide(observed, self.state, self.policy, self._now_s, self._effects)
        self.state, self.plan = made.state, made.plan
        self._findings += made.plan.proved
        self._count(had)
        self._effects = tuple(self._do(action) for action in made.plan.actions)
        return self._shares()

    def observe(self) -> Observation:
        """What a real host would show now."""
        host, groups = self.host, len(self.load.names)
        return Observation(
            now_s=self._now_s,
            cpus=Cpus(
                number=self._numbers,
                package=self._package,
                die=np.zeros(len(self._numbers), np.int32),
                core=self._core,
                node=self._package,
                busy_s=self._busy_s.copy(),
                idle_s=self._idle_s.copy(),
                asleep_s=self._idle_s.copy(),
            ),
            groups=Groups(
                name=self.load.names,
                life=("1",) * groups,
                kind=self._kinds,
                used_s=self._used_s.copy(),
                threads=self.load.threads.astype(np.int32),
                realtime=np.zeros(groups, np.int32),
                pinned=np.zeros(groups, np.int32),
                place=self._place.copy(),
                memory_bytes=(self._memory * self.load.memory_bytes[:, None]).ravel(),
            ),
            packages=tuple(self._package_seen(number) for number in range(host.packages)),
            nodes=tuple(
                Node(number=number, total_bytes=whole, free_bytes=whole - float(used))
                for number, (whole, used) in enumerate(self._nodes())
            ),
            places=tuple(self._places),
            host=f"simulated {host.name}",
            virtual=False,
            findings=self._findings,
            pressure=self._pressure,
        )

    def _package_seen(self, number: int) -> Package:
        counted = counters(self.host)
        return Package(
            number=number,
            residency_s={state: float(self._residency_s[state][number]) for state in counted},
            read_s=self._now_s if counted else None,
            source="perf" if counted else "none",
            energy_j=float(self._energy_j[number]),
            energy_read_s=self._now_s,
            power_source="powercap",
            base_hz=_HZ,
            most_hz=_HZ,
        )

    def _nodes(self) -> list[tuple[float, float]]:
        """(all, used) of each: there is room for all groups' memory on any one."""
        used = (self._memory * self.load.memory_bytes[:, None]).sum(axis=0)
        return [(1.2 * float(self.load.memory_bytes.sum()), float(each)) for each in used]

    def _passed(self, last: Interval) -> None:
        """Counters go on."""
        seconds = last.seconds
        busy = last.cpu_use.ravel() * seconds
        self._now_s += seconds
        self._busy_s += busy
        self._idle_s += seconds - busy
        noise = self.noise_w * self._random.standard_normal(self.host.packages) if self.noise_w else 0.0
        self._energy_j += np.maximum(last.watts + noise, 0.0) * seconds
        self._residency_s["pc2"] += last.states.pc2 * seconds
        self._residency_s["pc6"] += last.states.pc6 * seconds
        self._used_s += last.busy
        self._pressure = min(1.0, float(last.stood.sum()) / seconds)
        self._memory = last.memory

    def _do(self, action: Action) -> Effect:
        if isinstance(action, Place | Release):
            cpus = action.cpus if isinstance(action, Place) else self._places[0]
            if cpus not in self._places:
                self._places.append(cpus)
            row, index = self._rows[action.group], self._places.index(cpus)
            written = int(self._place[row] != index)
            self._place[row] = index
            return Effect(action=action, outcome="done", written=written)
        return Effect(action=action, outcome="refused", detail="the simulated host has no such thing")

    def _shares(self) -> Floats:
        """Where each group may run: by the share of its processors that each package has."""
        of_place = np.array(
            [np.bincount(self._package[list(cpus)], minlength=self.host.packages) for cpus in self._places],
            float,
        )
        found: Floats = (of_place / of_place.sum(axis=1, keepdims=True))[self._place]
        return found

    def _count(self, had: object) -> None:
        assert self.plan is not None
        assert self.state is not None
        self.trials += had is None and self.state.trial is not None
        self.kept += sum(each.kept for each in self.plan.judged)
        self.verdicts[self.plan.verdict] = self.verdicts.get(self.plan.verdict, 0) + 1


def counters(host: Host) -> tuple[str, ...]:
    """Package idle states that the part counts: AMD's count none."""
    if host.deep is ROME:
        return ()
    return _STATES if host.pc2 else ("pc6",)


def findings(host: Host) -> tuple[Finding, ...]:
    """The active test on the model: all idle as control, then a spinner on the next package."""
    idle = _tested(host, None)
    found = []
    for number in range(host.packages if host.packages > 1 else 0):
        came = _tested(host, (number + 1) % host.packages)
        awake_w = host.watts.awake_w + host.cores * host.watts.c1_w
        saves_w = awake_w - float(came[1][number])
        if not counters(host):
            could_w = awake_w - float(idle[1][number])
            verdict: Independence = "independent" if saves_w > could_w / 2 else "coordinated"
            found.append(_finding(number, "watts", verdict, saves_w, None))
        for state in counters(host):
            alone, beside = (float(getattr(each[0], state)[number]) for each in (idle, came))
            if max(alone, beside) < 0.1:
                continue  # it shows nothing: a deeper one takes its time
            verdict = "independent" if beside > alone / 2 else "coordinated"
            found.append(_finding(number, state, verdict, saves_w, beside))
    return tuple(found)


def _tested(host: Host, spinner: int | None) -> tuple[Residency, Floats]:
    """Residency and watts of packages with nothing but a spinner on one."""
    use = np.full((host.packages, host.cores), host.background)
    if spinner is not None:
        use[spinner, 0] = 1.0
    came = residency(host, use, np.full(use.shape, host.wakeups_per_s))
    states = PackageStates(active=use.sum(axis=1), c1=came.c1.sum(axis=1), pc2=came.pc2, pc6=came.pc6)
    return came, package_w(host, states)


def _finding(package: int, state: str, verdict: Independence, saves_w: float, share: float | None) -> Finding:
    independent = verdict == "independent"
    return Finding(
        package=package,
        state=state,
        independence=verdict,
        how="active test",
        detail="simulated",
        parked_w=saves_w if independent else None,
        parked_error_w=0.1 if independent else None,
        parked_share=share if independent else None,
    )
