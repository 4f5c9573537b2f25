"""What a plan says of its targets, of all together, and of what is in the way. Pure.

Used by `decide`, which puts it into the plan. Coverage is the share of accessed pages, by estimate, that lie in large
pages; of blocks without an estimate nothing is known, and they are in neither sum.
"""

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.large_pages import budget
from sustain.schedulers.large_pages.columns import masked
from sustain.schedulers.large_pages.model import PAGE_BYTES, Observation
from sustain.schedulers.large_pages.plan import Finding, TargetPlan, Totals
from sustain.schedulers.large_pages.state import Memory, State, TargetMemory, rows_of
from sustain.units import format_duration


def target_plans(
    seen: Observation,
    memory: Memory,
    targets: dict[str, TargetMemory],
    bloat: NDArray[np.float32],
    finding: NDArray[np.uint8],
    wanted: NDArray[np.int64],
    own: NDArray[np.int64] | None,
) -> tuple[TargetPlan, ...]:
    """One for each target. `own`: None where there is no budget."""
    found = []
    for index, (target, rows) in enumerate(zip(seen.targets, rows_of(seen), strict=True)):
        large, mine = seen.blocks.large[rows], targets[target.life]
        estimate = memory.estimate[rows]
        accessed = _sum(estimate)
        if np.isnan(accessed):  # of some nothing is known
            estimate = masked(~np.isnan(estimate), estimate)
            accessed = _sum(estimate)
        inside = _sum(masked(large, estimate))
        only = rows.start == rows.stop or finding[rows.start] == Finding.COUNTED_ONLY  # all of it, or nothing
        problems = [*target.problems]
        if mine.reason:
            problems.append(f"refused: {mine.reason}")
        found.append(
            TargetPlan(
                name=target.name,
                pid=target.pid,
                life=target.life,
                counting=target.counting,
                phase=1 if only else 2,
                counts=mine.counts,
                blocks=len(large),
                eligible=int(np.count_nonzero(seen.blocks.eligible[rows])),
                large=int(np.count_nonzero(large)),
                wanted=int(wanted[index]),
                own=None if own is None else int(own[index]),
                accessed_pages=accessed if np.any(memory.counts[rows]) else None,
                coverage=inside / accessed if accessed > 0 else None,
                bloat_bytes=float(bloat[rows].sum()) * PAGE_BYTES,
                problems=tuple(problems),
            )
        )
    return tuple(found)


def totals(
    seen: Observation,
    targets: tuple[TargetPlan, ...],
    bloat_bytes: float,
    state: State,
    places: int | None,
    scarce: bool,
) -> Totals:
    """All targets together."""
    known = [each for each in targets if each.accessed_pages is not None]
    accessed = sum(each.accessed_pages or 0.0 for each in known)
    inside = sum((each.accessed_pages or 0.0) * (each.coverage or 0.0) for each in known)
    collapse_s, demote_s = budget.cost_s(state)
    return Totals(
        blocks=len(seen.blocks),
        large=sum(each.large for each in targets),
        budget=places,
        accessed_pages=accessed if known else None,
        coverage=inside / accessed if accessed > 0 else None,
        bloat_bytes=bloat_bytes,
        scarce=scarce,
        allowance_s=state.allowance_s,
        collapse_s=collapse_s,
        demote_s=demote_s,
    )


def problems(seen: Observation, state: State, now_s: float) -> tuple[str, ...]:
    """What is in the way of all."""
    found = [*seen.notes, *seen.host.problems]
    if state.no_pages_failures and now_s < state.no_pages_until_s:
        found.append(
            "no large page was to be had: memory is fragmented, or short; tried again in "
            f"{format_duration(state.no_pages_until_s - now_s)}, or when one is free"
        )
    return tuple(found)


def _sum(values: NDArray[np.float32]) -> float:
    """To some seven digits: numpy adds by pairs."""
    return float(values.sum())
