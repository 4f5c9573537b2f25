"""/sys/kernel/mm/damon: which parts of a process's memory are used, watched by the kernel's DAMON.

Documentation/admin-guide/mm/damon/usage.rst; kernels with CONFIG_DAMON_VADDR and CONFIG_DAMON_SYSFS (Linux 5.19; tried
regions: 6.2). Used by the guest memory scheduler for guests that tell nothing, where there is no page_idle, and by the
large-page prioritiser.

The model: regions of a process are watched. Each `sample_us` the kernel looks at one page of each region, at random,
whether it was used since the sample before; after each `aggregation_us` it has counted how often it was. Two ways to
use that:
- regions of one page each, chosen by us: a page counts as used when one of its samples said so, so `Watch.totals`
  tells how many of the chosen pages were used within the last aggregation. Reading costs the same for any number.
- a region for each 2 MiB block (`blocks`): `Watch.regions` tells how often the page that was looked at had been used;
  `estimate` makes a share of the block's pages of it, with its error. Reading costs three files for each region. Of
  several processes in one watch (`watch_all`), `Watch.counts` tells it in the order in which they were given.
Where a page is mapped large the kernel sees its 512 pages as one.

The kernel has one list of kdamonds for all: setting their number takes all away that do not run, and is refused while
one runs. So it is only set where it is 0, or names ours. We take `SLOTS` at once, of which each watch uses one; while
one of ours runs, nobody else can set up DAMON, and nobody's is touched. What names ours is the inode of the first
directory; `note` is told of it, so that `clean_up` can take them away after SIGKILL (a kdamond goes on until the
process that it watches ends). Commands to a running kdamond are carried out one at a time, and wait for its next
sample.

Rejected: regions that the kernel splits and joins by itself (`vaddr`), whose error nobody can state; the trace event
damon_aggregated, which needs a second file system and, for totals, costs more than two files.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from sustain.errors import HostError
from sustain.host import files

T = TypeVar("T")

SLOTS = 64
BLOCK_BYTES = 2 << 20
LEAST_REGIONS = 3  # the kernel takes no less
_ADMIN = "sys/kernel/mm/damon/admin/kdamonds"
_UPDATE_US = 60_000_000  # how often mappings are looked up; not used for fixed regions
_MOST, _MOST_COUNT = 2**64 - 1, 2**32 - 1
_USED, _ALL = 0, 1  # schemes
_BUSY_TRIES, _BUSY_S = 100, 0.01
_CHECKED = 16  # regions, of which one is asked where it begins
_HINT = "it needs root, and a kernel with CONFIG_DAMON_VADDR and CONFIG_DAMON_SYSFS"

Run = tuple[int, int]  # addresses: from, to


@dataclass(frozen=True, slots=True)
class Attributes:
    """How often the kernel looks, and how often it has counted."""

    sample_us: int
    aggregation_us: int

    @property
    def samples(self) -> int:
        """The most that a region's count can be."""
        return max(1, self.aggregation_us // self.sample_us)


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the watch began, over all aggregations: how often a region was looked at, and how often it was used."""

    seen: int
    used: int


@dataclass(frozen=True, slots=True)
class Region:
    """One region after an aggregation."""

    start: int
    end: int
    accesses: int  # of `Attributes.samples`
    age: int  # aggregations for which it has been used about as much


@dataclass(frozen=True, slots=True)
class Estimate:
    """Share of a region's pages that are used within a sample interval, and its standard error."""

    share: float
    error: float


def estimate(accesses: int, samples: int) -> Estimate:
    """Of a region whose pages were looked at `samples` times, at random: √(f(1−f)/n), never less than one sample's."""
    share = accesses / samples
    return Estimate(share, max((share * (1 - share) / samples) ** 0.5, 1 / samples))


def blocks(areas: Iterable[Run], block_bytes: int = BLOCK_BYTES) -> list[Run]:
    """The whole, aligned blocks of these ranges."""
    found: list[Run] = []
    for start, end in areas:
        first = -(-start // block_bytes) * block_bytes
        found.extend((at, at + block_bytes) for at in range(first, end - block_bytes + 1, block_bytes))
    return found


def present(root: Path = Path("/")) -> bool:
    """Whether this kernel has DAMON's files; whether it can watch processes is found out by taking it."""
    return (root / _ADMIN / "nr_kdamonds").exists()


class Damon:
    """DAMON, while it is ours. Any thread may call; close it."""

    def __init__(
        self, note: Callable[[int | None], None], root: Path = Path("/"), slots: int = SLOTS
    ) -> None:
        """Take it. `note` is told before anything is changed (0), then what names ours, and when nothing of ours is
        there any more (None); what it raises ends it. Raises HostError where the kernel has none, it cannot watch
        processes (EOPNOTSUPP), or somebody else uses it (EBUSY)."""
        self._admin = root / _ADMIN
        self._note = note
        self._lock = threading.RLock()
        self._free = list(range(slots))[::-1]
        self.inode = 0
        count = files.number(self._admin / "nr_kdamonds")
        if count is None:
            raise HostError(f"{self._admin}: this kernel has no DAMON", hint=_HINT, errno=errno.ENOENT)
        if count != 0:
            raise HostError(
                f"{self._admin}: {count} kdamonds are set up by somebody else",
                hint="`sustain agent restore` takes away those of an agent that was killed; others are theirs",
                errno=errno.EBUSY,
            )
        note(0)
        try:
            _put(self._admin / "nr_kdamonds", slots)
        except HostError:
            note(None)
            raise
        try:
            self.inode = _inode(self._admin) or 0
            note(self.inode)
            self._check()
        except BaseException:
            self.close()
            raise

    def watch(self, pid: int, regions: Sequence[Run], attributes: Attributes) -> "Watch":
        """Watch these regions of a process, which are kept as they are. Raises HostError: also when no slot is free,
        when the process has gone, and ValueError for less than `LEAST_REGIONS`."""
        return self.watch_all([(pid, regions)], attributes)

    def watch_all(self, targets: Sequence[tuple[int, Sequence[Run]]], attributes: Attributes) -> "Watch":
        """The same for regions of several processes. One that ends meanwhile counts as not used from then on; the
        watch ends with the last of them."""
        count = sum(len(regions) for _, regions in targets)
        if count < LEAST_REGIONS:
            raise ValueError(f"{count} regions; the kernel takes no less than {LEAST_REGIONS}")
        with self._lock:
            self._mine()
            if not self._free:
                raise HostError(f"{self._admin}: no slot is free", hint="watch fewer guests at once")
            slot = self._free.pop()
        directory = self._admin / str(slot)
        try:
            _configure(directory / "contexts", targets, attributes)
            _put(directory / "state", "on")
        except BaseException:
            self._give_back(slot)
            raise
        return Watch(self, slot, directory, attributes)

    def close(self) -> None:
        """End what is watched, and leave DAMON as it was found. Raises HostError."""
        with self._lock:
            remove(self.inode, self._admin)
            self._note(None)

    def interrupt(self) -> None:
        """End all that is watched at once, without waiting for whoever reads it: that one gets HostError (ESRCH).
        Raises HostError."""
        if _inode(self._admin) == self.inode:
            for slot in range(files.number(self._admin / "nr_kdamonds") or 0):
                _stop(self._admin / str(slot))

    def _check(self) -> None:
        contexts = self._admin / "0/contexts"
        _put(contexts / "nr_contexts", 1)
        known = (files.text(contexts / "0/avail_operations") or "").split()
        _put(contexts / "nr_contexts", 0)
        if "fvaddr" not in known:
            raise HostError(
                f"{self._admin}: this kernel's DAMON cannot watch processes (it knows {' '.join(known) or 'nothing'})",
                hint=_HINT,
                errno=errno.EOPNOTSUPP,
            )

    def _mine(self) -> None:
        """Raises HostError when it is not ours any more."""
        if _inode(self._admin) != self.inode:
            raise HostError(
                f"{self._admin}: somebody else has set up DAMON anew",
                hint="only one can use it at a time; a guest whose agent answers needs no DAMON",
                errno=errno.ESTALE,
            )

    def _give_back(self, slot: int) -> None:
        with self._lock:
            self._mine()
            _stop(self._admin / str(slot))
            _put(self._admin / str(slot) / "contexts/nr_contexts", 0)
            self._free.append(slot)

    def _command(self, directory: Path, command: str) -> None:
        with self._lock:
            self._mine()
            try:
                _put(directory / "state", command)
            except HostError as error:
                if error.errno != errno.EINVAL:
                    raise
                raise HostError(
                    f"{directory}: it does not watch any more",
                    hint="has the process ended?",
                    errno=errno.ESRCH,
                ) from None


class Watch:
    """Some regions of one process. Raises HostError: errno ESRCH, the process has gone."""

    def __init__(self, damon: Damon, slot: int, directory: Path, attributes: Attributes) -> None:
        self.attributes = attributes
        self._damon = damon
        self._slot = slot
        self._directory = directory
        self._schemes = directory / "contexts/0/schemes"
        self._asked = 0  # `counts`, so often

    def totals(self) -> Totals:
        """Waits for the next sample."""
        self._damon._command(self._directory, "update_schemes_stats")
        used, seen = (files.number(self._schemes / f"{each}/stats/nr_tried") for each in (_USED, _ALL))
        if used is None or seen is None:
            raise HostError(f"{self._schemes}: no statistics", hint=_HINT)
        return Totals(seen, used)

    def regions(self) -> list[Region]:
        """All of them, by their addresses. Waits for the end of an aggregation, or two. Raises HostError also where
        the kernel has no tried regions."""
        tried = self._schemes / str(_ALL) / "tried_regions"
        self._damon._command(self._directory, "update_schemes_tried_regions")
        try:
            names = [name for name in os.listdir(tried) if name.isdecimal()]
        except OSError as error:
            raise files.refused(tried, error, "tried regions need Linux 6.2") from None
        found = [_region(tried / name) for name in names]
        self._damon._command(self._directory, "clear_schemes_tried_regions")
        return sorted((each for each in found if each is not None), key=lambda each: each.start)

    def counts(self) -> list[tuple[int | None, int]]:
        """Of all regions, in the order in which they were given, and by addresses within a process: where it begins,
        and its accesses. Waits as `regions` does.

        Opening a file for the first time is most of what this costs, and each reading has new ones. So where a region
        begins is only asked of each at first, and later of one in `_CHECKED`, in turns; None: it was not asked.
        """
        tried = self._schemes / str(_ALL) / "tried_regions"
        self._damon._command(self._directory, "update_schemes_tried_regions")
        try:
            numbers = sorted(int(name) for name in os.listdir(tried) if name.isdecimal())
        except OSError as error:
            raise files.refused(tried, error, "tried regions need Linux 6.2") from None
        # With hundreds of thousands of files, what `files` does for each would take most of the time.
        found = [
            (
                _quick(f"{tried}/{each}/start")
                if not self._asked or place % _CHECKED == self._asked % _CHECKED
                else None,
                _quick(f"{tried}/{each}/nr_accesses"),
            )
            for place, each in enumerate(numbers)
        ]
        self._asked += 1
        self._damon._command(self._directory, "clear_schemes_tried_regions")
        return found

    def close(self) -> None:
        """End it; its slot is free again."""
        self._damon._give_back(self._slot)


Outcome = Literal["restored", "changed", "gone"]


def clean_up(inode: int, root: Path = Path("/")) -> Outcome:
    """Take away what a `Damon` that noted `inode` has left. changed: it is somebody else's now. 0 is what was noted
    before anything was changed: then only kdamonds that nobody has set up are taken away. Raises HostError."""
    return remove(inode, root / _ADMIN)


def remove(inode: int, admin: Path) -> Outcome:
    """`clean_up`, by DAMON's directory."""
    count = files.number(admin / "nr_kdamonds")
    if not count:
        return "gone"
    slots = [admin / str(number) for number in range(count)]
    empty = all(not files.number(each / "contexts/nr_contexts") for each in slots)
    if inode != _inode(admin) and not (inode == 0 and count == SLOTS and empty):
        return "changed"
    for each in slots:
        _stop(each)
    _put(admin / "nr_kdamonds", 0)
    return "restored"


def _configure(contexts: Path, targets: Sequence[tuple[int, Sequence[Run]]], attributes: Attributes) -> None:
    _put(contexts / "nr_contexts", 1)
    context = contexts / "0"
    _put(context / "operations", "fvaddr")
    for name, value in (
        ("sample_us", attributes.sample_us),
        ("aggr_us", attributes.aggregation_us),
        ("update_us", max(_UPDATE_US, attributes.aggregation_us)),
    ):
        _put(context / "monitoring_attrs/intervals" / name, value)
    # As many as there are: then none is split, and two neighbours together are more than the kernel joins.
    for name in ("max", "min"):
        _put(context / "monitoring_attrs/nr_regions" / name, sum(len(regions) for _, regions in targets))
    _put(context / "targets/nr_targets", len(targets))
    for place, (pid, regions) in enumerate(targets):
        target = context / f"targets/{place}"
        _put(target / "pid_target", pid)
        _put(target / "regions/nr_regions", len(regions))
        for number, (start, end) in enumerate(sorted(regions)):
            _put(target / f"regions/{number}/start", start)
            _put(target / f"regions/{number}/end", end)
    _put(context / "schemes/nr_schemes", 2)
    for scheme, least in ((_USED, 1), (_ALL, 0)):
        _put(context / f"schemes/{scheme}/action", "stat")
        pattern = context / f"schemes/{scheme}/access_pattern"
        for name, low, high in (
            ("sz", 0, _MOST),
            ("nr_accesses", least, _MOST_COUNT),
            ("age", 0, _MOST_COUNT),
        ):
            _put(pattern / name / "min", low)
            _put(pattern / name / "max", high)


def _quick(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 32))
        finally:
            os.close(fd)
    except OSError as error:
        raise files.refused(path, error, "has somebody else changed DAMON?") from None


def _region(directory: Path) -> Region | None:
    """None: it has gone meanwhile."""
    start, end, accesses, age = (
        files.number(directory / name) for name in ("start", "end", "nr_accesses", "age")
    )
    if start is None or end is None or accesses is None or age is None:
        return None
    return Region(start, end, accesses, age)


def _stop(slot: Path) -> None:
    if _state(slot) != "on":
        return
    try:
        _patiently(lambda: _put(slot / "state", "off"))
    except HostError:
        if _state(slot) == "on":  # else its process has just ended
            raise


def _state(slot: Path) -> str:
    return (_patiently(lambda: files.text(slot / "state")) or "").strip()


def _patiently(call: Callable[[], T]) -> T:
    """While somebody's command waits, the kernel looks every 100 ms whether it is done; who asks in that moment is
    told that it is busy."""
    for _ in range(_BUSY_TRIES):
        try:
            return call()
        except HostError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(_BUSY_S)
    return call()


def _inode(admin: Path) -> int | None:
    """Of the first kdamond's directory: another one each time that they are set up."""
    try:
        return (admin / "0").stat().st_ino
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise files.refused(admin / "0", error) from None


def _put(path: Path, value: int | str) -> None:
    files.write(path, str(value))
