"""One plan for 10,000 groups on 8 packages on one core: observation, state and policy in; every figure and reason out.

The host is made up: 8 packages of 32 processors, independent idle states, memory on 8 nodes, groups that began anew and
groups that somebody else has bound. Three plans are timed: one that changes nothing, one that moves as many as a plan
may by default, and one that hears what came of that. There is no peer that plans for so many; 1,000 and 100 groups
stand beside it. Sensing is not in it.
"""

import time

import numpy as np

from bench.harness import Answer, interleave, medians
from sustain.schedulers.packages.decide import decide
from sustain.schedulers.packages.model import (
    Cpus,
    Effect,
    Finding,
    Groups,
    Kind,
    Node,
    Observation,
    Package,
    Verdict,
)
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.state import State

QUESTION = "one plan for 10,000 groups on 8 packages"
_PACKAGES, _CORES = 8, 32
_REACH_MS = 50.0
_GIB = float(1 << 30)
_KIND: Kind = "cgroup"


def made_up(count: int, at_s: float, seed: int) -> Observation:
    """`count` groups that together use a third of the host. One in ten is bound by its owner, one in twenty anew."""
    random = np.random.default_rng(seed)
    cpus = _PACKAGES * _CORES
    numbers = np.arange(cpus, dtype=np.int32)
    use = np.full(cpus, 0.33)
    everywhere, bound = tuple(range(cpus)), tuple(range(4))
    names = tuple(f"vms.{number}" for number in range(count))
    return Observation(
        now_s=at_s,
        cpus=Cpus(
            number=numbers,
            package=numbers // _CORES,
            die=numbers * 0,
            core=numbers % _CORES,
            node=numbers // _CORES,
            busy_s=use * at_s,
            idle_s=(1 - use) * at_s,
            asleep_s=(1 - use) * at_s,
        ),
        groups=Groups(
            name=names,
            life=tuple(f"{number}:{int(at_s) if number % 20 == 0 else 1}" for number in range(count)),
            kind=(_KIND,) * count,
            used_s=np.full(count, 0.33 * cpus / count * at_s),
            threads=random.integers(1, 64, count).astype(np.int32),
            realtime=np.zeros(count, np.int32),
            pinned=np.zeros(count, np.int32),
            place=(np.arange(count) % 10 == 0).astype(np.int32),
            memory_bytes=random.uniform(0, 0.01, (count, _PACKAGES)).reshape(-1) * _GIB,
        ),
        packages=tuple(
            Package(
                number=each,
                residency_s={"pc2": 0.1 * at_s, "pc6": 0.2 * at_s},
                read_s=at_s,
                source="perf",
                energy_j=80.0 * at_s,
                energy_read_s=at_s,
                power_source="powercap",
            )
            for each in range(_PACKAGES)
        ),
        nodes=tuple(
            Node(number=each, total_bytes=512 * _GIB, free_bytes=256 * _GIB) for each in range(_PACKAGES)
        ),
        places=(everywhere, bound),
        host="made up",
        findings=tuple(
            Finding(package=each, state="pc6", independence="independent", how="active test")
            for each in range(_PACKAGES)
        ),
        verdicts=tuple(
            Verdict(package=each, kept=True, unit="W", saving=20.0, low=15.0, high=25.0, load=80.0, at_s=1.0)
            for each in range(_PACKAGES)
        ),
    )


def answer(quick: bool = False) -> Answer:
    """Milliseconds of one plan, the dearest of three kinds."""
    rounds = 3 if quick else 15
    count = 1000 if quick else 10_000
    sizes = (count, 1000, 100)
    still = Policy()
    moving = Policy(pack_after_s=21.0)
    cases: dict[str, tuple[Observation, State, Policy, tuple[Effect, ...]]] = {}
    actions = 0
    for size in dict.fromkeys(sizes):
        looks = [made_up(size, at_s, seed) for seed, at_s in enumerate((100.0, 110.0, 140.0, 150.0))]
        state = decide(looks[0], None, still, 100.0).state
        state = decide(looks[1], state, still, 110.0).state
        cases[f"{size}, nothing to do"] = looks[2], state, still, ()
        cases[f"{size}, some are moved"] = looks[2], state, moving, ()
        moved = decide(looks[2], state, moving, 140.0)
        effects = tuple(Effect(action=each, outcome="done") for each in moved.plan.actions)
        cases[f"{size}, some were moved"] = looks[3], moved.state, moving, effects
        actions = max(actions, len(effects))

    def measure(name: str) -> float:
        seen, state, policy, effects = cases[name]
        begun = time.perf_counter()
        decide(seen, state, policy, seen.now_s, effects)
        return (time.perf_counter() - begun) * 1e3

    figures = medians(interleave(rounds, {name: lambda name=name: measure(name) for name in cases}))
    ours = max(value for name, value in figures.items() if name.startswith(f"{count},"))
    found = Answer(
        question=QUESTION,
        unit="ms",
        ours=ours,
        peers={},
        limit={},
        runs=rounds,
        quick=quick,
        details={
            "by number of groups": {name: {"ms": value} for name, value in figures.items()},
            "the plan": {"groups that are moved by one plan": actions},
        },
    )
    found.ask(f"10,000 groups within {_REACH_MS:g} ms", found.ours, lambda value: value <= _REACH_MS)
    return found
