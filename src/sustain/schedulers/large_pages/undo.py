"""Putting back what was mapped large or small: each block becomes what it was found to be.

Used by `act` when it ends, and for what a predecessor has left that was killed. What a process does with its memory
meanwhile is its own: blocks that are not mapped any more, or that became again what they were, need nothing. With
`keep`, blocks stay as they were last made, except those that were mapped small only for a recount.

Where no large page is to be had for one block, no more are tried for its entry: each try has the kernel compact memory,
and a journal may name many thousands. They stay in it for the next time.

Rejected: a pace, as `act` has one. Who stops us waits, and ends us after a while with the rest undone; where processors
are dearer than that, the operator has quotas (docs/operating/large-pages.md).
"""

import threading
from collections.abc import Callable
from pathlib import Path

from sustain.errors import HostError, SustainError
from sustain.host import smaps
from sustain.host.processes import Identity
from sustain.schedulers.journal import Entry, Outcome
from sustain.schedulers.large_pages import ours
from sustain.schedulers.large_pages.hand import Hand, gone
from sustain.schedulers.large_pages.ours import Span
from sustain.schedulers.loop import no_beat


def undo(
    entry: Entry,
    *,
    keep: bool = False,
    root: Path = Path("/"),
    stop: threading.Event | None = None,
    beat: Callable[[], None] = no_beat,
) -> Outcome:
    """One entry of kind `ours.KIND`. Raises HostError when some of it is not put back, or when it cannot be known
    whether the process is the same: "gone" is only what certainly is. `stop` ends it after the block that is being
    dealt with; `beat` is called at each."""
    span = ours.parse(entry)
    who = Identity(span.pid, span.started)
    if smaps.image_of(who, root) != span.image:
        return "gone"
    left: list[str] = []
    try:
        with Hand(who, root, stop) as hand:
            scarce = False
            for address, large in wanted(span, keep=keep):
                beat()
                if stop is not None and stop.is_set():
                    left.append(f"{address:#x} and what follows: it was to stop")
                    break
                if large and scarce and not hand.state(address).large:
                    left.append(f"{address:#x}: not tried, since no large page is to be had")
                    continue
                came = hand.enlarge(address) if large else hand.reduce(address)
                own = (
                    large and came.outcome == "not eligible"
                )  # it has forbidden it, or given it back, itself
                if came.outcome not in ("done", "gone") and not own:
                    left.append(f"{address:#x}: {came.outcome}: {came.detail}")
                    scarce |= came.outcome == "no large page to be had"
    except SustainError as error:
        if gone(error) and smaps.image_of(who, root) != span.image:
            return "gone"
        raise
    if left:
        raise HostError(
            f"{span.name} (process {span.pid}): {len(left)} blocks are not as they were: {left[0]}",
            hint="it is tried again the next time something is put back",
        )
    return "restored"


def wanted(span: Span, *, keep: bool) -> list[tuple[int, bool]]:
    """What each block of it should be: (address, large)."""
    if keep:
        return [(address, True) for address in span.addresses(span.briefly)]
    return [(address, True) for address in span.addresses(span.was & span.changed)] + [
        (address, False) for address in span.addresses(span.changed & ~span.was)
    ]
