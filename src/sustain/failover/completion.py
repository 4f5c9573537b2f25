"""Completes the reports of takeovers when a host that was the primary has returned and said where its log ended.

Used by `supervise` at each step, whatever its role: who took over may be a standby again by then. It looks at what
is known of logs that are over (`replication.accounts`) when that file has changed, when a report was written, and
once at the start; so whatever a crash has interrupted is done the next time.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from sustain.clock import Clock
from sustain.failover import report
from sustain.failover.report import Takeover
from sustain.replication.accounts import Book, path_of


class Completion:
    """The reports in `directory` of the workload whose store is at `store`."""

    def __init__(self, store: str, directory: str, clock: Clock, tell: Callable[[str], None]) -> None:
        self._file = path_of(store)
        self._directory = Path(directory)
        self._clock = clock
        self._tell = tell
        self._book = Book(store, tell)
        self._seen: tuple[int, int, int] | None = None
        self._due = True
        self._out_of_reach = False

    def due(self) -> None:
        """A report was written: look again, although nothing new was heard."""
        self._due = True

    def look(self) -> list[tuple[Takeover, str]]:
        """Each report that has learned something, with its path; it is written again by then."""
        try:
            found = os.stat(self._file)
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        except FileNotFoundError:
            return []
        except OSError as error:
            if not self._out_of_reach:
                self._tell(f"{self._file}: {error.strerror}; reports are not completed")
            self._out_of_reach = True
            return []
        self._out_of_reach = False
        if seen == self._seen and not self._due:
            return []
        self._seen, self._due = seen, False
        return [
            each for path in sorted(self._directory.glob("takeover-*.json")) for each in self._complete(path)
        ]

    def _complete(self, path: Path) -> list[tuple[Takeover, str]]:
        try:
            held = Takeover.from_dict(json.loads(path.read_text(encoding="utf-8")))
            if held.state == "complete":
                return []
            known = held.with_accounts(self._book.of(held.store_uuid), self._clock.realtime_ns())
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            self._tell(f"{path} cannot be read as a report of a takeover ({error}): it stays as it is")
            return []
        if known is held:
            return []
        try:
            text = report.save(known, str(self._directory))
        except OSError as error:
            self._tell(f"{path} cannot be completed: {error.strerror}; it is tried again with the next news")
            return []
        return [(known, text)]
