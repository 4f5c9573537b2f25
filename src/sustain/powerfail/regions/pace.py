"""How often changed pages are looked for, how fast they are copied, and how much the program is held back. Pure.

Used by the pre-copier. Without pressure copying takes little of what the program needs: a harvest makes the first write
to each page a fault, so harvests come so seldom that these faults cost a set share of its time, and copying
keeps to a rate. What is behind is compared with the budget, which is what the battery could still get away: from the
first threshold on there is no rate, from the second on the program stands still in slices, the longer the more is
behind, and all the time at the budget itself.

Rejected: a controller with memory (growing while it does not help). It must be tuned to the program, swings, and
proves nothing; this rule holds the bound by itself, whatever the program does.
"""

from dataclasses import dataclass

SLICE_S = 0.1  # of which the program stands still for a part


@dataclass(frozen=True, slots=True)
class PacePolicy:
    """What the operator chose."""

    first_threshold: float = 0.5
    second_threshold: float = 0.9
    interval_s: float = 1.0  # between harvests, at least
    hurried_interval_s: float = 0.1  # the same above the first threshold
    fault_s: float = 2e-6  # of the program's time, for the first write to a page after a harvest
    fault_share: float = 0.02  # of its time may go into those


@dataclass(frozen=True, slots=True)
class Need:
    """What is behind at a destination, and what it could take on the battery. None: unknown."""

    behind_bytes: int
    budget_bytes: int | None


@dataclass(frozen=True, slots=True)
class Pace:
    """What follows. `still`: the share of the time in which the program stands still."""

    hurry: bool
    still: float
    load: float | None  # behind / budget at the destination that is best off; None: there is no budget


def decide_pace(needs: list[Need], policy: PacePolicy) -> Pace:
    """For destinations that are connected: one that gets all away is enough, so the best one counts.

    Where no budget is known nothing is held back; where there is no destination, holding back would help nobody.
    """
    known = [(need.behind_bytes, need.budget_bytes) for need in needs if need.budget_bytes is not None]
    if not known:
        return Pace(hurry=False, still=0.0, load=None)
    load = min(_load(behind, budget) for behind, budget in known)
    first, second = policy.first_threshold, policy.second_threshold
    still = 0.0 if load <= second else 1.0 if load >= 1 else (load - second) / (1 - second)
    return Pace(hurry=load > first, still=still, load=load)


def _load(behind_bytes: int, budget_bytes: int) -> float:
    if behind_bytes <= 0:
        return 0.0
    return behind_bytes / budget_bytes if budget_bytes > 0 else float("inf")


def interval_s(pages: int, pace: Pace, policy: PacePolicy, *, faults: bool) -> float:
    """Until the next harvest, when the last one named `pages`. `faults`: whether a harvest costs the program some."""
    if pace.hurry:
        return policy.hurried_interval_s
    if not faults:
        return policy.interval_s
    return max(policy.interval_s, pages * policy.fault_s / policy.fault_share)


def phase_of(destinations: list[tuple[str, bool]]) -> str:
    """Of a final pass, from (state, required) of its destinations: final, sealed, failed.

    Sealed when all required ones are, or one at least where none is required; the others go on meanwhile.
    """
    counted = [state for state, required in destinations if required] or [state for state, _ in destinations]
    required = any(required for _, required in destinations)
    if counted and (all if required else any)(state == "sealed" for state in counted):
        return "sealed"
    if any(state in ("connecting", "streaming") for state in counted):
        return "final"
    return "failed"
