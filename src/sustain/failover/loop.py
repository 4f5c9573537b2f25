"""What the supervisor's loop stands on: a bell that wakes it, work beside it, and that it is the only one.

Used by `supervise`.
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

from sustain.clock import Clock
from sustain.errors import StoreBusy, StoreIOError, SustainError


class Preparation:
    """Creating or promoting a store, in a thread: a slow disk must not hold up renewals."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._thread: threading.Thread | None = None
        self.error = ""

    @property
    def running(self) -> bool:
        thread = self._thread  # which it ends by forgetting
        return thread is not None and thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        if self.running:
            return
        self._thread = threading.Thread(target=self._run, args=(work,), name="prepare", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (SustainError, OSError) as error:
            self.error = f"the store cannot be opened in the new epoch: {error}"
        finally:
            self._thread = None
            self._wake()


class Bell:
    """Wakes the loop: rung by threads and, through the wake-up descriptor, by signals."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def listen(self, handler: Callable[[int, FrameType | None], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._far.fileno(), warn_on_full_buffer=False)

    def ring(self) -> None:
        with contextlib.suppress(OSError):  # full: it rings already; closed: nobody listens any more
            self._far.send(b"!")

    def wait(self, until_ns: int, clock: Clock) -> None:
        timeout_s = max(0.0, (until_ns - clock.boottime_ns()) / 1e9)
        if select.select([self._near], [], [], timeout_s)[0]:
            with contextlib.suppress(BlockingIOError):
                self._near.recv(4096)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        self._near.close()
        self._far.close()


class exclusive:
    """Only one supervisor for a store, also while there is no store yet."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> None:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreIOError(
                f"{self._path}: {error.strerror}",
                hint="the store's directory must exist and be writable",
                errno=error.errno,
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            store = self._path.removesuffix(".run.lock")
            raise StoreBusy(
                f"another `sustain run` on this host has {store}",
                hint=f"see {store}.run.json, or use another path",
            ) from error

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
