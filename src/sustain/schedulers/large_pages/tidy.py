"""Letting go of notes of what is not ours any more, at each look: else the end would undo what others have done since,
and the journal would grow with each process that comes and goes.

Used by `scheduler`, before a plan is carried out. Of a process that has certainly gone, or is another program, all is
forgotten. Of one that was looked at, blocks that are as they were found, or of which nothing is in memory any more; and
that a block is small only for a recount, once the decision has ended that. Rejected: to remember for ever what was
changed. Memory that is mapped anew at the same addresses is the process's own.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sustain.errors import HostError, SustainError
from sustain.host import smaps
from sustain.host.pagemap import Pagemap
from sustain.host.processes import Identity
from sustain.schedulers.large_pages import ours
from sustain.schedulers.large_pages.columns import Mask
from sustain.schedulers.large_pages.model import BLOCK_BYTES, Blocks, Observation
from sustain.schedulers.large_pages.ours import Ours, Span
from sustain.schedulers.large_pages.state import rows_of


def tidy(notes: Ours, seen: Observation, recounting: Mask, root: Path = Path("/")) -> None:
    """`recounting`: of the blocks that were seen, those that are small for a recount. Raises JournalError."""
    rows = dict(zip(((each.pid, each.started) for each in seen.targets), rows_of(seen), strict=True))
    looked = {(each.pid, each.started) for each in seen.targets if each.looked}
    spans = notes.spans()
    images = _images({Identity(each.pid, each.started) for each in spans}, root)
    for span in spans:
        who = Identity(span.pid, span.started)
        if who not in images:
            continue
        if images[who] != span.image:
            notes.keep(replace(span, changed=0))
        elif (span.pid, span.started) in looked:
            mine = rows[span.pid, span.started]
            after = _as_seen(span, seen.blocks.rows(mine), recounting[mine], root)
            if after != span:
                notes.keep(after)


def _images(those: Iterable[Identity], root: Path) -> dict[Identity, int | None]:
    """As far as they can be known."""
    found = {}
    for who in those:
        try:
            found[who] = smaps.image_of(who, root)
        except HostError:
            continue
    return found


def _as_seen(span: Span, blocks: Blocks, recounting: Mask, root: Path) -> Span:
    begin = np.uint64(span.start)
    first, last = np.searchsorted(blocks.address, [begin, begin + np.uint64(ours.BLOCKS * BLOCK_BYTES)])
    here = slice(int(first), int(last))
    places = ((blocks.address[here] - begin) // np.uint64(BLOCK_BYTES)).astype(np.intp)
    there, large = _bits(places), _bits(places[blocks.large[here]])
    if (
        span.changed & ~there
    ):  # left out of the look, since nothing is in memory, or since it is not looked at any more
        try:
            table = Pagemap(span.pid, root)
            try:
                counts = table.blocks(span.start, span.start + ours.BLOCKS * BLOCK_BYTES)
            finally:
                table.close()
        except SustainError:
            return span
        there = _bits(np.flatnonzero((counts.present > 0) | counts.huge))
        large = _bits(np.flatnonzero(counts.huge))
    return span.looked_at(there=there, large=large, recounting=_bits(places[recounting[here]]))


def _bits(places: NDArray[np.intp]) -> int:
    """A set of a span's blocks, as `ours` has it."""
    mask = np.zeros(ours.BLOCKS, np.bool_)
    mask[places] = True
    return int.from_bytes(np.packbits(mask, bitorder="little").tobytes(), "little")
