"""Ways through what archives hold: which segments continue a position, in whose history. Pure.

Used by restore, upkeep and list. The model: whoever ships in an epoch writes under that epoch's name, also what older
epochs had left. Two primaries have the same log up to where their histories part (`cut`), so a segment counts up to
there for the newest primary, whoever wrote it. Segments may overlap: a compacted one beside those it was made of, or
one that was put but not yet acknowledged when its archiver was killed.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sustain.replication.archive.documents import Manifest, Run
from sustain.replication.archive.names import SegmentName, SnapshotName
from sustain.replication.session import common_point

ENDLESS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Held:
    """A segment in archive number `archive` that counts up to `last`."""

    archive: int
    name: SegmentName
    last: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Of a way: log bytes [first, last) out of `held`."""

    held: Held
    first: int
    last: int


def cut(newest: Manifest, other: Manifest) -> int:
    """Up to where what `other`'s primary wrote is part of `newest`'s log."""
    if newest.epoch == other.epoch:
        return ENDLESS if newest.replica == other.replica else min(newest.end, other.end)
    return common_point(newest.history, ENDLESS, other.history, ENDLESS)


def counted(
    archive: int, newest: Manifest, manifests: dict[int, Manifest], segments: Iterable[SegmentName]
) -> list[Held]:
    """The segments that count, each as far as it does."""
    cuts = {epoch: cut(newest, manifest) for epoch, manifest in manifests.items()}
    held = [Held(archive, each, min(each.last, cuts[each.epoch])) for each in segments]
    return [each for each in held if each.name.first < each.last]


def usable_snapshots(
    newest: Manifest, manifests: dict[int, Manifest], snapshots: Iterable[SnapshotName], floor: int
) -> list[SnapshotName]:
    """Snapshots that are of `newest`'s log and do not begin before `floor`, the newest first."""
    fit = [
        each
        for each in snapshots
        if each.start >= floor and each.usable <= cut(newest, manifests[each.epoch])
    ]
    return sorted(fit, key=lambda each: (each.start, each.usable, each.epoch), reverse=True)


def way(
    held: Sequence[Held], start: int, until: int = ENDLESS, without: Collection[Held] = ()
) -> Iterator[Piece]:
    """Pieces from `start` on, one after another without a gap, up to `until` or as far as they go. Of several that
    continue, the longest."""
    ordered = sorted((each for each in held if each not in without), key=lambda each: each.name.first)
    at, position = 0, start
    best: Held | None = None
    while position < until:
        while at < len(ordered) and ordered[at].name.first <= position:
            if best is None or ordered[at].last > best.last:
                best = ordered[at]
            at += 1
        if best is None or best.last <= position:
            return
        last = min(best.last, until)
        yield Piece(best, position, last)
        position = last


def reach(held: Sequence[Held], start: int, without: Collection[Held] = ()) -> int:
    """How far there is log without a gap from `start` on."""
    position = start
    for piece in way(held, start, without=without):
        position = piece.last
    return position


def trim_runs(runs: Sequence[Run], common: int) -> list[Run]:
    """What of `runs` is left when only what lies before `common` counts."""
    return [Run(each.first, min(each.end, common)) for each in runs if each.first <= common]


@dataclass(frozen=True, slots=True)
class Age:
    """A snapshot, and when it was made."""

    name: SnapshotName
    written_ns: int


def oldest_needed(ages: Sequence[Age], now_ns: int, keep_ns: int) -> int | None:
    """Before which position nothing is needed to restore any moment of the last `keep_ns`; None: nothing can go.

    The youngest snapshot that is older than that must stay, with the log from it on; and the newest stays always.
    """
    old = [each for each in ages if each.written_ns <= now_ns - keep_ns]
    if not old:
        return None
    return max(old, key=lambda each: each.name.start).name.start


def to_compact(
    segments: Sequence[SegmentName], until: int, segment_bytes: int, least: int
) -> list[SegmentName]:
    """The first series of small neighbours of one epoch that would make one segment; at least `least` of them, or
    nothing. What reaches behind `until` is left alone."""
    series: list[SegmentName] = []
    for each in sorted(segments):
        size = sum(one.last - one.first for one in series)
        fits = series and (each.epoch, each.first) == (series[-1].epoch, series[-1].last)
        small = each.last - each.first <= segment_bytes // 2 and each.last <= until
        if fits and small and size + each.last - each.first <= segment_bytes:
            series.append(each)
            continue
        if len(series) >= least:
            return series
        series = [each] if small else []
    # The last series may still grow; then it is worth waiting until it fills a segment.
    return series if len(series) >= least and len(series) >= 4 * least else []
