"""What came of earlier actions, and which ways are left alone for a while because of it. Pure.

Used by `decide`. An action that is refused, or frees less than a quarter of what it should at least have, has
failed. So has one of which half is read back soon after: more than the guest read back anyway, before anything was
taken. A way that failed is not used on that guest for a minute, and twice as long after each further failure, up to
an hour; one that goes well is trusted again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sustain.schedulers.guest_memory.columns import Table
from sustain.schedulers.guest_memory.model import Balloon, Effect, Mechanism
from sustain.schedulers.guest_memory.plan import MECHANISMS, Column, Mask
from sustain.units import format_duration, format_size

_FIRST_S = 60.0
_LONGEST_S = 3600.0
_LEAST_YIELD = 0.25
_MOST_BACK = 0.5
_MEMORY_S = 120.0  # how long what was taken is remembered
REMEMBERED = (
    "did",  # index of the way that was used last, and one more; 0: none
    "expected_bytes",
    "taken_bytes",
    "back_bytes",
    "back_rate",  # per second, while nothing is taken
    *(f"fails_{each}" for each in MECHANISMS),
    *(f"until_{each}" for each in MECHANISMS),
)


@dataclass(frozen=True)
class Experience:
    """What was learned: columns to remember, and which ways may be used now (by MECHANISMS)."""

    columns: dict[str, Column]
    usable: tuple[Mask, ...]
    reasons: dict[tuple[str, Mechanism], str]


def learn(
    of: Table,
    before: Mapping[str, Column],
    reasons_before: Mapping[tuple[str, Mechanism], str],
    came_back_bytes: Column,
    effects: Sequence[Effect],
    now_s: float,
    elapsed_s: float,
    least_bytes: float,
) -> Experience:
    """`before`: the columns REMEMBERED, 0 for a guest that is new."""
    kept = {name: before[name].copy() for name in REMEMBERED}
    fade = float(np.exp(-elapsed_s / _MEMORY_S))
    usual = kept["back_rate"] * elapsed_s
    kept["taken_bytes"] = np.where(kept["did"] > 0, kept["taken_bytes"] * fade, 0)
    idle = kept["taken_bytes"] < least_bytes
    kept["back_bytes"] = np.where(
        idle, 0.0, kept["back_bytes"] * fade + np.maximum(came_back_bytes - usual, 0)
    )
    if elapsed_s > 0:
        rate = kept["back_rate"] * fade + (1 - fade) * came_back_bytes / elapsed_s
        kept["back_rate"] = np.where(idle, rate, kept["back_rate"])
    reasons = dict(reasons_before)

    def fail(row: int, way: int, why: str) -> None:
        mechanism = MECHANISMS[way]
        kept[f"fails_{mechanism}"][row] += 1
        wait_s = min(_FIRST_S * 2 ** (kept[f"fails_{mechanism}"][row] - 1), _LONGEST_S)
        kept[f"until_{mechanism}"][row] = now_s + wait_s
        reasons[of.guests[row].name, mechanism] = f"no {mechanism} for {format_duration(wait_s)}: {why}"

    if effects:
        rows = {guest.name: row for row, guest in enumerate(of.guests)}
        for effect in effects:
            found = rows.get(effect.action.guest)
            if found is None or of.guests[found].life != effect.action.life:
                continue
            if isinstance(effect.action, Balloon) and effect.action.to_bytes >= effect.action.from_bytes:
                continue
            _weigh(kept, found, effect, float(came_back_bytes[found]), least_bytes, fail)
    back = (kept["back_bytes"] > _MOST_BACK * kept["taken_bytes"]) & (kept["taken_bytes"] >= least_bytes)
    for each in np.flatnonzero(back & (kept["did"] > 0)):
        row = int(each)
        said = f"{format_size(int(kept['back_bytes'][row]))} of {format_size(int(kept['taken_bytes'][row]))}"
        fail(row, int(kept["did"][row]) - 1, f"{said} that were taken came back")
        kept["taken_bytes"][row] = kept["back_bytes"][row] = 0.0
    usable = tuple(kept[f"until_{each}"] <= now_s for each in MECHANISMS)
    if reasons:
        waiting = {
            (of.guests[int(row)].name, mechanism)
            for mechanism, free in zip(MECHANISMS, usable, strict=True)
            for row in np.flatnonzero(~free)
        }
        reasons = {key: why for key, why in reasons.items() if key in waiting}
    return Experience(kept, usable, reasons)


def _weigh(
    kept: dict[str, Column],
    row: int,
    effect: Effect,
    came_back: float,
    least_bytes: float,
    fail: Callable[[int, int, str], None],
) -> None:
    mechanism: Mechanism = effect.action.__struct_config__.tag  # type: ignore[assignment]
    way = MECHANISMS.index(mechanism)
    freed, expected = effect.freed_bytes, float(kept["expected_bytes"][row])
    kept["taken_bytes"][row] += max(0.0, freed or 0.0)
    # What was read back meanwhile had been freed before.
    yielded = None if freed is None else freed + came_back
    enough = yielded is not None and yielded > 0 and yielded >= _LEAST_YIELD * expected
    if not effect.done and not (enough and expected >= least_bytes):
        fail(row, way, effect.problem or "it was not done")
    elif freed is not None and expected >= least_bytes and not enough:
        said = f"it freed {format_size(int(freed))}, at least {format_size(int(expected))} was expected"
        fail(row, way, effect.problem or said)
    elif freed is not None and freed >= least_bytes:
        kept[f"fails_{mechanism}"][row] = 0
