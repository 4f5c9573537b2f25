"""A group's memory follows its threads to other nodes, a piece at a time, and goes back.

Used by `act`, in each of its calls for a short time. The model: of each process the journal holds how much it had on
which node before the first piece was moved, and nothing of single pages: what was moved is not known page by page, it
changes meanwhile, and the kernel moves pages on its own. So memory goes back by shares: as much as each node lacks of
what it had, from the nodes that have more, as the process uses no more than then. What is shared with others, large by
hugetlbfs, or in use by the kernel stays where it is, both ways.

No more than the pace allows over any time: copying takes memory bandwidth from everybody.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sustain.errors import HostError, SustainError
from sustain.host import numa_memory
from sustain.host.move_pages import Mover
from sustain.host.processes import Identity, alive
from sustain.schedulers.journal import Entry, Journal
from sustain.schedulers.loop import no_beat
from sustain.schedulers.packages.came import Back, words
from sustain.schedulers.packages.per_thread import Of, process_of

KIND = "package-memory"
PIECE_BYTES = 8 << 20
_NEAR_BYTES = 1 << 20  # of a process, on the wrong node: is not worth a look at all its pages
_WHOLE = 1 << 62

Shares = Mapping[int, int]  # bytes by node


@dataclass(slots=True)
class Job:
    """The memory of one group, on its way."""

    processes: list[Identity]
    nodes: frozenset[int]  # where to; none: to where it was
    moved_bytes: int = 0
    problems: dict[str, None] = field(default_factory=dict)  # why some stays, each once
    pieces: Iterator[int] | None = None  # what is under way, in bytes that each piece has moved

    @property
    def done(self) -> bool:
        return not self.processes and self.pieces is None


class Pace:
    """When the next piece may be moved. From any thread."""

    def __init__(self, bytes_per_s: float, stop: threading.Event) -> None:
        assert bytes_per_s > 0
        self._bytes_per_s = bytes_per_s
        self._stop = stop
        self._lock = threading.Lock()
        self._next_s = 0.0

    def turn(self, until_s: float = math.inf) -> bool:
        """Wait until then; False: that is after `until_s`, or all is to stop."""
        now_s = time.monotonic()
        if max(now_s, self._next_s) >= until_s:
            return False
        return not self._stop.wait(max(0.0, self._next_s - now_s))

    def paid(self, moved_bytes: int) -> None:
        with self._lock:
            self._next_s = max(self._next_s, time.monotonic()) + moved_bytes / self._bytes_per_s


class Memory:
    """All groups' memory. One thread."""

    def __init__(self, journal: Journal, pace: Pace, root: Path = Path("/")) -> None:
        self._journal = journal
        self._pace = pace
        self._root = root
        self._jobs: dict[tuple[str, str], Job] = {}

    def to(self, group: str, life: str, processes: Iterable[Identity], nodes: Iterable[int]) -> None:
        """Have a group's memory brought to these nodes; what is under way already goes on. A process is looked at when
        its turn comes, since that walks its page tables."""
        there = frozenset(nodes)
        job = self._jobs.get((group, life))
        if job is None or job.nodes != there:
            self._jobs[group, life] = Job(list(processes), there)

    def back(self, group: str, life: str) -> None:
        """Have it brought back to where it was."""
        entries = [each for each in self._entries() if _whose(each) == (group, life)]
        self._jobs.pop((group, life), None)
        if entries:
            self._jobs[group, life] = Job([process_of(each) for each in entries], frozenset())

    def comes_back(self, group: str, life: str) -> bool:
        """Have it brought back, once, and whether that is under way still."""
        job = self.job(group, life)
        if job is None or job.nodes:
            self.back(group, life)
        job = self.job(group, life)
        return job is not None and not job.done

    def forget(self) -> None:
        """What is under way ends where it is."""
        self._jobs.clear()

    def tidy(self) -> None:
        """Let go of what has been done."""
        self._jobs = {key: job for key, job in self._jobs.items() if not job.done}

    def job(self, group: str, life: str) -> Job | None:
        """What is under way, or has been done since the group was placed."""
        return self._jobs.get((group, life))

    def go_on(self, for_s: float) -> None:
        """Move pieces, in turn of each group, for that long at most."""
        until_s = time.monotonic() + for_s
        while left := [key for key, job in self._jobs.items() if not job.done]:
            for key in left:
                if not self._pace.turn(until_s):
                    return
                self._piece(key, self._jobs[key])

    def _piece(self, key: tuple[str, str], job: Job) -> None:
        if job.pieces is None:
            of = Of(*key, job.processes.pop(0))
            job.pieces = self._forth(of, job) if job.nodes else self._home(of, job)
        try:
            moved_bytes = next(job.pieces, None)
        except (SustainError, OSError) as error:
            job.problems[words(error)] = None
            moved_bytes = None
        if moved_bytes is None:
            job.pieces = None
            return
        job.moved_bytes += moved_bytes
        self._pace.paid(moved_bytes)

    def _forth(self, of: Of, job: Job) -> Iterator[int]:
        """Raises JournalError, before any of it is moved."""
        here = numa_memory.of_process(of.process.pid, self._root) or {}
        sources = here.keys() - job.nodes
        if sum(here[node] for node in sources) > _NEAR_BYTES:
            self._note(of, here, job.nodes)
            target = self._roomiest(job.nodes)
            yield from _pieces(of.process, sources, target, _WHOLE, job.problems, self._root)

    def _home(self, of: Of, job: Job) -> Iterator[int]:
        entry = next((each for each in self._entries() if process_of(each) == of.process), None)
        if entry is not None:
            yield from home(entry, job.problems, self._root)
            self._journal.forget(entry.key, entry)

    def _roomiest(self, nodes: frozenset[int]) -> int:
        known = numa_memory.nodes(self._root)
        return max(nodes, key=lambda node: (known[node].free_bytes or 0) if node in known else -1)

    def _note(self, of: Of, here: Shares, nodes: frozenset[int]) -> None:
        key = of.key(KIND)
        held = next((each for each in self._entries() if each.key == key), None)
        prior = encode(here) if held is None else held.prior
        target = of.target() if held is None else held.target
        self._journal.note(key, KIND, target, prior, " ".join(str(node) for node in sorted(nodes)))

    def _entries(self) -> list[Entry]:
        return [each for each in self._journal.entries() if each.kind == KIND]


def put_back(entry: Entry, pace: Pace, root: Path = Path("/"), beat: Callable[[], None] = no_beat) -> Back:
    """Bring one process's memory back, all of it. Raises HostError: some is not back, since all is to stop."""
    process = process_of(entry)
    problems: dict[str, None] = {}
    for moved_bytes in home(entry, problems, root):
        beat()
        pace.paid(moved_bytes)
        if not pace.turn():
            raise HostError(
                f"process {process.pid}: some of its memory is not back on its nodes: it was to stop",
                hint="it is moved the next time something is put back",
            )
    if not alive(process, str(root)):
        return Back("gone")
    return Back("restored", "; ".join(problems))


def home(entry: Entry, problems: dict[str, None], root: Path = Path("/")) -> Iterator[int]:
    """Bring a process's memory back to the shares that it had, piece by piece: what each has moved, in bytes."""
    process = process_of(entry)
    here = numa_memory.of_process(process.pid, root) or {}
    lacking, surplus = apart(decode(str(entry.prior)), here)
    for source in surplus:
        for target in lacking:
            size = min(surplus[source], lacking[target])
            if size > _NEAR_BYTES:
                yield from _pieces(process, [source], target, size, problems, root)
                surplus[source] -= size
                lacking[target] -= size


def apart(prior: Shares, now: Shares) -> tuple[dict[int, int], dict[int, int]]:
    """What each node has less than before, and what more, in bytes; where the process uses less now, than the same part
    of what it had."""
    had, has = sum(prior.values()), sum(now.values())
    part = min(1.0, has / had) if had else 0.0
    less = {node: round(prior.get(node, 0) * part) - now.get(node, 0) for node in prior.keys() | now.keys()}
    return (
        {node: size for node, size in sorted(less.items()) if size > _NEAR_BYTES},
        {node: -size for node, size in sorted(less.items()) if size < -_NEAR_BYTES},
    )


def _pieces(
    process: Identity,
    sources: Iterable[int],
    target: int,
    size: int,
    problems: dict[str, None],
    root: Path,
) -> Iterator[int]:
    if not alive(process, str(root)):
        return
    mover = Mover(process, sources, target, root)
    left = size
    while left > 0:
        came = mover.step(min(left, PIECE_BYTES))
        left -= came.moved_bytes
        if came.problem is not None:
            problems[f"process {process.pid}: {came.problem}"] = None
        yield came.moved_bytes
        if came.done:
            return


def encode(shares: Shares) -> str:
    return " ".join(f"{node}:{size}" for node, size in sorted(shares.items()))


def decode(text: str) -> dict[int, int]:
    return {int(node): int(size) for node, _, size in (word.partition(":") for word in text.split())}


def _whose(entry: Entry) -> tuple[str, str]:
    return str(entry.target["group"]), str(entry.target["life"])
