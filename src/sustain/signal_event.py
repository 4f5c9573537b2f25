"""An event that a signal handler may set: whoever waits for a signal to end, or to turn to something else.

`threading.Event` holds a lock in each of its calls. A handler runs in the main thread between any two of its
steps; when that thread is just inside `wait`, `clear` or another `set` of the same event, the handler's `set` waits
for a lock that its own thread holds, for ever.
"""

import contextlib
import os
import select
import threading
import weakref


class SignalEvent(threading.Event):
    """As `threading.Event`, and `set` may be called at any moment by a signal handler, or by any thread.

    A signal that comes just before a wait begins is handled only when that wait ends: wait with a limit.
    """

    def __init__(self) -> None:  # without that of Event, whose lock is what is not wanted
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._descriptor)

    def __repr__(self) -> str:
        return f"<SignalEvent: {'set' if self.is_set() else 'unset'}>"

    def is_set(self) -> bool:
        return self.wait(0)

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has been set 2^64 - 2 times
            os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is not set
            os.eventfd_read(self._descriptor)

    def wait(self, timeout: float | None = None) -> bool:
        """Until it is set, or `timeout` seconds have passed; whether it is set."""
        # A new one each time: one that a thread waits with refuses another thread, and a handler.
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))
