"""What the guest memory scheduler sees, remembers and plans, as values. Pure.

Used by `sense` (which makes an Observation), `decide` (Observation, State, Policy → Plan, State), `act` (which carries
a Plan out and says what came of it), and by recordings, which hold observations as JSON, one to a line.

Sizes are in bytes, times in seconds of CLOCK_BOOTTIME, counters grow from a start that nobody knows. None is
"unknown", never zero. `Figures` is flat and numeric so that a plan for thousands of guests can be reckoned in columns.
"""

from typing import Literal

import msgspec

Kind = Literal["qemu", "libvirt", "cgroup"]
Source = Literal["guest-agent", "balloon", "cgroup", "sampling", "none"]
Mechanism = Literal["balloon", "pageout", "reclaim"]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """All numbers of one guest at one moment.

    Page classes are of memory that the guest sees; they need not add up to `size_bytes`, since a kernel keeps some to
    itself. `error_bytes` is one standard error of each class, 0 where the guest has counted.
    """

    # what the host sees
    size_bytes: float | None = None  # the most it can ever have: its RAM, or the limit of its cgroup
    balloon_bytes: float | None = (
        None  # what its balloon leaves it now; None: no balloon, or no driver in the guest
    )
    resident_bytes: float | None = None  # of its memory, in the host's
    host_swapped_bytes: float | None = None  # of its memory, in the host's swap
    huge_bytes: float | None = None  # of the resident, mapped large

    # page classes
    free_bytes: float | None = None
    inactive_buffer_bytes: float | None = None
    active_buffer_bytes: float | None = None
    inactive_anonymous_bytes: float | None = None
    active_anonymous_bytes: float | None = None
    unreclaimable_bytes: float | None = None
    buffer_bytes: float | None = (
        None  # both kinds together, where they are not told apart; with shared memory
    )
    available_bytes: float | None = None  # what the guest itself thinks it could give without swapping
    dirty_bytes: float | None = None  # of the buffers; cannot be dropped before it is written
    swapped_bytes: float | None = None  # by the guest itself
    swap_free_bytes: float | None = None  # that the guest has left
    total_bytes: float | None = None  # what the guest thinks it has
    error_bytes: float = 0.0
    classes_at_s: float | None = None  # when the guest said so; a stale answer keeps its old time

    # counters
    stall_us: float | None = None  # time that some task of the guest waited for memory (PSI some)
    full_stall_us: float | None = None
    swap_in_bytes: float | None = None  # by the guest
    refault_bytes: float | None = None  # of buffers, read again soon after they were dropped
    major_faults: float | None = None
    host_swap_in_bytes: float | None = None  # of the guest's memory, by the host: major faults of its process


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """One guest. A container (a cgroup) is a guest too."""

    name: str
    kind: Kind
    life: str  # tells this start of the guest from the one before: pid and start time, or the cgroup's inode
    source: Source  # of the page classes
    deflates: bool | None = None  # its balloon gives back when it runs out (deflate-on-oom)
    boot: str = ""  # of the system in it, by its agent: another one means that its counters began anew
    figures: Figures
    can: tuple[Mechanism, ...] = ()  # what could be used on it now
    problems: tuple[str, ...] = ()  # what is unknown or impossible, and why, in words


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """The host's own memory."""

    total_bytes: float | None = None
    free_bytes: float | None = None
    available_bytes: float | None = None
    swap_total_bytes: float | None = None  # 0: this host has none
    swap_free_bytes: float | None = None
    stall_us: float | None = None
    swap_in_bytes: float | None = None
    swap_out_bytes: float | None = None
    problems: tuple[str, ...] = ()


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a decision may know of the outside world."""

    at_s: float
    host: Host
    guests: tuple[Guest, ...] = ()


class GuestPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator wants for one guest."""

    shares: float = 1000.0
    reservation_bytes: float = 0.0  # never less than this
    limit_bytes: float | None = None  # never more; None: its size
    mechanisms: tuple[Mechanism, ...] = ("balloon", "pageout", "reclaim")


class Bounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A state of the host begins when less than that is available. It ends at the next bound above; soft ends at the
    goal, clear a tenth above its bound."""

    clear_bytes: float
    soft_bytes: float
    hard_bytes: float
    low_bytes: float


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator wants for the host. The bounds of the host's states are derived from its size where None."""

    default: GuestPolicy = GuestPolicy()
    guests: dict[str, GuestPolicy] = {}
    idle_tax: float = 0.75  # 0: shares alone; towards 1: idle memory counts for almost nothing
    goal_free_bytes: float | None = None  # of the host; what the scheduler works towards
    bounds: Bounds | None = None  # of the host's states
    headroom: float = 0.10  # of its working set, that a guest keeps above it
    step: float = 0.05  # of a guest's size, the most that one action takes
    least_change_bytes: float = 16 << 20
    fresh_s: float = 30.0  # older classes are not acted upon
    rise_s: float = 10.0  # time constants of the working-set estimate
    fall_s: float = 300.0
    stall_limit: float = 0.01  # of time; a guest above it gets memory back at once


class Balloon(msgspec.Struct, frozen=True, kw_only=True, tag="balloon"):
    """Leave the guest `to_bytes` (`from_bytes` now)."""

    guest: str
    life: str
    from_bytes: float
    to_bytes: float
    reason: str


class PageOut(msgspec.Struct, frozen=True, kw_only=True, tag="pageout"):
    """Move that much of the guest's coldest memory to the host's swap, never what the guest calls free."""

    guest: str
    life: str
    amount_bytes: float
    reason: str


class Reclaim(msgspec.Struct, frozen=True, kw_only=True, tag="reclaim"):
    """Have the kernel reclaim that much from the guest's cgroup."""

    guest: str
    life: str
    amount_bytes: float
    reason: str


Action = Balloon | PageOut | Reclaim


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an action, as far as it was seen when `act` returned; the next observation tells the rest."""

    action: Action
    done: bool
    freed_bytes: float | None = (
        None  # of the host's memory: resident before, less resident after; negative: given
    )
    problem: str | None = None
    under_way: bool = False  # it goes on, or may
