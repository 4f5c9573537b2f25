"""Where every figure of a block or a target comes from, in words; and a target's blocks, as others are told. Pure.

Used by `scheduler` for `sustain pages explain` and `sustain pages map`.
"""

from typing import Any

import numpy as np

from sustain.errors import ConfigError, UnknownTarget
from sustain.schedulers.large_pages.model import BLOCK_BYTES, PAGE_BYTES
from sustain.schedulers.large_pages.plan import Finding, Plan, TargetPlan
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.state import bloat_pages, rows_of
from sustain.schedulers.large_pages.words import pages, why
from sustain.units import format_duration, format_size

_COUNTING = {
    "page-idle": "exactly, by the kernel's marks of idle pages",
    "damon": "estimated by DAMON from samples",
    "none": "not at all",
}


def parse_address(text: str) -> int:
    """An address as people write it. Raises ConfigError."""
    try:
        found = int(text, 0)
    except ValueError:
        found = -1
    if not 0 <= found < 1 << 64:
        raise ConfigError(f"address {text!r} is not one", hint="as /proc/PID/maps has it: 0x7f1200000000")
    return found


def find(plan: Plan, name: str) -> tuple[TargetPlan, slice]:
    """The target of that name and its rows. Raises UnknownTarget."""
    for target, rows in zip(plan.targets, rows_of(plan.seen), strict=True):
        if target.name == name:
            return target, rows
    known = ", ".join(target.name for target in plan.targets)
    raise UnknownTarget(
        f"{name}: no such target", hint=f"there is: {known}" if known else "no target was found"
    )


def of_target(plan: Plan, name: str, policy: Policy) -> str:
    """One target, line by line. Raises UnknownTarget."""
    one, rows = find(plan, name)
    (target,) = (each for each in plan.seen.targets if each.life == one.life)
    own = policy.of(target)
    found = np.bincount(plan.finding[rows], minlength=len(Finding)).tolist()
    lines = [
        f"target          {one.name}, process {one.pid}",
        f"  counted       {_COUNTING[one.counting]}; {one.counts} periods",
        f"  phase         {one.phase}: "
        + ("only counted, nothing is mapped" if one.phase == 1 else "mapped by priority, and counted on")
        + f" (counted for at least {format_duration(policy.counting_s)} and {policy.least_counts} times first)",
        f"  blocks        {one.blocks}, of which {one.eligible} can be large and {one.large} are",
        f"  wants         {one.wanted} large: estimates from {policy.high:g} pages on, until they fall below "
        f"{policy.low:g}; "
        + (
            f"from {policy.spare:g} on as far as there is memory to spare: {policy.spare_share:.0%} of what all large "
            "would fill"
            if policy.spare_share > 0
            else "none to spare"
        ),
        "  its own       "
        + (
            "there is no budget"
            if one.own is None
            else f"{one.own} of the budget of {plan.totals.budget}: {own.shares:g} shares of {policy.by_shares:.0%} "
            "of it; the rest goes to the best of all"
        ),
        f"  accessed      {_number(one.accessed_pages)} pages in a counting period, by estimate",
        f"  coverage      {'unknown' if one.coverage is None else f'{one.coverage:.1%}'} of them in large pages",
        f"  bloat         {format_size(int(one.bloat_bytes))} filled by mapping large, and not accessed",
        f"  recounts      {_RECOUNTS[policy.recount]}",
    ]
    lines += [
        f"  {number:>6} blocks {kind.name.lower().replace('_', ' ')}"
        for kind, number in zip(Finding, found, strict=True)
        if number
    ]
    return "\n".join(lines + [f"  problem       {each}" for each in one.problems])


_RECOUNTS = {
    "idleness": "of a large block only whether it was used at all is seen; unused ones lose their estimate",
    "sample": "large blocks are mapped small in turn for a while, a small share at a time, and counted",
}


def of_block(plan: Plan, name: str, address: int, policy: Policy) -> str:
    """One block, line by line. Raises UnknownTarget, also for an address that is in no block."""
    _, rows = find(plan, name)
    start = address // BLOCK_BYTES * BLOCK_BYTES
    blocks, memory = plan.seen.blocks, plan.memory
    row = rows.start + int(np.searchsorted(blocks.address[rows], np.uint64(start)))
    if row >= rows.stop or int(blocks.address[row]) != start:
        raise UnknownTarget(
            f"{name}: nothing of the block at {start:#x} is in memory, or it is not mapped as a whole",
            hint=f"`sustain pages map {name}` shows the blocks that there are",
        )
    kind = Finding(int(plan.finding[row]))
    counted_s = float(memory.counted_s[row])
    guest = {1: "yes", 0: "no"}.get(int(blocks.guest_large[row]), "unknown")
    score = float(plan.score[row])
    lines = [
        f"block           {start:#x} of {name}",
        f"  mapped        {'large' if blocks.large[row] else 'small'}; "
        f"{'can' if blocks.eligible[row] else 'cannot'} be large; its guest maps it large: {guest}",
        f"  present       {blocks.populated[row] if blocks.populated[row] >= 0 else 'an unknown number'} pages",
        f"  last count    {_count(plan, row)}",
        f"  estimate      {pages(memory, row)}, of {memory.counts[row]} counts"
        + (f", the last {format_duration(plan.at_s - counted_s)} ago" if np.isfinite(counted_s) else ""),
        f"  worth         {'it is no candidate' if np.isnan(score) else f'{score:.0f} pages'}: its estimate, less "
        f"{policy.fill:g} of a page for each that would be filled; of a large one, {policy.margin:.0%} more",
        f"  bloat         {format_size(int(bloat_pages(memory, blocks)[row] * PAGE_BYTES))}",
        f"  found         {kind.name.lower().replace('_', ' ')}: "
        + why(kind, row, blocks, memory, score, policy, plan.at_s),
    ]
    return "\n".join(lines)


def as_columns(plan: Plan, name: str) -> dict[str, Any]:
    """A target's blocks, for a map of them; None: unknown. Raises UnknownTarget."""
    _, rows = find(plan, name)
    estimate = [None if np.isnan(each) else round(each, 1) for each in plan.memory.estimate[rows].tolist()]
    return {
        "address": plan.seen.blocks.address[rows].tolist(),
        "estimate": estimate,
        "populated": [None if each < 0 else each for each in plan.seen.blocks.populated[rows].tolist()],
        "large": plan.seen.blocks.large[rows].tolist(),
        "finding": [Finding(each).name.lower() for each in plan.finding[rows].tolist()],
    }


def _count(plan: Plan, row: int) -> str:
    touched, error = float(plan.seen.blocks.touched[row]), float(plan.seen.blocks.error[row])
    if np.isnan(touched):
        return "unknown"
    if plan.seen.blocks.whole[row]:
        return "used" if touched else "not used at all"
    return f"{touched:.0f} pages" + (f", standard error {error:.0f}" if error else ", counted exactly")


def _number(value: float | None) -> str:
    return "an unknown number of" if value is None else f"{value:.0f}"
