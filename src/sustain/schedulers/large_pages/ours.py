"""Which blocks were mapped large or small by us, and what they were before: kept in a journal, so that it can be put
back also after SIGKILL.

Used by `act`, which notes what it is about to do, and by `undo`. The model: for 1 GiB of a process's addresses there is
one entry, whose value is four sets of its 512 blocks, each a number in hexadecimal with a bit for a block:
- `changed`: what is not, or perhaps not, as it was found;
- `was`: of those, what was found mapped large;
- `now`: what was last made large of them;
- `briefly`: what is mapped small only for a recount.
So a million blocks are two thousand entries, and a plan of hundreds of actions is a few lines. An entry says what is
about to be done before it is done; what did not come off, or is as it was found again, is taken out afterwards.

A process is known by its start time and its image: after exec its addresses are another program's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from sustain.schedulers.journal import Entry, Value
from sustain.schedulers.large_pages.model import BLOCK_BYTES

KIND = "large-pages"
BLOCKS = 512  # in an entry
_SPAN_BYTES = BLOCKS * BLOCK_BYTES


class Notes(Protocol):
    """`Journal`, as it is used here."""

    def note(self, key: str, kind: str, target: Mapping[str, Value], prior: Value, new: Value) -> None: ...

    def forget(self, key: str, entry: Entry | None = None) -> None: ...

    def entries(self) -> tuple[Entry, ...]: ...


@dataclass(frozen=True, slots=True)
class Span:
    """One entry: 1 GiB from `start` on, of the process with this pid, start time and image."""

    name: str  # of the target, for people
    pid: int
    started: int
    image: int
    start: int
    changed: int = 0
    was: int = 0
    now: int = 0
    briefly: int = 0

    @property
    def key(self) -> str:
        return f"{KIND}:{self.pid}:{self.started}:{self.image:x}:{self.start:x}"

    @property
    def value(self) -> str:
        return f"{self.changed:x} {self.was:x} {self.now:x} {self.briefly:x}"

    @property
    def target(self) -> dict[str, Value]:
        return {
            "name": self.name,
            "pid": self.pid,
            "started": self.started,
            "image": f"{self.image:x}",
            "start": f"{self.start:x}",
        }

    def about_to(self, address: int, *, found_large: bool, large: bool, briefly: bool) -> "Span":
        """With that block about to become large, or small (`briefly`: for a recount), which was found otherwise."""
        bit = self.bit(address)
        span = self
        if not self.changed & bit:
            span = replace(span, changed=span.changed | bit, was=_with(span.was, bit, found_large))
        return replace(
            span, now=_with(span.now, bit, large), briefly=_with(span.briefly, bit, briefly and not large)
        )

    def seen(self, address: int, *, large: bool) -> "Span":
        """With that block seen as it is: as it was found it needs no undoing any more."""
        bit = self.bit(address)
        if not self.changed & bit:
            return self
        briefly = bool(self.briefly & bit) and not large
        if bool(self.was & bit) == large and not briefly:
            left = ~bit
            return replace(
                self,
                changed=self.changed & left,
                was=self.was & left,
                now=self.now & left,
                briefly=self.briefly & left,
            )
        return replace(self, now=_with(self.now, bit, large), briefly=_with(self.briefly, bit, briefly))

    def looked_at(self, *, there: int, large: int, recounting: int) -> "Span":
        """With all of its blocks seen as they are, in sets: of which anything is in memory, which are mapped large, and
        which are still small for a recount."""
        briefly = self.briefly & recounting & there & ~large
        changed = self.changed & there & (self.was ^ large | briefly)
        return replace(
            self, changed=changed, was=self.was & changed, now=large & changed, briefly=briefly & changed
        )

    def bit(self, address: int) -> int:
        assert self.start <= address < self.start + _SPAN_BYTES
        return 1 << (address - self.start) // BLOCK_BYTES

    def addresses(self, blocks: int) -> list[int]:
        """Of a set of its blocks."""
        return [self.start + at * BLOCK_BYTES for at in range(BLOCKS) if blocks >> at & 1]


def start_of(address: int) -> int:
    """Where the span begins that a block is in."""
    return address // _SPAN_BYTES * _SPAN_BYTES


def parse(entry: Entry) -> Span:
    """The span of an entry of our kind."""
    found = entry.target
    changed, was, now, briefly = (int(each, 16) for each in str(entry.sets[0]).split())
    return Span(
        str(found["name"]),
        int(found["pid"]),
        int(found["started"]),
        int(str(found["image"]), 16),
        int(str(found["start"]), 16),
        changed,
        was,
        now,
        briefly,
    )


class Ours:
    """All of them, as the journal has them. One thread at a time."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def spans(self) -> list[Span]:
        return [parse(each) for each in self._notes.entries() if each.kind == KIND]

    def of(self, name: str, pid: int, started: int, image: int, addresses: Iterable[int]) -> dict[int, Span]:
        """The spans that these blocks are in, by where they begin; new ones are empty."""
        held = {each.key: each for each in self.spans()}
        found = {}
        for start in {start_of(address) for address in addresses}:
            span = Span(name, pid, started, image, start)
            found[start] = held.get(span.key, span)
        return found

    def keep(self, span: Span) -> None:
        """Note it, or forget it when nothing in it is changed. Raises JournalError."""
        if span.changed:
            self._notes.note(span.key, KIND, span.target, "", span.value)
        else:
            self._notes.forget(span.key)


def _with(held: int, bit: int, there: bool) -> int:
    return held | bit if there else held & ~bit
