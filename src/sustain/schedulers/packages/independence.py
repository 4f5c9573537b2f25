"""Whether idle states of a package are independent of the other packages: what a test's windows say. Pure.

Used by `active`, which makes the windows, and by `sustain packages`. `passive` is the test by watching alone; here is
also what watching makes likely without proving it (`likely`).

The model. Three kinds of windows, each several times over: *all idle*, the control; *packed*, two cores at work on one
package and nothing on the others; *split*, the same work, one core on each of two packages. Of an empty package i:
- a state that is entered in the control and not while another package works is coordinated; one that is entered then,
  too, is independent; one that is not even entered in the control is disabled;
- parking i saves the watts of split less those of packed, of all packages together: the same work, so what a working
  core takes is in both. Where no residency is counted, watts decide alone: against what each package saves when all
  are idle, which it would save when it alone is, were its idle states independent.

Rejected: the watts of a working package less those of an empty one. A core's work is in it, so a host on which parking
saves nothing seems to save a few watts (45.0 W parked and 46.2 W with one core spinning were measured on one).
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from sustain.schedulers.packages.model import Finding, Independence

WATTS = "watts"
REACHED = 0.10  # share of time from which a state is entered
_REACHED_LEAST = 0.02  # below that it is not, whatever the control
_PART = 0.25  # of what each package saves when all idle: more is independent, less is coordinated
_LEAST_W = 1.0  # that a package saves when all idle; less is as nothing
# Student's t at 97.5 % by degrees of freedom
_T = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
_T_MANY = 2.0


def of_package(state: str) -> bool:
    """Whether it is a state that a package enters, and not one of its processors ("core-c2"), which those enter by
    themselves whatever packages do: such a one says nothing of independence."""
    return not state.startswith("core-")


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """One of a test. By package; what is not measurable is not there."""

    working: dict[int, int] = {}  # cores that the test keeps busy
    seconds: float
    residency: dict[int, dict[str, float]] = {}  # shares of time
    power_w: dict[int, float] = {}  # with its memory
    awake: dict[int, float] = {}  # share of time that the busiest processor that the test leaves alone worked

    @property
    def control(self) -> bool:
        return not self.working

    def total_w(self, packages: Iterable[int]) -> float | None:
        """Of all of them; None: of one it is not known."""
        known = [self.power_w.get(each) for each in packages]
        return None if None in known else sum(each for each in known if each is not None)


@dataclass(frozen=True, slots=True)
class Mean:
    """Of several windows."""

    value: float
    error: float  # one standard error; inf: of one window only
    count: int

    @property
    def reach(self) -> float:
        """Half of the 95 % confidence interval."""
        t = _T[self.count - 1] if self.count <= len(_T) else _T_MANY
        return math.inf if math.isinf(t) else t * self.error

    @property
    def low(self) -> float:
        return self.value - self.reach

    @property
    def high(self) -> float:
        return self.value + self.reach


def mean(values: Sequence[float]) -> Mean | None:
    """None of none."""
    if not values:
        return None
    if len(values) == 1:
        return Mean(values[0], math.inf, 1)
    return Mean(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)), len(values))


def judge_active(windows: Sequence[Window], packages: Iterable[int], at: str = "") -> tuple[Finding, ...]:
    """What the windows say of each package and state, and of its watts. Nothing is said of what was not measured."""
    found: list[Finding] = []
    everyone = sorted(packages)
    for package in everyone:
        saving = _saving(windows, package, everyone)
        states = sorted(
            {state for each in windows for state in each.residency.get(package, {}) if of_package(state)}
        )
        known = [
            finding
            for state in states
            if (finding := _of_state(windows, package, state, saving, at)) is not None
        ]
        found += known
        if not known and (finding := _of_watts(windows, package, everyone, saving, at)) is not None:
            found.append(finding)
    return tuple(found)


def _of_state(
    windows: Sequence[Window], package: int, state: str, saving: Mean | None, at: str
) -> Finding | None:
    def share(holds: Callable[[Window], bool]) -> Mean | None:
        return mean(
            [
                each.residency[package][state]
                for each in windows
                if holds(each) and state in each.residency.get(package, {})
            ]
        )

    control = share(lambda each: each.control)
    empty = share(lambda each: not each.control and package not in each.working)
    if control is None or empty is None:
        return None
    return Finding(
        package=package,
        state=state,
        independence=_by_residency(control, empty),
        how="active test",
        detail=f"in it for {_percent(empty)} while another package worked, {_percent(control)} with all idle"
        + (f"; parked, {_watts(saving)} saved" if saving is not None else ""),
        at=at,
        parked_w=None if saving is None else saving.value,
        parked_error_w=None if saving is None or math.isinf(saving.error) else saving.error,
        parked_share=empty.value,
    )


def _by_residency(control: Mean, empty: Mean) -> Independence:
    """One awake processor elsewhere keeps a coordinated state from being entered at all, so a little is enough."""
    if empty.value >= REACHED and (empty.count == 1 or empty.low > _REACHED_LEAST):
        return "independent"
    if max(control.value, empty.value) < REACHED:
        return "disabled"
    if empty.value <= max(_REACHED_LEAST, REACHED * control.value) and (
        empty.count == 1 or empty.high < REACHED
    ):
        return "coordinated"
    return "unknown"


def _of_watts(
    windows: Sequence[Window], package: int, packages: Sequence[int], saving: Mean | None, at: str
) -> Finding | None:
    """By the step in watts alone."""
    together = _all_idle_saves(windows, packages)
    if saving is None or together is None:
        return None
    part = _PART * together.value
    independence: Independence
    if together.high < _LEAST_W or together.value < _LEAST_W:
        independence = "disabled"
    elif saving.low > part:
        independence = "independent"
    elif saving.high < part:
        independence = "coordinated"
    else:
        independence = "unknown"
    return Finding(
        package=package,
        state=WATTS,
        independence=independence,
        how="active test",
        detail=f"parked, {_watts(saving)} saved; with all idle, each package saves {_watts(together)}",
        at=at,
        parked_w=saving.value,
        parked_error_w=None if math.isinf(saving.error) else saving.error,
    )


def _saving(windows: Sequence[Window], package: int, packages: Sequence[int]) -> Mean | None:
    """Of split against packed, by turns: the nth of one with the nth of the other, so that what drifts is in both."""
    split = [each for each in windows if each.working.get(package) and len(each.working) > 1]
    packed = [
        each
        for each in windows
        if len(each.working) == 1
        and package not in each.working
        and any(_same_work(each, other) for other in split)
    ]
    pairs = [
        (first, second)
        for one, other in zip(split, packed, strict=False)
        if (first := one.total_w(packages)) is not None and (second := other.total_w(packages)) is not None
    ]
    return mean([first - second for first, second in pairs])


def _same_work(packed: Window, split: Window) -> bool:
    return (
        sum(packed.working.values()) == sum(split.working.values())
        and packed.working.keys() <= split.working.keys()
    )


def _all_idle_saves(windows: Sequence[Window], packages: Sequence[int]) -> Mean | None:
    """Watts of a package that is awake, less those of one with all idle; what a core's work takes is in it, too."""
    split = [each for each in windows if len(each.working) > 1]
    control = [each for each in windows if each.control]
    steps = [
        (first - second) / len(one.working)
        for one, other in zip(split, control, strict=False)
        if (first := one.total_w(packages)) is not None and (second := other.total_w(packages)) is not None
    ]
    return mean(steps)


@dataclass(frozen=True)
class Watched:
    """What was seen of one package and state over many intervals, for `likely`."""

    inside: int = 0  # intervals in which others worked, it was idle, and the bound of coordination held
    outside: int = 0  # those that broke it
    reached: float = 0.0  # the largest share of time in the state, with all idle


def watched(
    before: Mapping[tuple[int, str], Watched],
    awake: Mapping[int, float],
    residency: Mapping[int, Mapping[str, float]],
) -> dict[tuple[int, str], Watched]:
    """With one more interval; shares of time by package."""
    found = dict(before)
    for package, shares in residency.items():
        others = max((share for other, share in awake.items() if other != package), default=None)
        own = awake.get(package)
        if others is None or own is None:
            continue
        for state, share in shares.items():
            if not of_package(state):
                continue
            one = found.get((package, state), Watched())
            if others < _QUIET and own < _QUIET:
                one = Watched(one.inside, one.outside, max(one.reached, share))
            elif others > 1 - _ROOM and own < _QUIET:
                broken = share > 1 - others + _REACHED_LEAST
                one = Watched(one.inside + (not broken), one.outside + broken, one.reached)
            found[package, state] = one
    return found


_QUIET = 0.10  # awake for less
_ROOM = 0.50  # others are awake for more, so that the bound says something
_MANY = 20  # intervals


def likely(seen: Watched) -> str:
    """In words, when watching makes it likely that the state is coordinated; "": it does not. It is no proof: a package
    may have stayed out of a state for its own reasons each time."""
    if seen.outside or seen.inside < _MANY or seen.reached < _ROOM:
        return ""
    return (
        f"it looks coordinated: {seen.inside} times this package was idle while another worked, and was in the state "
        f"no longer than all packages were idle; with all idle it was in it for {seen.reached:.0%} (no proof; "
        "`sustain packages test` finds out)"
    )


def _percent(share: Mean) -> str:
    return f"{share.value:.1%}" + (f" ± {share.error:.1%}" if not math.isinf(share.error) else "")


def _watts(power: Mean) -> str:
    return f"{power.value:.1f} W" + (f" ± {power.error:.1f}" if not math.isinf(power.error) else "")
