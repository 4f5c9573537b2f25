"""Which blocks of a guest's RAM the guest maps large itself: only where both do is one translation enough for it.

Used by `sense`. The guest's agent reads the flags of its frames, and its monitor says where they lie
(host.guest_frames): a piece of its memory at each reading, as far as that comes in `_SLICE_S`, so what is known of a
block is as old as one round. A guest that does not answer is asked again after a minute, and what it said before is
unknown from then on.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sustain.errors import HostError, SustainError
from sustain.host import balloon
from sustain.host.guest_agent import GuestAgent
from sustain.host.guest_frames import CHUNK_BYTES, GuestFrames
from sustain.host.processes import Identity
from sustain.host.qemu import is_another
from sustain.host.qmp import Qmp
from sustain.schedulers.large_pages.find import Found
from sustain.schedulers.large_pages.model import BLOCK_BYTES

_SLICE_S = 0.3  # of one reading, for one guest
_TIMEOUT_S = 1.0  # of one answer
_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Inside:
    """What is known of blocks: 1 the guest maps it large, 0 not, −1 unknown."""

    large: NDArray[np.int8]
    problem: str = ""


@dataclass(slots=True)
class _Guest:
    """One life of a guest."""

    frames: GuestFrames | None = None
    hand: int = 0
    large: dict[int, bool] = field(default_factory=dict)  # by the block's address in QEMU
    problem: str = ""
    again_s: float = 0.0


class Guests:
    """All guests of a sensor."""

    def __init__(self, slice_s: float = _SLICE_S) -> None:
        self._slice_s = slice_s
        self._known: dict[Identity, _Guest] = {}

    def forget(self, here: Iterable[Identity]) -> None:
        """All but these."""
        wanted = set(here)
        self._known = {who: guest for who, guest in self._known.items() if who in wanted}

    def look(self, found: Found, addresses: NDArray[np.uint64]) -> Inside:
        """Ask on, and what is known of these blocks. Of what is no guest nothing is."""
        unknown = np.full(len(addresses), -1, np.int8)
        if not found.guest:
            return Inside(unknown)
        if found.qmp is None or found.guest_agent is None:
            return Inside(unknown, "what its guest maps large is unknown: it has no QMP socket or no agent's")
        guest = self._known.setdefault(found.who, _Guest())
        now_s = time.monotonic()
        if now_s >= guest.again_s:
            try:
                self._ask(found, guest, now_s + self._slice_s)
                guest.problem = ""
            except SustainError as error:
                guest.large.clear()
                guest.frames = None
                guest.problem = f"what its guest maps large is unknown: {error}"
                guest.again_s = now_s + _AGAIN_S
        if not guest.large:
            return Inside(unknown, guest.problem)
        said = (guest.large.get(address) for address in addresses.tolist())
        return Inside(np.array([-1 if each is None else int(each) for each in said], np.int8), guest.problem)

    def _ask(self, found: Found, guest: _Guest, until_s: float) -> None:
        """Pieces of its memory, at most one round. Raises SustainError."""
        if guest.frames is None:
            guest.frames = _frames(found)
        pieces = -(-guest.frames.end_bytes // CHUNK_BYTES)
        for _ in range(pieces):
            at = guest.hand % pieces * CHUNK_BYTES
            guest.hand += 1
            place = guest.frames.place(at)
            if place is not None and place % BLOCK_BYTES == 0:
                large = np.zeros(CHUNK_BYTES // BLOCK_BYTES, np.bool_)
                for start, end in guest.frames.large(at):
                    first, last = -(-(start - at) // BLOCK_BYTES), (end - at) // BLOCK_BYTES
                    large[first:last] = True
                guest.large.update(
                    (place + number * BLOCK_BYTES, bool(each)) for number, each in enumerate(large)
                )
            if time.monotonic() >= until_s:
                return


def _frames(found: Found) -> GuestFrames:
    """Connections last for one question: QEMU's sockets take one client at a time. Raises HostError."""
    assert found.qmp is not None
    assert found.guest_agent is not None

    @contextlib.contextmanager
    def monitor(path: str = found.qmp) -> Iterator[Qmp]:
        with contextlib.closing(Qmp(path, _TIMEOUT_S)) as qmp:
            _check(path, qmp.listener, found)
            yield qmp

    @contextlib.contextmanager
    def agent(path: str = found.guest_agent) -> Iterator[GuestAgent]:
        with contextlib.closing(GuestAgent(path, _TIMEOUT_S)) as connection:
            _check(path, connection.listener, found)
            yield connection

    with monitor() as qmp:
        size = balloon.size(qmp)
    return GuestFrames(size, monitor, agent)


def _check(path: str, listener: int | None, found: Found) -> None:
    """Raises HostError when another guest has the socket, which whoever starts something like QEMU may name."""
    if is_another(listener, found.who):
        raise HostError(
            f"{path} is answered by process {listener}, and not by {found.who.pid}",
            hint="has another guest been started with the same socket?",
        )
