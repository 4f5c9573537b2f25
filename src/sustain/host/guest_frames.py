"""What a guest's kernel holds each of its page frames to be, and where in QEMU's memory the frame lies.

Used by the guest memory scheduler, so that the host swaps out what the guest has not used for long, and never what it
calls free; and by the large-page prioritiser, which prefers what the guest maps large itself. That is known nowhere but
in the guest. Its agent reads kpageflags of its /proc
(Documentation/admin-guide/mm/pagemap.rst: 8 bytes for each frame, by guest-physical addresses); QEMU's monitor says
where an address lies.

An answer is old when it arrives. A frame that was freed since is then moved once; nothing breaks, since the host's swap
is transparent to a guest. That a page is "inactive" only means that the guest has not seen it used: without pressure of
its own it does not look. So whoever moves it watches what comes back.
"""

import base64
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from sustain.errors import HostError
from sustain.host.guest_agent import Asking

if TYPE_CHECKING:
    import numpy as np

Run = tuple[int, int]  # addresses: from, to
FRAME_BYTES = 4096
CHUNK_BYTES = 16 << 20  # asked for at once; never across what the machine maps apart
_FILE = "/proc/kpageflags"
_LOW_BYTES = 2 << 30  # RAM above may lie beyond the hole below 4 GiB

_LRU, _BUDDY, _ANONYMOUS, _TAIL, _THP = 1 << 5, 1 << 10, 1 << 12, 1 << 16, 1 << 22
_NOT = (
    1 << 0  # locked
    | 1 << 2  # referenced
    | 1 << 6  # active
    | 1 << 8  # being written
    | _BUDDY  # free
    | 1 << 13  # in the guest's swap cache: it can drop it
    | 1 << 18  # unevictable
    | 1 << 20  # no page there
    | 1 << 23  # in the balloon
    | 1 << 24  # the zero page
)


class Monitor(Protocol):
    """A connection to QEMU."""

    def ask(self, command: str, **arguments: Any) -> Any: ...


class GuestFrames:
    """The frames of one guest, for one life of it. Connections last for one call. Raises HostError."""

    def __init__(
        self,
        size_bytes: int,
        monitor: Callable[[], AbstractContextManager[Monitor]],
        agent: Callable[[], AbstractContextManager[Asking]],
    ) -> None:
        self.end_bytes = size_bytes if size_bytes <= _LOW_BYTES else size_bytes + _LOW_BYTES
        self._monitor = monitor
        self._agent = agent
        self._places: dict[int, int | None] = {}

    def place(self, address: int) -> int | None:
        """Where in QEMU's memory the chunk at that guest-physical address lies; None: no RAM, or not in one piece."""
        assert address % CHUNK_BYTES == 0
        if address not in self._places:
            with self._monitor() as monitor:
                first, last = _place(monitor, address), _place(monitor, address + CHUNK_BYTES - FRAME_BYTES)
            whole = first is not None and last == first + CHUNK_BYTES - FRAME_BYTES
            self._places[address] = first if whole else None
        return self._places[address]

    def inactive_anonymous(self, address: int) -> list[Run]:
        """Runs of frames of the chunk at `address`, as guest-physical addresses: anonymous, and not seen used."""
        return self._runs(address, inactive_anonymous)

    def free(self, address: int) -> list[Run]:
        """The same of frames that the guest calls free. Those that a CPU of it keeps at hand are not among them."""
        return self._runs(address, free)

    def large(self, address: int) -> list[Run]:
        """The same of frames that are in transparent large pages of the guest."""
        return self._runs(address, large)

    def _runs(
        self, address: int, of: Callable[["np.ndarray[Any, np.dtype[np.uint64]]"], list[tuple[int, int]]]
    ) -> list[Run]:
        with self._agent() as agent:
            flags = _flags(agent, address // FRAME_BYTES, CHUNK_BYTES // FRAME_BYTES)
        return [(address + begin * FRAME_BYTES, address + end * FRAME_BYTES) for begin, end in of(flags)]


def free(flags: "np.ndarray[Any, np.dtype[np.uint64]]") -> list[tuple[int, int]]:
    """From the flags of frames: runs (from, to) of free ones."""
    import numpy as np

    return _true((flags & np.uint64(_BUDDY)) != 0)


def large(flags: "np.ndarray[Any, np.dtype[np.uint64]]") -> list[tuple[int, int]]:
    """From the flags of frames: runs (from, to) of those in transparent large pages."""
    import numpy as np

    return _true((flags & np.uint64(_THP)) != 0)


def inactive_anonymous(flags: "np.ndarray[Any, np.dtype[np.uint64]]") -> list[tuple[int, int]]:
    """From the flags of frames: runs (from, to) of frames that are anonymous, inactive, and not free."""
    import numpy as np

    # Kernels before 6.9 show of the later pages of a large one only that: what holds for its head holds for them.
    tails = (flags & np.uint64(_TAIL | _LRU)) == _TAIL
    heads = np.maximum.accumulate(np.where(tails, 0, np.arange(len(flags))))
    flags = np.where(tails, flags[heads], flags)
    wanted = (flags & np.uint64(_LRU | _ANONYMOUS | _NOT)) == (_LRU | _ANONYMOUS)
    return _true(wanted)


def _true(wanted: "np.ndarray[Any, np.dtype[np.bool_]]") -> list[tuple[int, int]]:
    import numpy as np

    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8)))
    return [(begin, end) for begin, end in edges.reshape(-1, 2).tolist()]


def _flags(agent: Asking, first: int, count: int) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """Of that many frames; fewer at the end of the guest's memory."""
    import numpy as np

    handle = agent.ask("guest-file-open", path=_FILE, mode="r")
    try:
        agent.ask("guest-file-seek", handle=handle, offset=first * 8, whence="set")
        content = b""
        while len(content) < count * 8:
            answer = agent.ask("guest-file-read", handle=handle, count=count * 8 - len(content))
            piece = base64.b64decode(answer["buf-b64"], validate=True)
            content += piece
            if answer["eof"] or not piece:
                break
    except (KeyError, TypeError, ValueError):
        raise HostError(f"{_FILE} of the guest: what its agent said is no piece of a file") from None
    finally:
        agent.ask("guest-file-close", handle=handle)
    return np.frombuffer(content[: len(content) // 8 * 8], np.uint64)


def _place(monitor: Monitor, address: int) -> int | None:
    said = monitor.ask("human-monitor-command", **{"command-line": f"gpa2hva {address:#x}"})
    match = re.search(r"is 0x([0-9a-f]+)", str(said))
    return int(match[1], 16) if match else None
