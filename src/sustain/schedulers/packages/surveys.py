"""What threads of groups may do that a placement must respect: looked at in turns, since it takes two files for each.

Used by `sense`. The model: a survey of a group lists its threads and looks at them one by one, a certain number in each
reading, all groups' together; when the last one is done, its figures stand until the next survey of that group is. So
every figure is of the same age as the turn that made it, which is said (`age_s`), and one reading never costs more than
so many threads, whatever groups there are. Of a group that was not yet surveyed to its end, they are unknown.

Where a group may run is cheap for a cgroup (its cpuset is one file) and is part of each reading there.

Rejected: a sample of threads each time. One thread in a thousand that is bound or real-time is one that a placement
would break, and a sample does not find it.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sustain.errors import SustainError
from sustain.host import thread_setup

Cpus = frozenset[int]
EACH_READING = 100  # threads that are looked at, of all groups together
EACH_GROUP = 0.1  # and so many for each group, where there are very many
AT_FIRST = 2000  # at the first reading, so that small hosts are known at once


@dataclass(frozen=True, slots=True)
class Survey:
    """What came of one."""

    at_s: float  # when it ended
    base: Cpus  # what the group itself may use, meanwhile
    threads: int
    realtime: int
    sets: tuple[tuple[Cpus, int], ...]  # processors that threads may use, and how many of them


@dataclass(slots=True)
class _Going:
    base: Cpus
    left: deque[int]
    realtime: int = 0
    threads: int = 0
    sets: Counter[Cpus] = field(default_factory=Counter)


class Surveys:
    """One for each group, by key."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._done: dict[str, Survey] = {}
        self._going: dict[str, _Going] = {}
        self._turn: deque[str] = deque()  # keys, the next one first
        self._first = True

    def advance(
        self, now_s: float, bases: Mapping[str, Cpus], threads_of: Callable[[str], Sequence[int]]
    ) -> tuple[dict[str, Survey], dict[str, str]]:
        """Look at some more threads of the groups that there are, by key and what each may use now: the last survey of
        each that was done, and what went wrong with others."""
        self._done = {key: each for key, each in self._done.items() if key in bases}
        self._going = {key: each for key, each in self._going.items() if bases.get(key) == each.base}
        # Those that are unknown, or elsewhere than they were, are looked at first.
        turn = [key for key in self._turn if key in bases]
        turn += bases.keys() - set(turn)
        self._turn = deque(
            sorted(turn, key=lambda key: key in self._done and self._done[key].base == bases[key])
        )
        problems: dict[str, str] = {}
        left = AT_FIRST if self._first else max(EACH_READING, int(EACH_GROUP * len(bases)))
        self._first = False
        for _ in range(len(self._turn)):
            if left <= 0:
                break
            key = self._turn[0]
            try:
                left -= self._some(key, now_s, left, bases[key], threads_of)
            except SustainError as error:
                problems[key] = f"{error}" + (f" ({error.hint})" if error.hint else "")
                self._going.pop(key, None)
            if key not in self._going:
                self._turn.rotate(-1)
        return dict(self._done), problems

    def _some(
        self, key: str, now_s: float, most: int, base: Cpus, threads_of: Callable[[str], Sequence[int]]
    ) -> int:
        going = self._going.get(key)
        looked = 0
        if going is None:
            going = self._going[key] = _Going(base, deque(threads_of(key)))
            looked = 1  # listing them is work, too
        while going.left and looked < most:
            looked += 1
            setup = thread_setup.read(going.left.popleft(), self._root)
            if setup is not None:
                going.threads += 1
                going.realtime += setup.realtime
                going.sets[setup.cpus] += 1
        if not going.left:
            del self._going[key]
            sets = tuple(going.sets.items())
            self._done[key] = Survey(now_s, base, going.threads, going.realtime, sets)
        return looked
