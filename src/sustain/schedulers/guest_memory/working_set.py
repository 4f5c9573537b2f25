"""How much memory a guest uses, over time, and whether it lacks some. Pure.

Used by `decide`. The model: active pages and those that nobody can take are in use; of a guest that tells only what
is free, all the rest is; of one that is sampled, what was seen in use and two standard errors. The estimate follows
a rise within `rise_s` and a fall within `fall_s`, so that a pause does not cost a guest its memory, as ESX has it.
A guest that waits for memory, or reads back what was taken from it, is pressed: then all that it has is in use,
whatever its lists say, since these were wrong (`doubted_bytes`). They are believed again within `spared_s`, and as
long it is spared: a minute at first, since a guest also waits while it grows, and twice as long each time that it is
pressed again after that, up to `fall_s`. Rejected: `fall_s` at once. Refaults of buffers count only where its balloon
has taken memory from it: a kernel that lists pages which are read again and again as inactive tells of no stalls when
they have to be read anew. A guest that reads more than it could ever keep refaults with all its memory: what is usual
while nothing is taken from it does not count.

A guest whose use has risen may rise as much again: it is left, and given, room for the largest rise of late, which is
forgotten within `fall_s`, but no more room than it would be given at once if it waited. A rise is one within `rise_s`,
however many answers told of it: a sum of rises that fades with that time, and that a fall makes smaller. What rises is
what is active, or all that the guest has listed, active or not: a kernel tells only later which new buffers are used.
Rejected: to leave a guest that fills itself all it has meanwhile. The host then waits 50 s for its goal, not 20
(simulated, where all guests begin at once), and twelve that rise and fall free 0.2 GiB less of 16.5.

Rates are made of two answers of the guest at its own times. Counters that go back belong to another boot,
as do all of a guest whose agent says so.
"""

from dataclasses import dataclass

import numpy as np

from sustain.schedulers.guest_memory.columns import Table, told_total, zero
from sustain.schedulers.guest_memory.model import Policy
from sustain.schedulers.guest_memory.plan import Column, Mask

_READ_BACK_SHARE_PER_S = 0.001  # of its size: a guest that reads back more than that lacks memory
_SPARED_RISES = 6.0  # for how many times `rise_s` a guest is spared at first
GIVEN_AT_ONCE = 4.0  # steps, since who lacks memory waits now
COUNTERS = ("stall_us", "swap_in_bytes", "refault_bytes")  # at the guest's time; the host's own beside them
ESTIMATES = (
    "stall",
    "swap_in",
    "refaults",
    "usual_refaults",
    "measured_bytes",
    "doubted_bytes",
    "active_bytes",
    "listed_bytes",
    "risen_bytes",
    "filled_bytes",
    "surge_bytes",
    "calm_s",
    "spared_s",
)
REMEMBERED = (*COUNTERS, "host_swap_in_bytes", "classes_at_s", *ESTIMATES)


@dataclass(frozen=True)
class Use:
    """Columns of what guests use."""

    active_bytes: Column
    working_set_bytes: Column  # the greater of the next two
    measured_bytes: Column  # what is active, over time
    doubted_bytes: Column  # all that it had when it was pressed last; fades to what is active
    listed_bytes: Column  # all that it has a list for, active or not; NaN where it does not tell
    risen_bytes: Column  # how much its active memory has risen within `rise_s`
    filled_bytes: Column  # how much all that is listed has
    surge_bytes: Column  # the largest of such rises lately
    soon_bytes: Column  # what it may use soon, if its use rises as it did lately
    needs_bytes: Column  # what it is left, and given, outside the hard states
    stall: Column  # share of time
    swap_in: Column  # bytes per second, read back by the guest or for it
    refaults: Column  # bytes per second, read again by the guest
    usual_refaults: Column  # while its balloon takes nothing
    rereads: Mask  # that much of them that it lacks what was taken
    came_back_bytes: Column  # since the decision before
    pressed: Mask
    calm_s: Column  # since it was pressed last
    spared_s: Column  # for so long since then the host's goal takes nothing from it; NaN: never pressed
    fresh: Mask


def active_bytes(of: Table) -> Column:
    """Memory in use now; NaN where it is unknown."""
    listed = of["active_anonymous_bytes"] + of["active_buffer_bytes"] + of["unreclaimable_bytes"]
    seen = of["active_anonymous_bytes"] + 2 * of["error_bytes"]
    told = told_total(of, of["balloon_bytes"]) - of["free_bytes"]
    return np.where(of.sampled, np.fmin(seen, of["resident_bytes"]), np.where(np.isnan(listed), told, listed))


def listed_bytes(of: Table) -> Column:
    """Memory that is in a list of its kernel's, or that nobody can take. Not total less free: a balloon that deflates
    by itself counts as neither."""
    buffers = of["inactive_buffer_bytes"] + of["active_buffer_bytes"]
    anonymous = of["inactive_anonymous_bytes"] + of["active_anonymous_bytes"]
    return np.where(of.sampled, np.nan, buffers + anonymous + of["unreclaimable_bytes"])


def use(of: Table, before: dict[str, Column], now_s: float, elapsed_s: float, policy: Policy) -> Use:
    """`before`: the columns REMEMBERED, NaN for a guest that is new; `elapsed_s` since that decision."""
    at, told_s = of["classes_at_s"], of["classes_at_s"] - before["classes_at_s"]
    # A time in the future is as good as no time.
    fresh = (at <= now_s + 1) & (now_s - at <= policy.fresh_s)
    news = told_s > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        grown = {name: _grown(of[name] - before[name], news) for name in COUNTERS}
        stall = np.where(news, grown["stall_us"] / 1e6 / told_s, before["stall"])
        guest_in = np.where(news, grown["swap_in_bytes"] / told_s, before["swap_in"])
        host_grown = _grown(of["host_swap_in_bytes"] - before["host_swap_in_bytes"], elapsed_s > 0)
        host_in = host_grown / elapsed_s if elapsed_s > 0 else np.full(len(at), np.nan)
    swap_in = np.where(np.isnan(guest_in) & np.isnan(host_in), np.nan, zero(guest_in) + zero(host_in))
    waits = stall > policy.stall_limit
    reads = swap_in > _READ_BACK_SHARE_PER_S * of["size_bytes"]
    refaults = np.where(news, grown["refault_bytes"] / told_s, before["refaults"])
    shrunk = of["balloon_bytes"] < of.most_bytes - policy.least_change_bytes
    usual = zero(before["usual_refaults"])
    learned_s = np.where(refaults > usual, policy.rise_s, policy.fall_s)
    learns = ~shrunk & news & ~np.isnan(refaults)
    usual = np.where(learns, usual + (refaults - usual) * -np.expm1(-elapsed_s / learned_s), usual)
    rereads = shrunk & (refaults - usual > _READ_BACK_SHARE_PER_S * of["size_bytes"])
    # Where the guest tells how long it waits, swapping in alone is no lack.
    pressed = fresh & (np.where(np.isnan(stall), reads, waits) | rereads)
    active = active_bytes(of)
    has = np.fmin(np.fmin(of["balloon_bytes"], of["size_bytes"]), of["resident_bytes"])
    old = before["measured_bytes"]
    time_s = np.where(active > old, policy.rise_s, policy.fall_s)
    moved = old + (active - old) * -np.expm1(-elapsed_s / time_s)
    measured = np.where(np.isnan(old), active, np.where(fresh & ~np.isnan(active), moved, old))
    spared = _spared_s(pressed, before, elapsed_s, policy)
    with np.errstate(invalid="ignore"):
        rest = np.maximum(before["doubted_bytes"] - measured, 0)
    doubted = np.where(pressed, np.fmax(active, has), measured + rest * np.exp(-elapsed_s / spared))
    estimate = np.fmax(measured, doubted)
    listed = listed_bytes(of)
    fade = np.exp(-zero(np.where(news, told_s, 0)) / policy.rise_s)
    told = news & fresh
    risen = np.maximum(zero(before["risen_bytes"]) * fade + _change(active - before["active_bytes"], told), 0)
    filled = np.maximum(
        zero(before["filled_bytes"]) * fade + _change(listed - before["listed_bytes"], told), 0
    )
    surge = np.fmax(zero(before["surge_bytes"]) * np.exp(-elapsed_s / policy.fall_s), np.fmax(risen, filled))
    room = np.fmin(surge, GIVEN_AT_ONCE * policy.step * of["size_bytes"])
    return Use(
        active_bytes=active,
        working_set_bytes=estimate,
        measured_bytes=measured,
        doubted_bytes=doubted,
        listed_bytes=listed,
        risen_bytes=risen,
        filled_bytes=filled,
        surge_bytes=surge,
        soon_bytes=np.fmax(active * (1 + policy.headroom), active + room),
        needs_bytes=np.fmax(np.fmax(estimate, active) * (1 + policy.headroom), active + room),
        stall=stall,
        swap_in=swap_in,
        refaults=refaults,
        usual_refaults=usual,
        rereads=fresh & rereads,
        came_back_bytes=zero(grown["swap_in_bytes"]) + zero(grown["refault_bytes"]) + zero(host_grown),
        pressed=pressed,
        calm_s=np.where(pressed, 0.0, before["calm_s"] + elapsed_s),
        spared_s=spared,
        fresh=fresh,
    )


def _spared_s(pressed: Mask, before: dict[str, Column], elapsed_s: float, policy: Policy) -> Column:
    """For how long after it was pressed each guest is spared. Longer only where what was tried after the last time
    pressed it again."""
    calm, last = before["calm_s"], before["spared_s"]
    anew = pressed & ~(calm + elapsed_s < last)
    again = calm + elapsed_s < policy.fall_s
    spared = np.where(again, 2 * last, _SPARED_RISES * policy.rise_s)
    return np.where(anew, np.minimum(spared, policy.fall_s), last)


def _grown(change: Column, news: Mask | bool) -> Column:
    return np.where((change >= 0) & news, change, np.nan)


def _change(change: Column, told: Mask) -> Column:
    return np.where(told, zero(change), 0.0)
