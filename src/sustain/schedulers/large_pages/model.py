"""What the large-page prioritiser sees and does, as values. Pure.

Used by `sense` and `counting` (which make an Observation), `decide` (Observation, State, Policy → Plan, State), `act`
(which carries a Plan's actions out and says what came of each), and by recordings, which hold observations.

A block is 2 MiB of a target's address space, aligned to 2 MiB. Blocks are kept in columns, one NumPy array for each
figure, since there are up to a million and a decision looks at all of them. Times are seconds of CLOCK_BOOTTIME.
Unknown is None, NaN in a column of floats, −1 in one of whole numbers; never zero.
"""

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 2 << 20
PAGE_BYTES = 4096
PAGES = BLOCK_BYTES // PAGE_BYTES  # in a block: 512

Counting = Literal["page-idle", "damon", "none"]
NOT_ITS_TURN = "it was not its turn any more in this round"  # details of actions that were not tried at all
STOPPING = "the scheduler stops"
Outcome = Literal["done", "again later", "no large page to be had", "gone", "not eligible", "refused"]
Purpose = Literal["pays", "cold", "sparse", "pressure", "budget", "recount", "counted", "restore"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One process whose memory is counted. Where it begins anew (exec, restart) it is another target."""

    name: str  # unique in an observation
    pid: int
    started: int  # its start time in clock ticks since boot: /proc/PID/stat, field 22
    counting: Counting = "none"  # by which way
    window_s: float | None = (
        None  # time within which an access counts: a page is touched when it was used in it
    )
    period_s: float | None = None  # how long the last counting period was; None: as long as `window_s`
    problems: tuple[str, ...] = ()  # what is unknown or impossible, and why, in words
    wanted: str = ""  # the configured target by which it was found, of which there may be several
    program: int = 0  # which one it is since it was first looked at: exec is another, at other addresses
    looked: bool = True  # False: it could not be looked at this time, so none of its blocks is told

    @property
    def life(self) -> str:
        """Tells this start of the process, and this program in it, from every other in this boot."""
        life = f"{self.pid}:{self.started}"
        return f"{life}:{self.program}" if self.program else life


class Blocks(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """All blocks of all targets, in columns of one length; (target, address) is there once, in ascending order.

    A count that is not new keeps its value and grows in age. The memory of a block that is mapped large has one
    accessed bit for all of it; how it is counted is said by `whole`.
    """

    target: NDArray[np.int32]  # index into Observation.targets
    address: NDArray[np.uint64]  # of its first byte
    touched: NDArray[np.float32]  # pages accessed in the last counting period, 0 … 512; NaN: unknown
    error: NDArray[np.float32]  # of `touched`: one standard error in pages; 0: counted exactly; NaN: unknown
    age_s: NDArray[np.float32]  # since that counting period ended; NaN: never counted
    populated: NDArray[np.int16]  # pages present, 0 … 512; −1: unknown
    large: NDArray[np.bool_]  # mapped large now
    whole: NDArray[np.bool_]  # `touched` only tells whether the block was used at all (512) or not (0)
    eligible: NDArray[np.bool_]  # its mapping covers all of it, and is of a kind that can be mapped large
    guest_large: NDArray[np.int8]  # a guest in it maps it large itself: 1 yes, 0 no, −1 unknown

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in self.__struct_fields__}
        if len(lengths) > 1:
            raise ValueError(f"columns of blocks differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.address)

    def rows(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> "Blocks":
        """Those rows."""
        return Blocks(**{name: getattr(self, name)[rows] for name in self.__struct_fields__})


def no_blocks() -> Blocks:
    """None at all."""
    return unknown_blocks(np.zeros(0, np.int32), np.zeros(0, np.uint64))


def unknown_blocks(target: NDArray[np.int32], address: NDArray[np.uint64]) -> Blocks:
    """Blocks of which nothing is known but where they are."""
    count = len(address)
    return Blocks(
        target=target,
        address=address,
        touched=np.full(count, np.nan, np.float32),
        error=np.full(count, np.nan, np.float32),
        age_s=np.full(count, np.nan, np.float32),
        populated=np.full(count, -1, np.int16),
        large=np.zeros(count, np.bool_),
        whole=np.zeros(count, np.bool_),
        eligible=np.zeros(count, np.bool_),
        guest_large=np.full(count, -1, np.int8),
    )


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the host's kernel is told about large pages: /sys/kernel/mm/transparent_hugepage. None: it does not say."""

    enabled: str | None = None  # always, madvise or never
    defrag: str | None = None  # always, defer, defer+madvise, madvise or never
    shmem_enabled: str | None = None  # always, within_size, advise, never, deny or force
    khugepaged_defrag: bool | None = None


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """The host's memory, as far as it bears on large pages."""

    total_bytes: float | None = None
    free_bytes: float | None = None
    available_bytes: float | None = None  # that the kernel could give without swapping
    pressure: float | None = None  # share of the last 10 s in which some task waited for memory (PSI some)
    free_large_pages: int | None = None  # runs of 2 MiB that are free now, without compaction
    settings: Settings = Settings()
    problems: tuple[str, ...] = ()


class Observation(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Everything that a decision may know of the outside world."""

    now_s: float
    blocks: Blocks
    targets: tuple[Target, ...] = ()
    host: HostView = HostView()
    notes: tuple[str, ...] = ()  # beyond one target or the host, in words: how is counted, what that takes

    def __post_init__(self) -> None:
        target = self.blocks.target
        if len(target) and not 0 <= target.min() <= target.max() < len(self.targets):
            raise ValueError("a block is of a target that is not there")


class Collapse(msgspec.Struct, frozen=True, kw_only=True, tag="collapse"):
    """Map that block large now."""

    target: str
    pid: int
    started: int
    address: int
    purpose: Purpose
    reason: str


class Demote(msgspec.Struct, frozen=True, kw_only=True, tag="demote"):
    """Map that block small again; what is in it stays. `recount`: for a while, to see which of its pages are used."""

    target: str
    pid: int
    started: int
    address: int
    purpose: Purpose
    reason: str


Action = Collapse | Demote


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an action, as it was verified when `act` returned.

    done: the page tables say so. again later: the kernel was busy, or its cgroup had no room. no large page to be had:
    memory is fragmented or short. gone: the process, or the mapping. not eligible: not this block, as its mapping is
    or as it is held. refused: we may not, or this kernel cannot, whatever the block.
    """

    action: Action
    outcome: Outcome
    detail: str = ""
    bytes: float | None = None  # that the target holds more than before (a collapse) or less (negative)
    seconds: float | None = None  # that it took

    @property
    def done(self) -> bool:
        return self.outcome == "done"

    @property
    def tried(self) -> bool:
        """Whether the kernel was asked at all."""
        return not (self.outcome == "again later" and self.detail in (NOT_ITS_TURN, STOPPING))
