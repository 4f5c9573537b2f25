"""Groups of threads in columns: what they use, where they may run, what binds them, where their memory is.

Used by `sense`. At each reading: what a group has used, and where it may run (a cgroup's cpuset; of a process the
processors of its first thread). In turns: its threads one by one (`surveys`), and its memory by node, which for a
process is a walk over its page tables: after one that took long, the next waits so that it is a thousandth of the time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sustain.clock import Clock
from sustain.errors import SustainError
from sustain.host import cgroup_use, hierarchies, numa_memory, thread_setup, threads
from sustain.host.cgroup_use import Trees
from sustain.host.threads import TICKS_PER_S
from sustain.schedulers.packages.find import Found
from sustain.schedulers.packages.model import MIXED, Groups
from sustain.schedulers.packages.surveys import Survey, Surveys

Cpus = frozenset[int]
MemoryOf = Callable[[Found], Mapping[int, float] | None]  # bytes by node; None: unknown. Raises SustainError
_MEMORY_S = 30.0  # a group's memory is looked at that rarely
_MEMORY_SHARE = 0.001  # of all time, at most, for one group after the other
_MEMORY_SAVED_S = 10.0  # of such time that was not used, and may be at once
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class _Now:
    """Of one group, in this reading."""

    used_s: float
    threads: int  # _UNKNOWN
    cpus: Cpus  # it may use, of those that are online
    whole: bool  # all its threads may; else the first one may, and the others are to be looked at


class GroupReader:
    """Close it."""

    def __init__(self, clock: Clock, root: Path = Path("/"), memory_of: MemoryOf | None = None) -> None:
        """`memory_of`: in place of the kernel's own account."""
        self._clock = clock
        self._memory_of = memory_of or self._account
        self._root = root
        self._surveys = Surveys(root)
        self._use: cgroup_use.Use | None = None
        self._trees: Trees | None = None
        self._memory: dict[str, tuple[float, Mapping[int, float]]] = {}  # by life, and when
        self._memory_again_s = 0.0

    def read(
        self,
        now_s: float,
        found: Sequence[Found],
        trees: Trees | None,
        online: Cpus,
        nodes: Sequence[int],
        problems: list[str],
    ) -> tuple[Groups, tuple[tuple[int, ...], ...]]:
        """The groups that are there, and the places that they are at. One that goes meanwhile is left out."""
        self._trees = trees
        here = self._now(found, online, problems)
        known = [each for each in found if each.life in here]
        by_life = {each.life: each for each in known}
        surveys, unknown = self._surveys.advance(
            now_s, {life: each.cpus for life, each in here.items()}, lambda life: self._threads(by_life[life])
        )
        problems += [f"{by_life[life].name}: threads: {why}" for life, why in unknown.items()]
        self._look_at_memory(now_s, known, nodes, problems)
        places: dict[tuple[int, ...], int] = {}
        place = [_place(here[each.life], surveys.get(each.life), online, places) for each in known]
        told = [surveys.get(each.life) for each in known]
        return (
            Groups(
                name=tuple(each.name for each in known),
                life=tuple(each.life for each in known),
                kind=tuple(each.kind for each in known),
                used_s=np.array([here[each.life].used_s for each in known], np.float64),
                threads=np.array(
                    [
                        here[each.life].threads if here[each.life].threads >= 0 else _threads(survey)
                        for each, survey in zip(known, told, strict=True)
                    ],
                    np.int32,
                ),
                realtime=np.array([_UNKNOWN if each is None else each.realtime for each in told], np.int32),
                pinned=np.array([_pinned(each, online) for each in told], np.int32),
                place=np.array(place, np.int32),
                memory_bytes=self._columns(known, nodes),
            ),
            tuple(places),
        )

    def close(self) -> None:
        if self._use is not None:
            self._use.close()

    def _now(self, found: Sequence[Found], online: Cpus, problems: list[str]) -> dict[str, _Now]:
        used = self._cgroups_used(found, problems)
        here: dict[str, _Now] = {}
        for each in found:
            try:
                now = self._one(each, used, online)
            except SustainError as error:
                problems.append(f"{each.name}: {error}" + (f" ({error.hint})" if error.hint else ""))
                continue
            if now is not None:
                here[each.life] = now
        return here

    def _cgroups_used(self, found: Sequence[Found], problems: list[str]) -> dict[cgroup_use.Named, float]:
        if self._trees is None:
            return {}
        if self._use is None:
            self._use = cgroup_use.Use(self._trees)
        try:
            return self._use.read_s(each.cgroup for each in found if each.cgroup is not None)
        except SustainError as error:
            problems.append(
                f"what cgroups use is unknown: {error}" + (f" ({error.hint})" if error.hint else "")
            )
            return {}

    def _one(self, found: Found, used: Mapping[cgroup_use.Named, float], online: Cpus) -> _Now | None:
        """None: it has gone. Raises SustainError."""
        if found.cgroup is not None:
            assert self._trees is not None
            used_s = used.get(found.cgroup)
            if used_s is None and cgroup_use.named(found.cgroup.path, self._trees) != found.cgroup:
                return None
            cpus, whole = self._cpus(found.cgroup.path, online)
            return _Now(np.nan if used_s is None else used_s, _UNKNOWN, cpus, whole)
        assert found.who is not None
        use = threads.use(found.who.pid, self._root)
        setup = thread_setup.read(found.who.pid, self._root)
        if use is None or use.who != found.who or setup is None:
            return None
        return _Now(use.used_ticks / TICKS_PER_S, use.threads, setup.cpus & online, whole=False)

    def _cpus(self, path: str, online: Cpus) -> tuple[Cpus, bool]:
        """Where a cgroup may run, and whether that is its cpuset: one without is bound thread by thread."""
        assert self._trees is not None
        if not cgroup_use.has_cpus(path, self._trees):
            first = cgroup_use.first_process(path, self._trees)
            setup = None if first is None else thread_setup.read(first, self._root)
            if setup is not None:
                return setup.cpus & online, False
        cpus = cgroup_use.cpus(path, self._trees)
        return online if cpus is None else cpus & online, True

    def _threads(self, found: Found) -> Sequence[int]:
        if found.cgroup is not None:
            assert self._trees is not None
            return cgroup_use.threads(found.cgroup.path, self._trees)
        assert found.who is not None
        return threads.numbers(found.who.pid, self._root)

    def _look_at_memory(
        self, now_s: float, found: Sequence[Found], nodes: Sequence[int], problems: list[str]
    ) -> None:
        """Of those whose turn it is, the ones that were looked at longest ago first."""
        lives = {each.life for each in found}
        self._memory = {life: each for life, each in self._memory.items() if life in lives}
        if len(nodes) < 2:
            return
        old = sorted((self._memory.get(each.life, (-np.inf, {}))[0], row) for row, each in enumerate(found))
        for at_s, row in old:
            if now_s - at_s < _MEMORY_S or now_s < self._memory_again_s:
                break
            each = found[row]
            begun_ns = self._clock.boottime_ns()
            try:
                bytes_by_node = self._memory_of(each)
            except SustainError as error:
                problems.append(f"{each.name}: its memory by node is unknown: {error}")
                bytes_by_node = None
            took_s = (self._clock.boottime_ns() - begun_ns) / 1e9
            self._memory[each.life] = (now_s, bytes_by_node or {})
            least_s = now_s - _MEMORY_SAVED_S
            self._memory_again_s = max(least_s, self._memory_again_s) + took_s / _MEMORY_SHARE

    def _account(self, found: Found) -> Mapping[int, float] | None:
        """What the kernel says. Raises HostError."""
        if found.cgroup is not None:
            for each in hierarchies.of("memory", self._root):
                known = numa_memory.of_cgroup(each.mount / found.cgroup.path.lstrip("/"))
                if known is not None:
                    return known
        return None if found.who is None else numa_memory.of_process(found.who.pid, self._root)

    def _columns(
        self, found: Sequence[Found], nodes: Sequence[int]
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        table = np.full((len(found), len(nodes)), np.nan)
        for row, each in enumerate(found):
            known = self._memory.get(each.life, (0.0, {}))[1]
            if known:
                table[row] = [known.get(node, 0.0) for node in nodes]
        return table.reshape(-1)


def _place(now: _Now, survey: Survey | None, online: Cpus, places: dict[tuple[int, ...], int]) -> int:
    """Of a cgroup what its cpuset says; else what all its threads may use, if that is the same."""
    if not now.whole:
        sets = {cpus & online for cpus, _ in survey.sets} if survey is not None else set()
        if sets != {now.cpus}:
            return MIXED
    if not now.cpus:
        return MIXED
    return places.setdefault(tuple(sorted(now.cpus)), len(places))


def _pinned(survey: Survey | None, online: Cpus) -> int:
    """How many threads may use fewer processors than the group: than its cpuset, or than others of them."""
    if survey is None:
        return _UNKNOWN
    widest = frozenset().union(*(cpus for cpus, _ in survey.sets), survey.base) & online
    return sum(count for cpus, count in survey.sets if cpus & online < widest)


def _threads(survey: Survey | None) -> int:
    return _UNKNOWN if survey is None else survey.threads
