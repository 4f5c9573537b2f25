"""What came of earlier actions, and what is left alone for a while because of it. Pure.

Used by `decide`. Each outcome as it deserves:

| outcome | what waits | how long |
| --- | --- | --- |
| done | nothing; what had failed is forgotten | |
| again later | the block | 10 s, doubled with each failure in a row, up to 10 min |
| never tried | nothing: its round was over, or the scheduler ended | |
| no large page to be had | the block | 10 s, as above |
| the same, and no collapse of a plan was done | every one on this host: memory is fragmented | 15 s, up to 10 min |
| gone | the block; a target that has gone is not in the next observation | 10 s, as above |
| not eligible | the block | 1 h: mappings, and who shares or locks them, change seldom |
| refused | the target | 1 min, doubled, up to 1 h |

After a wait for large pages only a few are tried; a free one that the host shows ends the wait.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sustain.schedulers.large_pages.model import Collapse, Effect, Observation
from sustain.schedulers.large_pages.state import Memory, State, TargetMemory, keys

_BLOCK_S = (10.0, 600.0)
_PAGES_S = (15.0, 600.0)
_TARGET_S = (60.0, 3600.0)
_NOT_ELIGIBLE_S = 3600.0
_FEW = 4
_LEARN = 0.2  # of each action's time, in what one is expected to take
FIRST_S = 0.006  # what one takes before any was tried: 16 took 92 ms


def learn(
    seen: Observation,
    state: State,
    memory: Memory,
    targets: dict[str, TargetMemory],
    effects: Sequence[Effect],
) -> tuple[State, Memory, dict[str, TargetMemory]]:
    """`state` is the one before, `memory` and `targets` those of now; the same with what the effects teach."""
    targets = dict(targets)
    effects = [each for each in effects if each.tried]
    lives = _lives(seen, state, effects)
    rows = _rows(seen, effects, lives)
    if effects:
        memory = replace(
            memory,
            retry_s=memory.retry_s.copy(),
            failures=memory.failures.copy(),
            recount_s=memory.recount_s.copy(),
        )
    collapse_s, demote_s = state.collapse_s, state.demote_s
    failed_pages = done = 0
    spent_s = 0.0
    for effect, life, row in zip(effects, lives, rows, strict=True):
        is_collapse = isinstance(effect.action, Collapse)
        failed_pages += is_collapse and effect.outcome == "no large page to be had"
        done += is_collapse and effect.done
        if effect.seconds is not None:
            spent_s += effect.seconds
            if is_collapse:
                collapse_s = _mean(collapse_s, effect.seconds)
            else:
                demote_s = _mean(demote_s, effect.seconds)
        if effect.outcome == "refused":
            if life in targets:
                targets[life] = _refused(targets[life], state.targets.get(life), seen.now_s, effect.detail)
        elif row is not None:
            _of_block(seen, memory, effect, row)
    for life in {
        life for effect, life in zip(effects, lives, strict=True) if effect.done and life in targets
    }:
        if targets[life].failures:
            targets[life] = replace(targets[life], failures=0, retry_s=-np.inf, reason="")
    state = replace(state, collapse_s=collapse_s, demote_s=demote_s, allowance_s=state.allowance_s - spent_s)
    return _pages(state, seen, failed_pages, done), memory, targets


def collapses_at_once(state: State, seen: Observation, most: int) -> int:
    """How many collapses may be tried now, as far as large pages are to be had."""
    if not state.no_pages_failures:
        return most
    free = seen.host.free_large_pages
    if seen.now_s < state.no_pages_until_s:
        return min(most, free or 0)
    return min(most, max(_FEW, free or 0))


def _pages(state: State, seen: Observation, failed: int, done: int) -> State:
    if done:
        return replace(state, no_pages_failures=0, no_pages_until_s=-np.inf)
    if failed:
        failures = min(state.no_pages_failures + 1, 16)
        wait_s = _doubled(_PAGES_S, failures)
        return replace(state, no_pages_failures=failures, no_pages_until_s=seen.now_s + wait_s)
    return state


def _of_block(seen: Observation, memory: Memory, effect: Effect, row: int) -> None:
    now_s = seen.now_s
    if effect.done:
        memory.failures[row], memory.retry_s[row] = 0, -np.inf
        if isinstance(effect.action, Collapse):
            memory.recount_s[row] = -np.inf
        elif effect.action.purpose == "recount":
            memory.recount_s[row] = now_s
    elif effect.outcome == "not eligible":
        memory.retry_s[row] = now_s + _NOT_ELIGIBLE_S
    elif effect.outcome in ("again later", "gone", "no large page to be had"):
        memory.failures[row] = min(int(memory.failures[row]) + 1, 16)
        memory.retry_s[row] = now_s + _doubled(_BLOCK_S, int(memory.failures[row]))


def _refused(now: TargetMemory, before: TargetMemory | None, now_s: float, why: str) -> TargetMemory:
    """One step longer, however many of its blocks were refused at once."""
    failures = min((before.failures if before else 0) + 1, 16)
    return replace(
        now,
        failures=failures,
        retry_s=now_s + _doubled(_TARGET_S, failures),
        reason=why or "without a reason",
    )


def _lives(seen: Observation, state: State, effects: Sequence[Effect]) -> list[str]:
    """Whose each effect was; "": of none that is still there, also of one that is another program by now."""
    known = {(each.pid, each.started): each.life for each in seen.targets if each.life in state.targets}
    return [known.get((each.action.pid, each.action.started), "") for each in effects]


def _rows(seen: Observation, effects: Sequence[Effect], lives: Sequence[str]) -> list[int | None]:
    """Where the block of each effect is now; None: it is not there any more."""
    if not effects or not len(seen.blocks):
        return [None] * len(effects)
    index = {target.life: at for at, target in enumerate(seen.targets)}
    owner = np.array([index.get(life, -1) for life in lives], np.int32)
    address = np.array([each.action.address for each in effects], np.uint64)
    all_keys = keys(seen.blocks.target, seen.blocks.address)
    wanted = keys(np.maximum(owner, 0), address)
    at = np.minimum(np.searchsorted(all_keys, wanted), len(all_keys) - 1)
    known = (owner >= 0) & (all_keys[at] == wanted)
    return [int(row) if there else None for row, there in zip(at, known, strict=True)]


def _mean(before: float, now: float) -> float:
    return now if np.isnan(before) else (1 - _LEARN) * before + _LEARN * now


def _doubled(between: tuple[float, float], failures: int) -> float:
    return min(between[0] * 2.0 ** (failures - 1), between[1])
