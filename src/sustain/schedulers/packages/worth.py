"""Whether emptying a package is worth it, and if not, why not. Pure.

Used by `decide`. What parking saves is never assumed: it is known from a former trial's verdict, from the active test,
or it is unknown, and then a trial finds out where the operator allows one. Where every deep state is coordinated, or
nothing can be measured, packages are let alone, and the reason says so.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.packages.capacity import left, slowdown
from sustain.schedulers.packages.classify import Class
from sustain.schedulers.packages.model import Finding, Observation, Verdict
from sustain.schedulers.packages.placing import Standing, apart
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.situation import Situation
from sustain.schedulers.packages.state import PackageMemory, independent_share

_REACHED = 0.9  # share of time in independent states when parked, where no test has told it
_FILL = 0.9  # of what is free on the other nodes, that memory may take
_BOUND = 0.01  # processors: a bound group that uses less does not keep a package awake
WATTS = "watts"  # the state of findings that were made by the step in watts alone
_SHALLOW = ("pc0", "pc1")
_WAITING = "pc2"  # where a package waits for the others to follow it deeper


@dataclass(frozen=True, slots=True)
class Worth:
    """Of emptying one package. `blocked`: the first reason against it, "": none. `unit`: what a trial would measure."""

    package: int
    blocked: str
    expected_w: float | None  # that it saves
    unit: str
    known: bool  # by a fresh verdict: no trial is needed
    score: float  # in watts, less what moving costs; the highest is emptied first
    reasons: tuple[str, ...]


def unit_of(number: int, at: Situation) -> str:
    """What a trial of parking that package can measure: watts of the host, else its residency, else nothing."""
    if at.all_w:
        return "W"
    share = independent_share(number, dict(at.memory[number].residency), at.seen.findings)
    return "" if share is None else "package"


def worth(number: int, at: Situation) -> Worth:
    """Of emptying package `number`, which is awake."""
    seen, policy, mine = at.seen, at.policy, at.memory[number]
    unit = unit_of(number, at)
    verdict = last_verdict(number, at.verdicts, seen.now_s, policy)
    expected_w, why = expected(number, mine, seen.findings, verdict)
    reasons = [why]
    rest = [each for each in at.awake if each != number]

    def no(blocked: str) -> Worth:
        return Worth(number, blocked, expected_w, unit, verdict is not None, -math.inf, tuple(reasons))

    for blocked in (
        "it is the only package that is awake" if not rest else "",
        _by_class(mine),
        _by_state(number, at, unit, verdict),
        _untried(number, at, verdict),
        _bound(number, at.now, seen),
        mine.rest_why if mine.rest_until_s > seen.now_s else "",
        _refuted(verdict),
        _rests(number, at, expected_w),
        no_room(rest, at),
        _apart(at, rest),
        ""
        if _moves(number, at) or at.policy.interrupts
        else "there is no group of ours to move away from it",
    ):
        if blocked:
            return no(blocked)
    assert at.demand is not None
    remote = _remote(number, at.now, seen, rest, policy)
    slower = slowdown(
        at.demand.mean,
        [at.rooms[each] for each in at.awake],
        [at.rooms[each] for each in rest],
        {each.number: each for each in seen.packages},
        remote.share,
        policy,
    )
    reasons += [f"expected to make work {slower.words}", *remote.reasons]
    if slower.total > policy.most_slowdown:
        return no(f"work would be {slower.words}; at most {policy.most_slowdown:.1%} is allowed")
    if expected_w is not None and expected_w < policy.least_saving_w:
        return no(f"it would save {expected_w:.1f} W, less than {policy.least_saving_w:.1f} W")
    score = (
        (expected_w or 0.0)
        - (mine.load or 0.0)
        - remote.bytes / 2**40
        - policy.move_cost_w * _moves(number, at)
    )
    return Worth(number, "", expected_w, unit, verdict is not None, score, tuple(reasons))


def expected(
    number: int, memory: PackageMemory, findings: tuple[Finding, ...], verdict: Verdict | None
) -> tuple[float | None, str]:
    """Watts that parking it would save now, and how that is known."""
    mine = [each for each in findings if each.package == number]
    tested = [each for each in mine if each.parked_w is not None]
    if verdict is not None and verdict.unit == "W":
        return verdict.saving, f"a trial measured {interval_of(verdict)}"
    if not tested:
        return None, "what parking it would save is unknown until a trial"
    finding = tested[-1]
    assert finding.parked_w is not None
    reached = finding.parked_share or _REACHED
    share = independent_share(number, dict(memory.residency), findings)
    done = 0.0 if share is None else min(1.0, share / reached)
    already = f", {done:.0%} of which it has already" if share is not None else ""
    return (
        finding.parked_w * (1 - done),
        f"by the {finding.how} parking saves {finding.parked_w:.1f} W{already}",
    )


def last_verdict(number: int, verdicts: tuple[Verdict, ...], now_s: float, policy: Policy) -> Verdict | None:
    """The newest on that package that still holds."""
    for each in reversed(verdicts):
        if each.package == number:
            return each if now_s - each.at_s <= policy.verdict_fresh_s else None
    return None


def words_of(verdict: Verdict) -> str:
    """For people."""
    return f"{'kept' if verdict.kept else 'undone'}: {interval_of(verdict)}"


def interval_of(verdict: Verdict) -> str:
    """The saving and its interval, for people."""
    if verdict.unit == "W":
        return f"{verdict.saving:.1f} W saved ({verdict.low:.1f} to {verdict.high:.1f})"
    return (
        f"{verdict.saving:.1%} of a package's time more in independent states "
        f"({verdict.low:.1%} to {verdict.high:.1%}; watts are not measurable here)"
    )


def _by_class(memory: PackageMemory) -> str:
    if memory.kind is None:
        return "its load is unknown yet"
    if memory.kind is Class.HIGH:
        return "its load is high"
    return ""


def _by_state(number: int, at: Situation, unit: str, verdict: Verdict | None) -> str:
    """Whether it can be parked at all, as far as is known."""
    seen = at.seen
    mine = [each for each in seen.findings if each.package == number and each.state not in _SHALLOW]
    known = {each.state: each.independence for each in mine}
    coordinated = [each for each in mine if each.independence == "coordinated"]
    independent = {state for state, what in known.items() if what == "independent"}
    if coordinated and independent <= {_WAITING} and at.policy.trial != "unknown":
        best = coordinated[0]
        what = "its idle power" if best.state == WATTS else best.state
        return (
            f"{what} is coordinated here: it is only reached when all packages idle "
            f"({best.how}{': ' + best.detail if best.detail else ''}), so parking one saves nothing by itself"
            + (
                f"; {_WAITING} is independent, but there a package only waits for the others"
                if independent
                else ""
            )
        )
    if independent:
        if unit or told(number, seen.findings) or verdict is not None:
            return ""
        return "neither watts nor its residency are measurable here, so a saving could not be shown"
    disabled = [each for each in mine if each.independence == "disabled"]
    if disabled:
        first = disabled[0]
        return f"{first.state} is not reached even when all is idle ({first.how}): is it disabled in the firmware?"
    if at.policy.trial == "unknown" and unit:
        return ""
    if seen.virtual:
        return "this host is itself a guest, and its packages' idle states are the real host's"
    package = next(each for each in seen.packages if each.number == number)
    about = f" ({'; '.join(package.problems)})" if package.problems else ""
    if not unit and package.source == "none":
        return f"neither its idle states nor its watts are measurable here{about}"
    return "whether its idle states are independent of the other packages is unknown: `sustain packages test` finds out"


def _untried(number: int, at: Situation, verdict: Verdict | None) -> str:
    """Whether it would take a trial that the operator does not want."""
    if at.policy.trial != "never" or verdict is not None or told(number, at.seen.findings):
        return ""
    return 'what it saves would have to be tried, and trial = "never"'


def told(number: int, findings: tuple[Finding, ...]) -> bool:
    """Whether the operator has said that it can be parked by itself."""
    mine = (each for each in findings if each.package == number and each.how == "told")
    return any(each.independence == "independent" for each in mine)


def _bound(number: int, now: Standing, seen: Observation) -> str:
    """Groups that can run nowhere else, and do."""
    only = np.array([each == {number} for each in now.packages] + [False], np.bool_)
    rows = np.flatnonzero(only[seen.groups.place] & ~now.movable)
    used = np.nan_to_num(now.memory.mean[rows], nan=1.0)
    rows = rows[used >= _BOUND]
    if not len(rows):
        return ""
    names = ", ".join(seen.groups.name[row] for row in rows[:3].tolist())
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return f"{names}{more} may run only there, and we do not move what is set so"


def _moves(number: int, at: Situation) -> int:
    """Groups that may run there and are ours to move."""
    there = np.array([number in each for each in at.now.packages] + [False], np.bool_)
    return int((there[at.seen.groups.place] & at.now.movable).sum())


def _rests(number: int, at: Situation, expected_w: float | None) -> str:
    """Whether it is in independent states so long already that emptying it could bring little."""
    share = independent_share(number, dict(at.memory[number].residency), at.seen.findings)
    if share is None or expected_w is not None or _REACHED - share >= at.policy.least_residency:
        return ""
    return f"it is in independent states for {share:.0%} of the time already"


def no_room(rest: list[int], at: Situation) -> str:
    """Why these packages have no room for what is needed; "": they have."""
    if at.demand is None:
        return "how much is in use is unknown"
    needed, headroom = at.demand.needed, at.policy.headroom
    if left(needed, [at.rooms[each] for each in rest], headroom) >= 0:
        return ""
    return (
        f"no room: {needed:.1f} processors are needed, and the others may be planned for "
        f"{headroom * at.capacity(rest):.1f} ({headroom:.0%} of them)"
    )


def _apart(at: Situation, rest: list[int]) -> str:
    for word, rows in apart(at.seen, at.now, at.policy).items():
        if len(rows) > len(rest):
            return f"{len(rows)} groups are to be apart ({word}), and {len(rest)} packages would be awake"
    return ""


def _refuted(verdict: Verdict | None) -> str:
    if verdict is None or verdict.kept:
        return ""
    return f"a trial did not show a saving: {verdict.detail or words_of(verdict)}"


@dataclass(frozen=True, slots=True)
class _Remote:
    share: float  # of all memory of groups, that would be on nodes without work
    bytes: float  # that would move
    reasons: tuple[str, ...] = ()


def _remote(number: int, now: Standing, seen: Observation, rest: list[int], policy: Policy) -> _Remote:
    nodes = nodes_of(seen, [number])
    if not nodes or not len(seen.groups):
        return _Remote(0.0, 0.0)
    table = seen.groups.memory_bytes.reshape(len(seen.groups), -1)
    there = on_nodes(seen, nodes)
    whole = float(np.nansum(table))
    movable = now.movable
    follows = movable & now.memory.follow if policy.memory_bytes_per_s > 0 else np.zeros_like(movable)
    moves = float(there[follows].sum())
    stays = float(there[movable & ~follows].sum())
    room = _free(seen, rest)
    unknown = int((follows & np.isnan(table).any(axis=1)).sum())
    reasons: tuple[str, ...] = (f"memory of {unknown} groups is unknown, and stays",) if unknown else ()
    if moves > _FILL * room:
        stays, moves = stays + moves, 0.0
        reasons += ("its memory stays: the other nodes have no room for it",)
    elif moves > 0:
        seconds = moves / policy.memory_bytes_per_s
        reasons += (f"{moves / 2**30:.2f} GiB of memory would follow, within {seconds:.0f} s",)
    return _Remote(stays / whole if whole > 0 else 0.0, moves, reasons)


def nodes_of(seen: Observation, packages: list[int]) -> tuple[int, ...]:
    """NUMA nodes whose processors are all of these packages; () where there is one node or none."""
    node, package = seen.cpus.node, seen.cpus.package
    if len(seen.nodes) < 2 or (node < 0).any():
        return ()
    mine = np.isin(package, packages)
    return tuple(sorted(set(node[mine].tolist()) - set(node[~mine].tolist())))


def on_nodes(seen: Observation, nodes: tuple[int, ...]) -> NDArray[np.float64]:
    """Of each group, bytes that are known to be there."""
    table = seen.groups.memory_bytes.reshape(len(seen.groups), -1)
    columns = [index for index, node in enumerate(seen.nodes) if node.number in nodes]
    found: NDArray[np.float64] = np.nan_to_num(table[:, columns]).sum(axis=1)
    return found


def memory_fits(seen: Observation, now: Standing, from_packages: list[int], to_packages: list[int]) -> bool:
    """Whether the memory of groups that follow has room on the other nodes."""
    nodes = nodes_of(seen, from_packages)
    if not nodes or not len(seen.groups):
        return False
    moves = float(on_nodes(seen, nodes)[now.movable & now.memory.follow].sum())
    return moves <= _FILL * _free(seen, to_packages)


def _free(seen: Observation, packages: list[int]) -> float:
    """Of their nodes, bytes."""
    nodes = nodes_of(seen, packages)
    return sum(each.free_bytes or 0.0 for each in seen.nodes if each.number in nodes)
