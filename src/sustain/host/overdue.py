"""Calls that cannot be interrupted (a C library that waits for a daemon), given a time limit: in a thread of their own.

Used by `libvirt`. The model: a `Caller` makes one call at a time. One that does not come back in time is left alone
with its thread, and its caller gets an error; until it comes back, every further call is refused at once. So what
hangs takes one thread, delays everyone by one time limit, and is reported each time. Its result, if it ever comes, is
dropped. Rejected: a pool of threads for all, which a few hung calls fill; a process, which can be killed, but would
need a connection of its own, and its credentials.
"""

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from sustain.errors import HostError

T = TypeVar("T")

_IDLE_S = 30.0  # a thread without a call for so long ends


@dataclass(slots=True)
class _Call(Generic[T]):
    work: Callable[[], T]
    begun_s: float
    until_s: float
    result: T | None = None
    error: BaseException | None = None


class Caller:
    """Makes calls, one at a time, each within its limit. `what` is for errors: whose calls they are."""

    def __init__(self, what: str, hint: str) -> None:
        self._what = what
        self._hint = hint
        self._changed = threading.Condition()
        self._running: _Call[Any] | None = None
        self._thread = False

    def call(self, work: Callable[[], T], limit_s: float) -> T:
        """What `work` returns or raises. Raises HostError (ETIMEDOUT) when it has not come back in time, or one
        before it has not."""
        until_s = time.monotonic() + limit_s
        with self._changed:
            while self._running is not None:
                now_s = time.monotonic()
                if now_s >= min(until_s, self._running.until_s):
                    raise self._late(now_s - self._running.begun_s)
                self._changed.wait(min(until_s, self._running.until_s) - now_s)
            mine = _Call(work, time.monotonic(), until_s)
            self._running = mine
            if not self._thread:
                self._thread = True
                threading.Thread(target=self._run, name=f"calls to {self._what}", daemon=True).start()
            self._changed.notify_all()
            if not self._changed.wait_for(
                lambda: self._running is not mine, max(0.0, until_s - time.monotonic())
            ):
                raise self._late(limit_s)
        if mine.error is not None:
            raise mine.error
        return cast(T, mine.result)

    @property
    def hangs(self) -> bool:
        """Whether a call is overdue."""
        running = self._running
        return running is not None and time.monotonic() >= running.until_s

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._running is not None, _IDLE_S):
                    self._thread = False
                    return
                call = self._running
            assert call is not None
            try:
                call.result = call.work()
            except BaseException as error:  # noqa: BLE001 - raised by `call`, in the thread of who called
                call.error = error
            with self._changed:
                self._running = None
                self._changed.notify_all()

    def _late(self, seconds: float) -> HostError:
        return HostError(
            f"{self._what}: no answer for {seconds:.1f} s", hint=self._hint, errno=errno.ETIMEDOUT
        )
