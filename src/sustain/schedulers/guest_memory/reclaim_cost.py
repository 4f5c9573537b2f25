"""What it costs a guest to lose memory, by the way in which it is taken. Pure.

Used by `decide`, which takes the cheapest way, and by `admission`. The cost is time that the guest will wait later,
by estimate: for each page the chance that it is used again, times what it takes to bring it back; a page that must
be written first costs that as well. Only the order of prices decides. None of the figures is measured on this host, and
no publication is their source: reading 4 KiB in 150 µs and writing it in 50 µs (into the device's cache) is what
solid-state disks usually do; the chances of 5 % and 90 %, and the 2 % that stay free, are chosen. A tenth or tenfold of
the prices changes nothing in the simulated loads (docs/operating/guest-memory.md).

A balloon lets the guest choose: free pages, then inactive buffers, inactive anonymous ones (if it has swap), active
buffers, active anonymous ones. What is in the host's swap already must be read before the guest can write it to its
own (double paging), and that is charged. The host's own swapping is told by an agent which pages are anonymous and
inactive; without one it takes of all that is not free alike, and hits the active in their proportion. A cgroup's
reclaim goes the way of the balloon, with the host's swap. Free pages are never in what may be paged out.
"""

from dataclasses import dataclass

import numpy as np

from sustain.schedulers.guest_memory.columns import Table, zero
from sustain.schedulers.guest_memory.plan import Column, Mask

PAGE_BYTES = 4096
READ_S = 150e-6
WRITE_S = 50e-6
AGAIN_COLD = 0.05  # the chance that an inactive page is used again soon
AGAIN_HOT = 0.9
KEPT_FREE = 0.02  # of its size, that a guest keeps free whatever is asked of it

_FREE = 0.0
_COLD_BUFFER = AGAIN_COLD * READ_S
_COLD_ANONYMOUS = WRITE_S + AGAIN_COLD * READ_S
_HOT_BUFFER = AGAIN_HOT * READ_S
_HOT_ANONYMOUS = WRITE_S + AGAIN_HOT * READ_S


@dataclass(frozen=True)
class Layers:
    """Memory by the order in which it goes: how much of each, and seconds per page. `cold` are the first few, which
    may go while the guest is not to suffer."""

    sizes: tuple[Column, ...]
    prices: tuple[Column | float, ...]
    cold: int

    def amount(self, *, deep: Mask) -> Column:
        """What can be taken; of those that are `deep` all."""
        found: Column = np.sum(self.sizes[: self.cold], axis=0)
        if deep.any():
            found = np.where(deep, np.sum(self.sizes, axis=0), found)
        return found

    def cost_s(self, amount: Column) -> Column:
        """Of taking that much; NaN where there is not so much."""
        rest, cost = amount.copy(), np.zeros(len(amount))
        for size, price in zip(self.sizes, self.prices, strict=True):
            part = np.minimum(rest, size)
            cost += part / PAGE_BYTES * price
            rest -= part
        return np.where(rest > 1.0, np.nan, cost)


def spare_free(of: Table) -> Column:
    """What a guest calls free beyond what it keeps."""
    return np.maximum(of.known("free_bytes") - KEPT_FREE * of.known("size_bytes"), 0)


def balloon(of: Table) -> Layers:
    """Through the balloon. `Layers.amount` includes what was never touched, and so frees nothing on the host."""
    swap = of.known("swap_free_bytes")
    cold, hot = of.known("inactive_anonymous_bytes"), of.known("active_anonymous_bytes")
    with np.errstate(divide="ignore", invalid="ignore"):
        double = zero(np.clip(of.known("host_swapped_bytes") / cold, 0, 1))
    cold_out = np.minimum(cold, swap)
    # Where the two kinds of buffers are not told apart, what the guest itself calls available counts as in use.
    told = np.maximum(of["available_bytes"] - of["free_bytes"], 0)
    hot_buffer = np.where(np.isnan(of["active_buffer_bytes"]), zero(told), of["active_buffer_bytes"])
    # Below its watermarks a kernel gives nothing away, though it calls it free.
    available = of["available_bytes"] - KEPT_FREE * of.known("size_bytes")
    return Layers(
        (
            np.maximum(np.fmin(spare_free(of), available), 0),
            np.maximum(of.known("inactive_buffer_bytes") - of.known("dirty_bytes"), 0),
            cold_out,
            zero(hot_buffer),
            np.minimum(hot, swap - cold_out),
        ),
        (_FREE, _COLD_BUFFER, _COLD_ANONYMOUS + double * READ_S, _HOT_BUFFER, _HOT_ANONYMOUS),
        3,
    )


def pageout(of: Table) -> Layers:
    """Through the host's swap: of inactive anonymous memory by the lower bound of its estimate, without what is there
    already."""
    cold = np.maximum(of.known("inactive_anonymous_bytes") - 2 * of.known("error_bytes"), 0)
    hot = of.known("active_anonymous_bytes")
    cold = np.maximum(np.minimum(cold, of.known("resident_bytes")) - of.known("host_swapped_bytes"), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        struck = zero(hot / (hot + of.known("inactive_anonymous_bytes")))
    blind = WRITE_S + (struck * AGAIN_HOT + (1 - struck) * AGAIN_COLD) * READ_S
    return Layers((cold,), (np.where(of.sampled, blind, _COLD_ANONYMOUS),), 1)


def reclaim(of: Table, host_swap_bytes: float) -> Layers:
    """Through the kernel's reclaim of a cgroup. Of a virtual machine's it is blind to what the guest calls free."""
    container = of.is_cgroup.astype(float)
    cold = np.minimum(of.known("inactive_anonymous_bytes"), host_swap_bytes)
    machine = pageout(of)
    blind = np.where(container > 0, _COLD_ANONYMOUS, machine.prices[0] + WRITE_S)
    return Layers(
        (
            container * np.maximum(of.known("inactive_buffer_bytes") - of.known("dirty_bytes"), 0),
            np.where(container > 0, cold, np.minimum(machine.sizes[0], host_swap_bytes)),
            container * of.known("active_buffer_bytes"),
            container * np.minimum(of.known("active_anonymous_bytes"), host_swap_bytes),
        ),
        (_COLD_BUFFER, blind, _HOT_BUFFER, _HOT_ANONYMOUS),
        2,
    )
