"""What a balloon leaves a guest whatever happens, so that it lives. Pure.

Used by `situation`. A balloon takes from what the guest may use at all (`balloon_bytes`), so what is left to it is
reckoned in that, and not in what the host holds for it:

- What the guest has and lists nowhere (`hidden_bytes`): its kernel's image, its table of pages, memory of drivers; and
  what it lists as unreclaimable. Of a guest of 256 MiB that is 65 MiB: at 68 it still ran, at 64 its kernel killed all
  and panicked. And anonymous memory that it has no swap for.
- What its kernel keeps free (`reclaim_cost.KEPT_FREE`).
- Where the balloon does not give back when the guest runs out of memory (`deflate-on-oom`), or that is not known, an
  error in anything of this kills it. So outside the hard states it keeps room for what it may use soon. Where active
  memory is taken it keeps half of what it uses, now or over time: half of what is active now would be halved again at
  each look, and while a guest waits all that it has counts as its working set. Rejected: to leave it all. What a kernel
  calls active it may only not have been asked for; and a busy guest could not be held to its share.

An answer of the guest from before its balloon took memory says nothing of what is left: until the next one it loses no
more by balloon (`taken_since`).
"""

from dataclasses import dataclass

import numpy as np

from sustain.schedulers.guest_memory import reclaim_cost
from sustain.schedulers.guest_memory.columns import Table, told_total, zero
from sustain.schedulers.guest_memory.plan import Column, Mask
from sustain.schedulers.guest_memory.working_set import Use

_NEAR_BYTES = 1 << 20  # balloons move in pages, sizes are said in MiB
_KEPT_USE = 0.5
_LISTS = (
    "inactive_buffer_bytes",
    "active_buffer_bytes",
    "inactive_anonymous_bytes",
    "active_anonymous_bytes",
)


@dataclass(frozen=True)
class Survival:
    """Columns of bytes; 0 where the guest has no balloon, or tells nothing."""

    told_ceiling: Column  # what its balloon left it when it told what it uses
    hidden: Column
    bare: Column  # below that it dies: what it cannot give, and what its kernel keeps free
    kept: Column  # what a balloon leaves it when active memory goes, too: the same, and of what it uses
    soon: Column  # what it may use soon, with what it lists nowhere where its balloon does not deflate by itself
    taken_since: Mask  # its balloon has taken memory since it told what it uses


def survival(of: Table, ceiling: Column, before: dict[str, Column], use: Use) -> Survival:
    """`ceiling`: what a guest may use now; `before`: `told_ceiling_bytes` and `classes_at_s` of the decision before."""
    same = of["classes_at_s"] == before["classes_at_s"]
    told = np.where(same, np.fmax(before["told_ceiling_bytes"], ceiling), ceiling)
    lists = np.sum([of[name] for name in _LISTS], axis=0)
    unreclaimable = of["unreclaimable_bytes"]
    listed = of["free_bytes"] + lists + unreclaimable
    total = told_total(of, told)
    hidden = np.maximum(zero(told - np.where(np.isnan(listed), total, listed)), 0)
    # Of a guest that tells no lists: what it does not call available.
    bare = hidden + zero(np.where(np.isnan(listed), total - of["available_bytes"], unreclaimable))
    anonymous = of.known("inactive_anonymous_bytes") + of.known("active_anonymous_bytes")
    stuck = np.maximum(anonymous - of.known("swap_free_bytes"), 0)
    bare += stuck + reclaim_cost.KEPT_FREE * of.known("size_bytes")
    active = of["active_anonymous_bytes"] + of["active_buffer_bytes"]
    told_use = np.maximum(of["available_bytes"] - of["free_bytes"], 0)
    used = np.where(np.isnan(active), told_use, active)
    used = zero(np.fmax(used, use.working_set_bytes - zero(unreclaimable)))
    kept = bare + np.where(of.deflates, 0.0, np.maximum(_KEPT_USE * used - stuck, 0))
    soon = zero(use.soon_bytes + np.where(of.deflates, 0.0, hidden))
    return Survival(told, hidden, bare, kept, soon, ceiling < told - _NEAR_BYTES)
