"""Counting the small pages that are used, block by block, of the processes that are looked at: what every way of it has
in common, and which one this kernel has.

Used by `sense`. Two ways, both see a guest through its second-level page tables, and neither changes what is in memory:
- `page_idle` (counting_page_idle): exact; kernels with CONFIG_IDLE_PAGE_TRACKING. A page is used when somebody has
  touched it within the period, whoever that was: the mark is the page's, not a process's.
- DAMON (counting_damon): estimated, with its error; kernels with CONFIG_DAMON_VADDR. A page is used when it is touched
  within one sample's interval, which is a part of the period.
`Count.window_s` says which time it was. Memory that is mapped large has one accessed bit for 512 pages: of such a block
only whether it was used at all is known (`whole`), until it is mapped small for a while, which is for the decision.

Rejected: `clear_refs` with `Referenced` of smaps, one number for a whole mapping, which does not see a guest; the
sampling of addresses by `perf mem`, which wants processors that most guests do not show.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sustain.clock import Clock
from sustain.errors import HostError
from sustain.host import damon, page_idle
from sustain.host.processes import Identity
from sustain.schedulers.changes import Changes
from sustain.schedulers.large_pages.model import BLOCK_BYTES, Counting

SHARE = 0.01  # of a core, for each GiB, that counting may take
LONGEST = 6  # periods: counts that are much older are not acted upon
Ways = Literal["auto", "page-idle", "damon", "none"]


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What is to be counted of one process. `image` changes when it executes another program (host.smaps)."""

    who: Identity
    image: int
    addresses: NDArray[np.uint64]  # of blocks, ascending
    shared: NDArray[np.bool_]  # memory that others may map too


@dataclass(frozen=True, slots=True, eq=False)
class Count:
    """What one period came to. Columns of one length; pages, as in `model.Blocks`."""

    image: int
    at_s: float  # its end, by CLOCK_BOOTTIME
    window_s: float  # within which a use counts
    addresses: NDArray[np.uint64]  # ascending
    touched: NDArray[np.float32]
    error: NDArray[np.float32]
    whole: NDArray[np.bool_]
    period_s: (
        float  # how long before `at_s` it began, which is longer than `window_s` where only samples are taken
    )


def stretches(addresses: NDArray[np.uint64]) -> list[tuple[int, int, slice]]:
    """Blocks that follow each other: addresses from and to, and their places."""
    if not len(addresses):
        return []
    edges = [0, *(np.flatnonzero(np.diff(addresses) != BLOCK_BYTES) + 1).tolist(), len(addresses)]
    return [
        (int(addresses[first]), int(addresses[last - 1]) + BLOCK_BYTES, slice(first, last))
        for first, last in pairwise(edges)
    ]


def least_s(spent_s: float, blocks: int, share: float, period_s: float, longest_s: float = math.inf) -> float:
    """How long a period lasts at least, of which counting so many blocks takes `spent_s` of processor time, so that
    this is no more than `share` of a core for each GiB (of less than one, as for one); `LONGEST` periods, and
    `longest_s`, at most."""
    gib = max(1.0, blocks * BLOCK_BYTES / (1 << 30))
    return min(max(period_s, spent_s / (share * gib)), LONGEST * period_s, max(period_s, longest_s))


class Counter(Protocol):
    """One way of counting. Methods are called from one thread, and none waits for the end of a period."""

    @property
    def kind(self) -> Counting: ...

    def start(self, memories: Sequence[Memory]) -> None:
        """Count these from now on: what went on being counted goes on, the rest begins with the next period."""

    def read(self) -> Mapping[Identity, Count]:
        """The newest counts; of a process whose first period has not ended there is none."""

    def problems(self) -> Mapping[Identity, str]:
        """Why a process is not counted, in words."""

    def close(self) -> None:
        """End it and give back what it took. Raises SustainError."""


class NoCounter:
    """Counts nothing, where that is wanted or nothing else is possible."""

    kind: Counting = "none"

    def start(self, memories: Sequence[Memory]) -> None:
        """Nothing."""

    def read(self) -> Mapping[Identity, Count]:
        return {}

    def problems(self) -> Mapping[Identity, str]:
        return {}

    def close(self) -> None:
        """Nothing."""


def impossible(way: Literal["page-idle", "damon"], root: Path = Path("/")) -> HostError | None:
    """Why we cannot count that way here, with what to do; None: we can, as far as can be seen without trying."""
    if way == "page-idle" and not page_idle.available(root):
        return HostError(
            f"{page_idle.path(root)}: is not there, so used pages cannot be counted exactly",
            hint="it needs a kernel with CONFIG_IDLE_PAGE_TRACKING, as Ubuntu's and Fedora's have, and root",
        )
    if way == "page-idle" and (error := page_idle.hidden(root)) is not None:
        return HostError(
            f"{error}, so used pages cannot be counted exactly",
            hint="page_idle needs root with CAP_SYS_ADMIN, which the agent's unit file leaves out: add it to "
            "CapabilityBoundingSet= in a drop-in",
        )
    if way == "damon" and not damon.present(root):
        return HostError(
            "this kernel has no DAMON, so used pages cannot be estimated",
            hint="it needs a kernel with CONFIG_DAMON_VADDR and CONFIG_DAMON_SYSFS, as Debian's from 12 on, and root",
        )
    return None


# By default. Exact counting takes the kernel two walks for each page that was used, so it counts less often than DAMON
# (docs/decisions/0032-exact-counts-less-often.md).
PERIODS_S: dict[Ways, float] = {"page-idle": 40.0, "damon": 20.0}


def expected_period_s(way: Ways, period_s: float | None, root: Path = Path("/")) -> float:
    """Of a count, as far as can be known before anything counts."""
    exact = way != "damon" and impossible("page-idle", root) is None
    return period_s or PERIODS_S["page-idle" if exact else "damon"]


def counter(
    way: Ways,
    period_s: float | None,
    clock: Clock,
    changes: Changes,
    root: Path = Path("/"),
    longest_s: float = math.inf,
) -> tuple[Counter, str]:
    """The one that is wanted; of "auto" the best that there is, and why there is no better one, in words, where this
    kernel has that. Raises HostError with what is missing: of "auto" both reasons. A kernel whose DAMON cannot watch
    processes shows that only when it is tried. `period_s`: of a count, None: the way's own default; `longest_s`: no
    period is longer."""
    from sustain.schedulers.large_pages.counting_damon import DamonCounter

    if way == "none":
        return NoCounter(), ""
    exact, estimated = None, impossible("damon", root)
    if way != "damon":
        try:
            return _exact(period_s or PERIODS_S["page-idle"], clock, root, longest_s), ""
        except HostError as error:
            if way == "page-idle":
                raise
            exact = error
    if estimated is not None and exact is not None:
        raise HostError(
            f"used pages cannot be counted: {exact}; {estimated}", hint=f"{exact.hint}; or {estimated.hint}"
        )
    if estimated is not None:
        raise estimated
    why = ""
    if exact is not None and page_idle.available(root):
        why = f"used pages are not counted exactly: {exact} ({exact.hint})"
    return DamonCounter(
        period_s or PERIODS_S["damon"], clock, changes, root, share=SHARE, longest_s=longest_s
    ), why


def _exact(period_s: float, clock: Clock, root: Path, longest_s: float) -> Counter:
    """Raises HostError, also where somebody else counts so now."""
    from sustain.schedulers.large_pages.counting_page_idle import PageIdleCounter

    if (lacks := impossible("page-idle", root)) is not None:
        raise lacks
    return PageIdleCounter(period_s, clock, root, SHARE, longest_s)
