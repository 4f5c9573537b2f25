"""inotify(7) on one file: was it written by a call, or let go of by a writer, since we last asked?

Used by change tracking, which sees writes through memory only: write(2) and its kin, and processes that came and
went between two looks, are told by these events. Python has no inotify; the C library's two calls are all it takes.
A watch is on the inode, so renames and hard links do not matter.
"""

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from sustain.errors import RegionIOError

_MODIFY, _CLOSE_WRITE, _OVERFLOW = 0x2, 0x8, 0x4000
_EVENT = struct.Struct("=iIII")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened to the file. When events were lost, all of it may have."""

    written: bool  # by a call: write, truncate, fallocate and their kin
    let_go: bool  # by somebody who could write: the last descriptor or mapping of one opening has gone


class Watch:
    """A watch on one file. Raises RegionIOError where there can be none."""

    def __init__(self, path: str | Path) -> None:
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise self._failed(path)
        if _libc.inotify_add_watch(self._descriptor, os.fsencode(path), _MODIFY | _CLOSE_WRITE) < 0:
            error = self._failed(path)
            self.close()
            raise error

    def seen(self) -> Seen:
        """Everything since the last call; does not wait."""
        mask = 0
        while True:
            try:
                data = os.read(self._descriptor, 65536)
            except BlockingIOError:
                break
            at = 0
            while at < len(data):
                _, bits, _, length = _EVENT.unpack_from(data, at)
                mask |= bits
                at += _EVENT.size + length
        lost = bool(mask & _OVERFLOW)
        return Seen(lost or bool(mask & _MODIFY), lost or bool(mask & _CLOSE_WRITE))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @staticmethod
    def _failed(path: str | Path) -> RegionIOError:
        number = ctypes.get_errno()
        return RegionIOError(
            f"{path}: inotify: {os.strerror(number)}",
            hint="raise fs.inotify.max_user_watches or max_user_instances",
            errno=number,
        )
