"""A second thread for a busy stream: verifies and applies what has come while the first receives more.

Used by `intake`. One piece at a time, handed over only when nothing is being applied, so that the order is
the order of the log and an error stops everything behind it. A quiet stream never comes here: waking a thread
costs more than applying a small commit.
"""

import threading
from collections.abc import Callable

from sustain.errors import SustainError


class Applier:
    """Runs `apply(length)` in a thread of its own, from the first `submit` to `close`."""

    def __init__(self, apply: Callable[[int], None], failed: Callable[[], None]) -> None:
        self._apply = apply
        self._failed = failed  # called in that thread, so that whoever waits for bytes looks up
        self._work = threading.Semaphore(0)
        self._idle = threading.Event()
        self._idle.set()
        self._length = 0
        self._error: SustainError | None = None
        self._thread: threading.Thread | None = None

    @property
    def idle(self) -> bool:
        return self._idle.is_set()

    def submit(self, length: int) -> None:
        """Apply `length` bytes more, soon. Only when idle."""
        assert self.idle, "one piece at a time"
        assert length > 0
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sustain-apply", daemon=True)
            self._thread.start()
        self._length = length
        self._idle.clear()
        self._work.release()

    def drain(self) -> None:
        """Wait until nothing is being applied. Raises what applying raised."""
        self._idle.wait()
        self._raise()

    def close(self) -> None:
        """Wait, and end the thread."""
        self._idle.wait()
        if self._thread is not None:
            self._length = 0
            self._work.release()
            self._thread.join()
            self._thread = None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            self._work.acquire()
            if self._length == 0:
                return
            try:
                self._apply(self._length)
            except SustainError as error:
                self._error = error
                self._failed()
            finally:
                self._idle.set()
