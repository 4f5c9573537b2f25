"""Reading the pages of a region that a program is writing to, into memory of our own.

Used by `stream`. By pread(2): a hole of a file on tmpfs is not filled by looking at it, a file that is cut off is an
error and not a SIGBUS, and what was read once cannot change any more.

Rejected: a mapping, as `medium` has it for restoring: it needs a page-table entry and often a fault for each page.
"""

import os
from collections.abc import Iterable

from sustain.errors import RegionIOError
from sustain.powerfail.regions.manifest import PAGE_BYTES, pages_of
from sustain.powerfail.regions.track import Run


class RegionReader:
    """Reads pages of one region. Raises RegionIOError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            raise RegionIOError(
                f"{self._path}: {error.strerror}", hint="name the region's file or device"
            ) from None
        self.pages = pages_of(self.size_bytes)

    def read(self, runs: Iterable[Run], buffer: memoryview) -> int:
        """The pages of `runs` one behind the other, the last of the region filled up with zeros; bytes used."""
        at = 0
        for first, count in runs:
            wanted = min(count * PAGE_BYTES, self.size_bytes - first * PAGE_BYTES)
            got = 0
            while got < wanted:
                try:
                    some = os.preadv(
                        self._descriptor, [buffer[at + got : at + wanted]], first * PAGE_BYTES + got
                    )
                except OSError as error:
                    raise RegionIOError(
                        f"{self._path}: page {first}: {error.strerror}",
                        hint="look at the medium",
                        errno=error.errno,
                    ) from None
                if some == 0:
                    raise RegionIOError(
                        f"{self._path}: it has become shorter",
                        hint="a region keeps its size while it is shipped",
                    )
                got += some
            buffer[at + wanted : at + count * PAGE_BYTES] = bytes(count * PAGE_BYTES - wanted)
            at += count * PAGE_BYTES
        return at

    def close(self) -> None:
        os.close(self._descriptor)
