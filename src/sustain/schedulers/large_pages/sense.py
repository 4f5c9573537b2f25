"""Reads all targets and the host into one Observation.

Used by the scheduler's loop and by verbs that only look. The model: at each reading the processes are found (`find`),
their mappings looked up where they have changed (host.smaps), their blocks counted as they are now (PAGEMAP_SCAN), and
the newest counts of used pages taken from the counter, which then goes on with the blocks that there are. A count that
is not new keeps its value and grows in age, also where a period has said nothing of a block. A process that executes
another program begins anew, as another target. Of one that cannot be looked at this time no block is told, and that is
said (`looked`), so that what is remembered of them is not forgotten. One that runs on and only cannot be found this
time, since where it is named cannot be read, is a target still.

Blocks of which nothing is in memory are left out, since they can neither be used nor pay; so are those that no single
mapping covers. Rejected: all addresses that a process has reserved, which may be terabytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sustain.clock import Clock
from sustain.errors import HostError, SustainError
from sustain.host import large_pages, meminfo, pressure, smaps
from sustain.host.pagemap import Pagemap
from sustain.host.processes import Identity
from sustain.host.smaps import Mapping
from sustain.schedulers.large_pages import phase
from sustain.schedulers.large_pages.counting import Count, Counter, Memory, NoCounter
from sustain.schedulers.large_pages.find import Found, Wanted, check, find
from sustain.schedulers.large_pages.guests import Guests
from sustain.schedulers.large_pages.model import (
    BLOCK_BYTES,
    Blocks,
    HostView,
    Observation,
    Settings,
    Target,
    no_blocks,
    unknown_blocks,
)
from sustain.schedulers.stalls import Stalls

_AGAIN_S = 60.0  # mappings are looked up anew even where the list has not changed


@dataclass(slots=True, eq=False)
class _Known:
    """What is kept of one process between two readings. Columns: its blocks the last time."""

    image: int
    program: int = 0  # how many others it was before
    mark: str = ""
    mappings: tuple[Mapping, ...] = ()
    read_s: float = 0.0
    large_at_first: int | None = None  # blocks that were mapped large when it was first looked at
    count: Count | None = None  # the last one that was taken over
    addresses: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    touched: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    error: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    at_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0, np.float64))
    whole: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def move(self, addresses: NDArray[np.uint64]) -> None:
        """What was counted of blocks that are still there is kept; the others are new."""
        if np.array_equal(addresses, self.addresses):
            return
        rows, here = _find(addresses, self.addresses)
        for name, unknown in (("touched", np.nan), ("error", np.nan), ("at_s", np.nan), ("whole", False)):
            old = getattr(self, name)
            new = np.full(len(addresses), unknown, old.dtype)
            new[here] = old[rows[here]]
            setattr(self, name, new)
        self.addresses = addresses

    def take(self, count: Count) -> None:
        """A new count; of blocks that it says nothing of, what was known stays."""
        if count is self.count:
            return
        self.count = count
        rows, here = _find(self.addresses, count.addresses)
        here &= ~np.isnan(count.touched[rows]) if len(count.touched) else False
        chosen = rows[here]
        self.touched[here], self.error[here] = count.touched[chosen], count.error[chosen]
        self.whole[here], self.at_s[here] = count.whole[chosen], count.at_s


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """One process as it is now. Columns of one length."""

    addresses: NDArray[np.uint64]
    populated: NDArray[np.int16]
    large: NDArray[np.bool_]
    eligible: NDArray[np.bool_]
    shared: NDArray[np.bool_]


class Sensor:
    """Close it, so that counting ends."""

    def __init__(
        self,
        wanted: Sequence[Wanted],
        counter: Counter | None,
        clock: Clock,
        *,
        notes: Sequence[str] = (),
        root: Path = Path("/"),
    ) -> None:
        """`counter`: None, nothing is counted; `notes`: what is to be said with each observation, as why that is.
        Raises ConfigError."""
        check(wanted)
        self._wanted = tuple(wanted)
        self._counter: Counter = NoCounter() if counter is None else counter
        self._clock = clock
        self._notes = tuple(notes)
        self._root = root
        self._found: list[Found] = []  # the last time
        self._known: dict[Identity, _Known] = {}
        self._guests = Guests()
        self._stalls = Stalls()

    def count_by(self, counter: Counter, notes: Sequence[str]) -> None:
        """From now on; nothing has counted before."""
        self._counter, self._notes = counter, tuple(notes)

    def image(self, who: Identity) -> int | None:
        """Which program that process had when it was looked at last; None: it was not."""
        known = self._known.get(who)
        return None if known is None else known.image

    def read(self) -> Observation:
        """All that can be known now. What is unknown of one target is among its problems."""
        now_s = self._now_s()
        self._found, notes = find(self._wanted, self._root, self._found)
        found = self._found
        self._guests.forget(each.who for each in found)
        counts = self._counter.read()
        host = self._host(now_s)
        self._known = {
            who: known for who, known in self._known.items() if any(each.who == who for each in found)
        }
        targets: list[Target] = []
        parts: list[Blocks] = []
        memories: list[Memory] = []
        uncounted = self._counter.problems()
        for each in found:
            problems: list[str] = [uncounted[each.who]] if each.who in uncounted else []
            try:
                look, known = self._look(each, now_s)
            except SustainError as error:
                if getattr(error, "errno", None) is None or smaps.image(each.who.pid, self._root) is not None:
                    problems.append(f"{error}" + (f" ({error.hint})" if error.hint else ""))
                    targets.append(self._target(each, None, problems, looked=False))
                continue
            if look is None or known is None:
                continue
            count = counts.get(each.who)
            known.move(look.addresses)
            if count is not None and count.image == known.image:
                known.take(count)
            problems += phase.problems(
                known.large_at_first or 0, int(look.large.sum()), len(look.large), each.guest, host.settings
            )
            if smaps.thp_disabled(each.who.pid, self._root):
                problems.append(phase.FORBIDDEN)
            inside = self._guests.look(each, look.addresses)
            if inside.problem:
                problems.append(inside.problem)
            parts.append(_blocks(len(targets), look, known, inside.large, now_s))
            targets.append(self._target(each, count, problems))
            memories.append(Memory(each.who, known.image, look.addresses, look.shared))
        self._counter.start(memories)
        return Observation(
            now_s=now_s,
            blocks=_joined(parts),
            targets=tuple(targets),
            host=host,
            notes=(*self._notes, *notes, *phase.notes(self._counter.kind, host.settings, parts)),
        )

    def close(self) -> None:
        """Raises SustainError when something could not be given back."""
        self._counter.close()

    def _target(
        self, found: Found, count: Count | None, problems: Sequence[str], *, looked: bool = True
    ) -> Target:
        known = self._known.get(found.who)
        return Target(
            name=found.name,
            wanted=found.wanted,
            pid=found.who.pid,
            started=found.who.start_ticks,
            counting=self._counter.kind,
            window_s=None if count is None else count.window_s,
            period_s=None if count is None else count.period_s,
            problems=tuple(problems),
            program=0 if known is None else known.program,
            looked=looked,
        )

    def _look(self, found: Found, now_s: float) -> tuple[_Look | None, _Known | None]:
        """None: it has gone. Raises SustainError when it cannot be looked at."""
        pid = found.who.pid
        image = smaps.image(pid, self._root)
        mark = smaps.mark(pid, self._root)
        if image is None or mark is None:
            return None, None
        if image == 0:
            raise HostError(f"process {pid}: it may not be looked at", hint="it needs root (CAP_SYS_PTRACE)")
        known = self._known.get(found.who)
        if known is None or known.image != image:
            known = _Known(image, 0 if known is None else known.program + 1)
            self._known[found.who] = known
        if known.mark != mark or now_s - known.read_s >= _AGAIN_S:
            mappings = smaps.read(pid, self._root)
            if mappings is None:
                return None, None
            known.mappings, known.mark, known.read_s = mappings, mark, now_s
        look = self._scan(pid, known.mappings, found.only)
        if known.large_at_first is None:
            known.large_at_first = int(look.large.sum())
        return look, known

    def _scan(self, pid: int, mappings: Sequence[Mapping], only: tuple[tuple[int, int], ...] | None) -> _Look:
        columns: list[tuple[NDArray[np.uint64], NDArray[np.int16], NDArray[np.bool_], Mapping]] = []
        table = Pagemap(pid, self._root)
        try:
            for mapping in mappings:
                for start, end in _within(mapping, only):
                    counts = table.blocks(start, end)
                    rows = np.flatnonzero((counts.present > 0) | counts.huge)
                    addresses = np.uint64(start) + rows.astype(np.uint64) * np.uint64(BLOCK_BYTES)
                    columns.append((addresses, counts.present[rows], counts.huge[rows], mapping))
        finally:
            table.close()

        def flags(name: str) -> NDArray[np.bool_]:
            return np.concatenate(
                [np.zeros(0, np.bool_)]
                + [
                    np.full(len(each), mapping.shared if name == "shared" else not mapping.why_small)
                    for each, _, _, mapping in columns
                ]
            )

        return _Look(
            np.concatenate([np.zeros(0, np.uint64), *(each[0] for each in columns)]),
            np.concatenate([np.zeros(0, np.int16), *(each[1] for each in columns)]),
            np.concatenate([np.zeros(0, np.bool_), *(each[2] for each in columns)]),
            flags("eligible"),
            flags("shared"),
        )

    def _host(self, now_s: float) -> HostView:
        problems: list[str] = []
        memory, settings, free = meminfo.Meminfo(), Settings(), None
        share: float | None = None
        try:
            memory = meminfo.read(self._root)
            found = large_pages.settings(self._root)
            settings = Settings(
                enabled=found.enabled,
                defrag=found.defrag,
                shmem_enabled=found.shmem_enabled,
                khugepaged_defrag=found.khugepaged_defrag,
            )
            free = large_pages.free(self._root)
            share = self._stalls.share(now_s, pressure.of_host(self._root).some_us)
        except SustainError as error:
            problems.append(str(error))
        return HostView(
            total_bytes=memory.total_bytes,
            free_bytes=memory.free_bytes,
            available_bytes=memory.available_bytes,
            pressure=share,
            free_large_pages=free,
            settings=settings,
            problems=tuple(problems),
        )

    def _now_s(self) -> float:
        return self._clock.boottime_ns() / 1e9


def _within(mapping: Mapping, only: tuple[tuple[int, int], ...] | None) -> list[tuple[int, int]]:
    """The whole blocks of a mapping, of those ranges alone."""
    first, last = mapping.blocks
    if only is None:
        return [(first, last)]
    found = []
    for start, end in only:
        begin = max(first, -(-start // BLOCK_BYTES) * BLOCK_BYTES)
        until = min(last, end // BLOCK_BYTES * BLOCK_BYTES)
        if begin < until:
            found.append((begin, until))
    return found


def _find(
    wanted: NDArray[np.uint64], among: NDArray[np.uint64]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each of the wanted is, both ascending; and which of them are there at all."""
    if not len(among):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), np.bool_)
    rows = np.minimum(np.searchsorted(among, wanted), len(among) - 1)
    return rows, np.asarray(among[rows] == wanted, np.bool_)


def _blocks(target: int, look: _Look, known: _Known, guest_large: NDArray[np.int8], now_s: float) -> Blocks:
    count = len(look.addresses)
    return Blocks(
        target=np.full(count, target, np.int32),
        address=look.addresses,
        touched=known.touched.copy(),
        error=known.error.copy(),
        age_s=np.maximum(now_s - known.at_s, 0).astype(np.float32),
        populated=look.populated,
        large=look.large,
        whole=known.whole.copy(),
        eligible=look.eligible,
        guest_large=guest_large,
    )


def _joined(parts: Sequence[Blocks]) -> Blocks:
    if not parts:
        return no_blocks()
    names = unknown_blocks(np.zeros(0, np.int32), np.zeros(0, np.uint64)).__struct_fields__
    return Blocks(**{name: np.concatenate([getattr(each, name) for each in parts]) for name in names})
