"""Mapping single blocks of one process large or small, and seeing what came of it.

Used by `act` and `undo`. The kernel's word is not taken for the deed: what a block is, the page tables say before and
after (PAGEMAP_SCAN). What each refusal of MADV_COLLAPSE means (mm/khugepaged.c, madvise_collapse_errno):
- ENOMEM: no large page is free and compaction made none, or the block is not mapped any more: `maps` tells which;
- EBUSY: its cgroup has no room for it; EAGAIN: a page was held by somebody at that moment, which passes: tried again;
- EINVAL: the mapping is of a kind that is never large, which `smaps` explains; or a kernel before 6.1; or (6.12) none
  of its pages may be written as it is, since it has been shared with a child by a fork: that passes with a write;
- ESRCH: the process has gone; EPERM, EACCES, ENOSYS: we may not, or this kernel cannot.
What `smaps` says costs 0.1 s for each 10 GiB of small pages, so it is read once for a hand, and not at all for ENOMEM.
It takes no notice of `enabled` and `max_ptes_none`: pages that nobody has touched are filled.

Small: MADV_COLD on the block's last page has the kernel split it, where one process maps it and it is not locked;
otherwise by `split_huge_pages` of debugfs, where that is mounted. The kernel refuses while somebody holds a page of it
(pinned for devices); that says nothing of other blocks. That one page then counts as cold. From Linux 6.12 on pages
that hold only zeros are given back by a split of private memory; before, what was filled stays filled.
"""

import errno
import threading
from dataclasses import dataclass
from pathlib import Path

from sustain.errors import HostError, SustainError
from sustain.host import kernel, large_pages, madvise, maps, smaps
from sustain.host.madvise import Advice, Advisor
from sustain.host.pagemap import BLOCK_BYTES, PAGE_BYTES, PAGES_OF_BLOCK, Pagemap
from sustain.host.processes import Identity
from sustain.schedulers.large_pages.model import Outcome

_TRIES = 3
_PAUSE_S = 0.02  # before the second try; twice as long before the third
_COLLAPSES = (6, 1)


@dataclass(frozen=True, slots=True)
class State:
    """What the page tables say of a block."""

    large: bool
    present: int  # pages, 0 … 512
    shared: bool  # tmpfs, memfd and the like


@dataclass(frozen=True, slots=True)
class Came:
    """What came of one try."""

    outcome: Outcome
    detail: str = ""
    grown_bytes: int | None = None  # that the process has more of its block in memory


class Hand:
    """On the memory of one process. Close it. Raises HostError or RegionIOError (both SustainError) when the process
    has gone or may not be looked at; `gone` tells which."""

    def __init__(self, who: Identity, root: Path = Path("/"), stop: threading.Event | None = None) -> None:
        self.who = who
        self._root = root
        self._stop = stop or threading.Event()
        self._mappings: tuple[smaps.Mapping, ...] | None = None  # once they were needed
        self._advisor = Advisor(who)
        try:
            self._table = Pagemap(who.pid, root)
        except BaseException:
            self._advisor.close()
            raise

    def state(self, address: int) -> State:
        """Of a block that may not be mapped at all: then nothing of it is present."""
        found = self._table.census(address, address + BLOCK_BYTES)
        if found.huge_bytes is None or found.zero_bytes is None:
            raise HostError("what is mapped large is not known", hint="it needs Linux 6.7 (PAGEMAP_SCAN)")
        present = (found.present_bytes - found.zero_bytes) // PAGE_BYTES
        return State(found.huge_bytes > 0, present, found.file_bytes > 0)

    def enlarge(self, address: int) -> Came:
        """Map it large. Raises SustainError only when nothing can be said of it any more."""
        before = self.state(address)
        if before.large:
            return Came("done", "it was mapped large already", 0)
        code = 0
        for number in range(_TRIES):
            code = self._advise(address, address + BLOCK_BYTES, Advice.COLLAPSE)
            if code != errno.EAGAIN or self._stop.wait(_PAUSE_S * 2**number):
                break
        after = self.state(address)
        grown = (after.present - before.present) * PAGE_BYTES
        if after.large:
            return Came("done", "", grown)
        if code == 0:
            return Came("again later", "the kernel says it was done, and the page tables do not", grown)
        outcome, detail = self._why_not(address, before, code)
        return Came(outcome, detail, grown)

    def reduce(self, address: int) -> Came:
        """Map it small; what is in it stays."""
        before = self.state(address)
        if not before.large:
            return Came("done", "it was mapped small already", 0)
        for number in range(_TRIES):
            code = self._advise(address + BLOCK_BYTES - PAGE_BYTES, address + BLOCK_BYTES, Advice.COLD)
            after = self.state(address)
            if not after.large or code or self._stop.wait(_PAUSE_S * 2**number):
                break
            madvise.empty_batches()  # a page that waits in one is held, and not split
        how = ""
        if after.large:
            try:
                large_pages.split(self.who.pid, address, address + BLOCK_BYTES, self._root)
                how = "by split_huge_pages"
            except HostError as error:
                how = f"{error} ({error.hint})"
            after = self.state(address)
        # A split takes shared memory out of the page tables, and leaves it where it is.
        grown = None if before.shared else (after.present - before.present) * PAGE_BYTES
        if not after.large:
            return Came("done", how, grown)
        outcome, why = self._why_still_large(code, tried=how.startswith("by"))
        return Came(outcome, f"{why}; {how}", grown)

    def close(self) -> None:
        self._table.close()
        self._advisor.close()

    def __enter__(self) -> "Hand":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _advise(self, start: int, end: int, advice: Advice) -> int:
        """The errno; 0: all of it was taken."""
        try:
            said = self._advisor.advise([(start, end)], advice)
        except HostError as error:
            return error.errno or errno.EIO
        return next(iter(said.skipped_bytes), 0)

    def _why_still_large(self, code: int, *, tried: bool) -> tuple[Outcome, str]:
        """`tried`: the kernel was told to split it whoever maps it, and did not: somebody holds it at the moment."""
        match code:
            case errno.ESRCH | errno.EPERM | errno.EACCES | errno.ENOSYS:
                return _of_process(code)
            case errno.EINVAL:
                why = "it is locked"
            case 0:
                why = "other processes map it too, or a device holds pages of it"
            case _:
                return (
                    "again later",
                    f"the kernel could not do it now ({errno.errorcode.get(code, str(code))})",
                )
        return "again later" if tried else "not eligible", why

    def _why_not(self, address: int, before: State, code: int) -> tuple[Outcome, str]:
        word = errno.errorcode.get(code, str(code))
        match code:
            case errno.ESRCH | errno.EPERM | errno.EACCES | errno.ENOSYS:
                return _of_process(code)
            case errno.EBUSY:
                return "again later", "its cgroup has no room for a large page (EBUSY)"
            case errno.EAGAIN:
                return "again later", f"some of its pages were in use by the kernel, {_TRIES} times (EAGAIN)"
        if code == errno.ENOMEM and maps.covers(self.who.pid, address, address + BLOCK_BYTES, self._root):
            return "no large page to be had", "memory is fragmented or short (ENOMEM)"
        mapping = None if code == errno.ENOMEM else self._mapping(address)
        if mapping is None:
            return "gone", "it is not mapped any more, or not as one piece"
        if (kernel.release(self._root) or _COLLAPSES) < _COLLAPSES:
            return "refused", "MADV_COLLAPSE needs Linux 6.1"
        if mapping.why_small:
            return "not eligible", mapping.why_small
        if smaps.thp_disabled(self.who.pid, self._root):
            return "not eligible", "the process forbids large pages (PR_SET_THP_DISABLE)"
        if not before.present:
            return "not eligible", "nothing of it is in memory"
        return (
            "again later",
            f"the kernel does not map it large as it is; was nothing of it written since a fork? ({word})",
        )

    def _mapping(self, address: int) -> smaps.Mapping | None:
        if self._mappings is None:
            self._mappings = smaps.read(self.who.pid, self._root) or ()
        found = (each for each in self._mappings if each.start <= address)
        return next((each for each in found if address + BLOCK_BYTES <= each.end), None)


def _of_process(code: int) -> tuple[Outcome, str]:
    """What an errno says of all blocks of the process."""
    if code == errno.ESRCH:
        return "gone", "the process has gone"
    if code == errno.ENOSYS:
        return "refused", "process_madvise needs Linux 5.10 (ENOSYS)"
    return "refused", f"it needs CAP_SYS_NICE and CAP_SYS_PTRACE, or root ({errno.errorcode[code]})"


def gone(error: SustainError) -> bool:
    """Whether the process that an error speaks of is no more."""
    return getattr(error, "errno", None) in (errno.ESRCH, errno.ENOENT)


assert PAGES_OF_BLOCK * PAGE_BYTES == BLOCK_BYTES
