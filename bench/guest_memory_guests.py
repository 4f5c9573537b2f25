"""Four real guests on a small host under our policy, MOM's, Proxmox's and none: memory freed, and what it costs.

All at two goals, a fifth and a tenth of the host free. Guests of a policy that misses its goal by far do more work than
those of one that meets it; so each is judged at the goal and the minimum at which its guests do most, and, beside that,
at each goal.

Real: guests, kernels, balloons, guest agents, swap, pages, stalls, kills (`bench/guests.py`). Made: the host's size, to
which its kernel holds the guests; and time, which runs five times as fast: policies look every 2 s, not 10, and for our
decision a second is five. The same for each: guests begun from one saved state, loads, goals, period, actuators. MOM
and Proxmox know of guests what the balloon tells; ours asks their agents as well. Only the host's kernel and ours swap
on the host. Guests have large pages as this host gives them. Both peers run with two minima for guests, which are their
operator's choice: a quarter of a guest's size, which frees most, and three quarters, with which guests do most in
`guest_memory_policies`.

Loads, each at a bounded rate: `cache` reads parts of a disk at random and once much that it needs no more, `cold` wrote
much anonymous memory that it does not use again, `turns` uses much, little and much again, `idle` used much once.
`work` is the mean of the guests' shares of what they do on a host without end, `freed` how much less of the host's
memory they hold than there, with what the host's swap takes. Emulation is slow: a page that is not there costs a guest
about half a millisecond, as a fast disk would.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.lab import guests as lab
from tests.lab import vm

from bench.guests import MIB, Case, Controller, Ran, Script, run, saved_guest
from bench.harness import Answer, interleave, memory_dir, say
from bench.peers.ballooning import MIN_SHARE, Mom, Proxmox
from sustain.schedulers.guest_memory.model import Action, Effect, Observation, Policy

QUESTION = "memory freed and work done under three policies for guests' memory, real guests"
_GOALS = (0.20, 0.10)
_FASTER = 5.0
_PERIOD_S = 10.0 / _FASTER
_ENDLESS = "a host without end"
_MINIMA = {"": MIN_SHARE, ", minimum 0.75": 0.75}  # of a guest, a share of its size


@dataclass(frozen=True)
class Contestant:
    """A policy as its operator has set it up. `least`: what a guest is left, a share of its size."""

    policy: str
    goal: float  # of the host, that is to be free
    least: float = 0.0


_OURS = {f"sustain, goal {goal:g}": Contestant("sustain", goal) for goal in _GOALS}
_PEERS = {
    f"{policy}, goal {goal:g}{said}": Contestant(policy, goal, least)
    for goal in _GOALS
    for policy in ("MOM", "Proxmox")
    for said, least in _MINIMA.items()
}
_NONE = {"nothing": Contestant("nothing", _GOALS[0])}
_ALL = _OURS | _PEERS | _NONE


class Nothing:
    """No policy: the host's kernel alone."""

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]:
        return ()


def case(seconds: float, names: Sequence[str], total_mib: int) -> Case:
    """The loads of those guests, spread over so many seconds."""
    scripts = {
        "cache": Script(4000, (
            (0.04, "cache", 64 * MIB), (0.04, "seek", 64 * MIB), (0.2, "cache", 180 * MIB), (0.7, "cache", 180 * MIB),
        )),
        "cold": Script(8000, ((0.02, "busy", 24 * MIB), (0.28, "anon", 60 * MIB), (0.36, "anon", 120 * MIB))),
        "turns": Script(8000, ((0.12, "busy", 96 * MIB), (0.44, "busy", 12 * MIB), (0.76, "busy", 96 * MIB))),
        "idle": Script(2000, ((0.01, "busy", 8 * MIB), (0.01, "anon", 110 * MIB), (0.06, "anon", 0))),
    }  # fmt: skip
    chosen = {
        name: Script(each.pace, tuple((at * seconds, *what) for at, *what in each.steps))
        for name, each in scripts.items()
        if name in names
    }
    total = total_mib * MIB
    return Case(
        scripts=chosen,
        total_bytes=total,
        goal_bytes=int(_GOALS[0] * total),
        seconds=seconds,
        period_s=_PERIOD_S,
        faster=_FASTER,
    )


class _Runs:
    """All runs, by policy."""

    def __init__(self, what: Case, place: Path) -> None:
        self.found: dict[str, list[Ran]] = {}
        self._case = what
        self._place = place
        self._images = lab.images(vm.kernel("6.12", place), place)

    def one(self, name: str, saved: Path) -> float:
        """A run of that policy; seconds."""
        begun_s = time.monotonic()
        what = self._case
        if name == _ENDLESS:
            what = replace(what, total_bytes=64 << 30, goal_bytes=1)
        else:
            what = replace(what, goal_bytes=int(_ALL[name].goal * what.total_bytes))
        # Guests are a sixteenth of usual ones.
        policy = Policy(goal_free_bytes=what.goal_bytes, least_change_bytes=4 * MIB)
        folder = self._place / f"run{sum(map(len, self.found.values()))}"
        folder.mkdir()
        try:
            ran = run(what, self._images, saved, folder, policy, _controller(name))
        except vm.LabError as error:
            raise vm.LabError(f"under {name}: {error}") from error
        self.found.setdefault(name, []).append(ran)
        say(f"{name}: {asdict(ran)}")
        return time.monotonic() - begun_s

    def answer(self, rounds: int, names: Sequence[str]) -> None:
        with saved_guest(self._images, self._place) as saved:
            interleave(rounds, {name: lambda name=name: self.one(name, saved) for name in names})


def _controller(name: str) -> Controller | None:
    """None: ours, which the run makes itself."""
    if name in _OURS:
        return None
    if name not in _PEERS:
        return Nothing()
    it = _PEERS[name]
    if it.policy == "MOM":
        return Mom(threshold=it.goal, min_share=it.least)
    return Proxmox(used_goal=1 - it.goal, min_share=it.least)


@dataclass(frozen=True)
class Reference:
    """What guests do and hold on a host without end."""

    pages: dict[str, float]
    held_bytes: float


def figures(ran: Ran, reference: Reference) -> dict[str, float | None]:
    """Of one run, beside one on a host without end."""
    return {
        "work": statistics.fmean(ran.pages[name] / reference.pages[name] for name in ran.pages),
        "freed MiB": (reference.held_bytes - ran.held_bytes) / MIB,
        "stall": ran.stall,
        "free swapped MiB": ran.free_swapped_bytes / MIB,
        "host swapped MiB": ran.host_swapped_bytes / MIB,
        "swings/h": ran.swings * 3600 / (ran.ticks * _PERIOD_S * _FASTER),
        "time at goal": ran.goal_share,
        "to the goal s": ran.goal_after_s,
        "killed": ran.killed,
    }


def _median(rows: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    known = {name: [value for row in rows if (value := row[name]) is not None] for name in rows[0]}
    return {name: statistics.median(values) if values else None for name, values in known.items()}


def answer(quick: bool = False) -> Answer:
    """Work done, as a share of what a host without end lets them do."""
    rounds, what = 2, case(50.0, ("cache", "cold", "turns", "idle"), 720)
    if quick:
        rounds, what = 1, case(4.0, ("turns", "idle"), 320)
    names = tuple(name for name, it in _ALL.items() if not quick or it.goal == _GOALS[0])
    with memory_dir() as place:
        runs = _Runs(what, place)
        runs.answer(rounds, (_ENDLESS, *names))
    found = Answer(
        question=QUESTION, unit="share of work", ours=None, peers={}, limit={_ENDLESS: 1.0}, runs=rounds, quick=quick
    )  # fmt: skip
    judge(found, runs.found)
    return found


def judge(found: Answer, runs: Mapping[str, Sequence[Ran]]) -> None:
    """Tables and what is asked, from all runs by policy."""
    reference = _reference(runs[_ENDLESS])
    rows = {
        name: [figures(ran, reference) for ran in each] for name, each in runs.items() if name != _ENDLESS
    }
    table = {name: _median(each) for name, each in rows.items()}
    work = {name: table[name]["work"] or 0.0 for name in table}
    freed = {name: table[name]["freed MiB"] or 0.0 for name in table}
    ours = [name for name in _OURS if name in table]
    peers = [name for name in _PEERS if name in table]
    found.ours = max(work[name] for name in ours)
    found.peers = {name: work[name] for name in table if name not in ours}
    endless = [figures(ran, reference)["work"] or 0.0 for ran in runs[_ENDLESS]]
    spread = {name: _spread([each["work"] or 0.0 for each in rows[name]]) for name in rows}
    spread[_ENDLESS] = _spread(endless)
    found.details["by policy, medians"] = table
    found.details["work by guest, medians"] = {
        name: {
            guest: statistics.median(ran.pages[guest] / reference.pages[guest] for ran in runs[name])
            for guest in reference.pages
        }
        for name in table
    }
    found.details["work, spread between runs of a policy"] = spread
    every = [ran for each in runs.values() for ran in each]
    found.details["the scheduler itself"] = {
        f"{name}: processor ms a tick and guest": statistics.median(ran.tick_s for ran in runs[name]) * 1e3
        for name in (*ours, *peers)
    }
    found.details["this machine"] = {
        "processors idle, least": min(ran.idle for ran in every),
        "ticks skipped, most": max(ran.skipped for ran in every),
        "host over its size": sum(ran.pressed_limit for ran in every),
    }
    for name, each in rows.items():
        for number, row in enumerate(each):
            found.details[f"run {number + 1}: {name}"] = {**row, "balloons": runs[name][number].balloons}
    found.details["who does as much work and frees as much"] = {
        name: {each: work[each] for each in peers if work[each] >= work[name] and freed[each] >= freed[name]}
        for name in ours
    }
    for goal in _GOALS:
        there = {name: value for name, value in work.items() if _ALL[name].goal == goal}
        _ask(found, f"goal {goal:g}: ", there, freed, spread)
    _ask(found, "each at its best: ", {name: work[name] for name in (*ours, *peers)}, freed, spread)
    found.ask("work lost, the least", 1 - found.ours, lambda value: value <= 0.01)
    free = max(table[name]["free swapped MiB"] or 0.0 for name in ours)
    found.ask("free memory of guests that the host swapped, MiB", free, lambda value: value == 0)
    found.notes += [
        "emulated guests: shares of work say what memory costs, not what processors do",
        "the guests' disk reads as zeros, which the host's swap keeps for nothing: that flatters swapping caches",
    ]
    if not any(ran.limited for ran in every):
        found.notes.append("no cgroup or swap here: nothing holds guests to the host's size")


def _ask(
    found: Answer,
    where: str,
    work: Mapping[str, float],
    freed: Mapping[str, float],
    spread: Mapping[str, float],
) -> None:
    """Ours that does most work, beside the peer that does; and what it frees, beside the peer that frees most of those
    which do no less. `work`: of those that are compared."""
    ours, peers = [name for name in _OURS if name in work], [name for name in _PEERS if name in work]
    if not ours or not peers:
        return
    mine, best = (max(each, key=lambda name: work[name]) for each in (ours, peers))
    noise = max(spread[mine], spread[best])
    found.ask(
        f"{where}work, less that of {best} ({noise:.3f} between runs): never below that",
        work[mine] - work[best],
        lambda value: value >= -noise,
    )
    alike = [name for name in peers if work[name] >= work[mine] - noise] or [best]
    most = max(alike, key=lambda name: freed[name])
    found.ask(
        f"{where}freed, beside {most}",
        freed[mine] / freed[most] if freed[most] > 0 else None,
        lambda value: value >= 1.2,
    )


def _reference(runs: Sequence[Ran]) -> Reference:
    return Reference(
        pages={name: statistics.median(ran.pages[name] for ran in runs) for name in runs[0].pages},
        held_bytes=statistics.median(ran.held_bytes for ran in runs),
    )


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)
