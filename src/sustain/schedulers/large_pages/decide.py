"""Which blocks to map large, which small again, and why: observation, state, policy, time and what came of the last
plan in; a plan and the next state out. Pure.

Used by the scheduler's loop, by `sustain pages plan`, by replays and by simulations. The model:

1. New counts go into each block's estimate (`state`); what earlier actions taught (`backoff`).
2. Phase one: a target that is new is only counted. Then, of its blocks whose estimates are good, some may be mapped
   large, some are cold (`judge`), and some may only as far as there is memory to spare (`spare`).
3. Of those that may be large the best are chosen, within the budget (`choose`). A block is only collapsed into a place
   that is free now: what is demoted for it makes room for the next plan. So the budget is never exceeded.
4. While memory is scarce nothing is mapped large; the coldest and most bloated are demoted first.
5. All of that as far as processor time, room for bloat and large pages that are to be had go; what is demoted comes
   before what is mapped large.

Blocks that are unknown, stale or not settled, or whose target could not be looked at (`unseen`), stay as they are and
keep their places. Rejected: address order, as khugepaged has it; and doing everything that the counts say at once,
which stalls the host and follows noise.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.large_pages import backoff, budget, spare
from sustain.schedulers.large_pages.columns import Mask
from sustain.schedulers.large_pages.judge import Judgement, judge
from sustain.schedulers.large_pages.model import (
    PAGE_BYTES,
    PAGES,
    Action,
    Collapse,
    Demote,
    Effect,
    Observation,
    Purpose,
    no_blocks,
)
from sustain.schedulers.large_pages.plan import Decision, Finding, Plan
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.report import problems, target_plans, totals
from sustain.schedulers.large_pages.state import (
    Memory,
    State,
    bloat_pages,
    counted,
    remembered,
    rows_of,
    target_memory,
)
from sustain.schedulers.large_pages.turn import Turn, begin, map_large, relieve
from sustain.schedulers.large_pages.unseen import unseen
from sustain.schedulers.large_pages.words import why

_PURPOSES: dict[Finding, Purpose] = {
    Finding.COLLAPSE: "pays",
    Finding.COUNTED: "counted",
    Finding.COLD: "cold",
    Finding.REPLACED: "budget",
    Finding.PRESSURE: "pressure",
    Finding.RECOUNTED: "recount",
}
_MAPS_LARGE = (Finding.COLLAPSE, Finding.COUNTED)
_RECOUNTS = (Finding.RECOUNT, Finding.COUNTED, Finding.RATE, Finding.NO_PAGES, Finding.RECOUNTED)
_GOES_ON = np.isin(np.arange(len(Finding)), _RECOUNTS)  # of each finding


def decide(
    observation: Observation,
    state: State | None,
    policy: Policy,
    now_s: float,
    effects: Sequence[Effect] = (),
) -> Decision:
    """One plan, and what to remember. `state` None: the beginning. `effects`: of the plan before."""
    seen, blocks = observation, observation.blocks
    memory = counted(remembered(seen, state), seen, policy)
    targets = target_memory(seen, state, memory)
    known, memory, targets = backoff.learn(seen, state or _beginning(now_s), memory, targets, effects)
    known = budget.replenished(known, policy, now_s)
    scarce = budget.is_scarce(policy, seen.host, known.scarce)
    bloat = bloat_pages(memory, blocks)
    hidden = unseen(seen, state)
    bloat_bytes = (float(bloat.sum()) + (hidden.bloat_pages if hidden else 0)) * PAGE_BYTES
    it = judge(seen, memory, targets, policy, now_s, scarce)
    spare.admit(it, policy, bloat_bytes / PAGE_BYTES, seen.host.free_large_pages)
    budgeted = places = budget.large_pages(policy, blocks, len(hidden.address) if hidden else 0)
    if places is not None and hidden is not None:
        places = max(0, places - hidden.places)
    wanted, own = _wanted(it, seen, policy, places)
    turn = begin(known, policy)
    if scarce:
        relieve(turn, it, seen, memory, bloat, policy)
    else:
        possible = backoff.collapses_at_once(known, seen, policy.most_actions)
        fillable_bytes = budget.fillable_bytes(policy, seen.host, bloat_bytes)
        map_large(turn, it, seen, memory, policy, own, places, possible, fillable_bytes)
    told = target_plans(seen, memory, targets, bloat, it.finding, wanted, None if places is None else own)
    plan = Plan(
        at_s=now_s,
        seen=seen,
        memory=memory,
        actions=_actions(turn, it, seen, memory, policy, now_s),
        finding=it.finding,
        score=it.score,
        targets=told,
        totals=totals(seen, told, bloat_bytes, known, budgeted, scarce),
        problems=problems(seen, known, now_s),
    )
    kept = _remember(memory, it, turn, seen, now_s)
    rows: dict[str, Any] = {"target": blocks.target, "address": blocks.address, "memory": kept}
    if hidden is not None:
        rows = hidden.behind(blocks.target, blocks.address, kept)
    after = replace(
        known,
        at_s=now_s,
        lives=tuple(target.life for target in seen.targets),
        targets=targets,
        scarce=scarce,
        **rows,
    )
    return Decision(plan, after)


def recounting(memory: Memory, finding: NDArray[np.uint8]) -> Mask:
    """Which blocks are small for a recount, and stay so, or wait to be large again."""
    found: Mask = (memory.recount_s > -np.inf) & _GOES_ON[finding]
    return found


def _beginning(now_s: float) -> State:
    none = Observation(now_s=now_s, blocks=no_blocks())
    return State(now_s, (), {}, none.blocks.target, none.blocks.address, remembered(none, None))


def _wanted(
    it: Judgement, seen: Observation, policy: Policy, places: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(blocks that each target would have large if there were no budget, what of the budget is its own). What is only
    filled where there is memory to spare is no reason to take another's place."""
    mask = (seen.blocks.large | it.may) & ~it.spare
    mask[it.cold] = False
    mask[it.counted] = mask[it.pending] = True
    wanted = np.array([np.count_nonzero(mask[rows]) for rows in rows_of(seen)], np.int64)
    if places is None:
        return wanted, np.zeros(len(wanted), np.int64)
    shares = np.array([policy.of(each).shares for each in seen.targets], np.float64)
    return wanted, budget.guaranteed(int(policy.by_shares * places), wanted, shares)


def _actions(
    turn: Turn, it: Judgement, seen: Observation, memory: Memory, policy: Policy, now_s: float
) -> tuple[Action, ...]:
    """In the order in which they were taken; each demotion before what is mapped large for the first time."""
    found: list[Action] = []
    for kind, rows in turn.taken:
        make = Collapse if kind in _MAPS_LARGE else Demote
        for row in rows.tolist():
            target = seen.targets[int(seen.blocks.target[row])]
            found.append(
                make(
                    target=target.name,
                    pid=target.pid,
                    started=target.started,
                    address=int(seen.blocks.address[row]),
                    purpose=_PURPOSES[kind],
                    reason=why(kind, row, seen.blocks, memory, float(it.score[row]), policy, now_s),
                )
            )
    return tuple(found)


def _remember(memory: Memory, it: Judgement, turn: Turn, seen: Observation, now_s: float) -> Memory:
    """With what was there before a block is mapped large, and without recounts that have ended."""
    over = it.begun[~_GOES_ON[it.finding[it.begun]]]
    base, recount_s, changed_s = memory.base, memory.recount_s, memory.changed_s
    if len(over):
        recount_s, changed_s = recount_s.copy(), changed_s.copy()
        recount_s[over] = -np.inf
        small = over[~seen.blocks.large[over]]
        changed_s[small] = now_s
    rows = np.concatenate(
        [rows for kind, rows in turn.taken if kind == Finding.COLLAPSE] or [np.zeros(0, int)]
    )
    rows = rows[base[rows] < 0]
    if len(rows):
        present = np.where(
            seen.blocks.populated[rows] >= 0, seen.blocks.populated[rows], memory.estimate[rows]
        )
        base = base.copy()
        base[rows] = np.clip(present, 0, PAGES).astype(np.int16)
    return replace(memory, base=base, recount_s=recount_s, changed_s=changed_s)
