"""Puts several objects at once, and tells in which order they are all there.

Used by `destination`. Threads of its own and not a pool: a put that hangs must not keep the process from ending, and
one that was forsaken does no harm, for it is of an object that nobody has heard of.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sustain.errors import SustainError
from sustain.powerfail.budget import Bandwidth
from sustain.replication.archive.place import Place
from sustain.replication.archive.rooms import Rooms

_TELLING_BYTES = 256 << 10  # less says more of the latency than of the bandwidth
_SILENT_S = 1.0


class PutMeter:
    """Bandwidth of the puts. From any thread; times in seconds of a steady clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rates = Bandwidth(samples=32)
        self._failing_s: float | None = None

    def note(self, size_bytes: int, duration_s: float) -> None:
        with self._lock:
            self._failing_s = None
            if size_bytes >= _TELLING_BYTES:
                self._rates.note(size_bytes, duration_s)

    def failed(self, now_s: float) -> None:
        with self._lock:
            if self._failing_s is None:
                self._failing_s = now_s

    def estimate(self, now_s: float) -> float | None:
        """Bytes a second of one put after another; None: not measured yet. It falls while puts fail."""
        with self._lock:
            low = self._rates.low()
            if low is None or self._failing_s is None:
                return low
            return low * min(1.0, _SILENT_S / max(now_s - self._failing_s, _SILENT_S))


@dataclass(eq=False)
class Put:
    """One object on its way. `then` is called by `Uploads.settle`, when it and all before it are there."""

    path: str
    then: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


class Uploads:
    """At most `parallel` puts at once. All methods but the puts themselves run in one thread."""

    def __init__(self, place: Place, parallel: int, meter: PutMeter) -> None:
        self.rooms = Rooms(keep=parallel + 2)  # for what is put
        self._place = place
        self._parallel = parallel
        self._meter = meter
        self._puts: deque[Put] = deque()
        self.stirred = threading.Event()  # some put has ended

    @property
    def busy(self) -> bool:
        return bool(self._puts)

    @property
    def room(self) -> bool:
        """Whether one more may be put now: neither too many at work, nor too many behind a slow one."""
        working = sum(not put.done.is_set() for put in self._puts)
        return working < self._parallel and len(self._puts) < 2 * self._parallel

    def submit(self, path: str, data: memoryview, then: Callable[[], None]) -> None:
        """Put `data`, out of `rooms`; it goes back there."""
        put = Put(path, then)
        self._puts.append(put)
        name = f"sustain-put-{path}"
        threading.Thread(target=self._run, args=(put, data), name=name, daemon=True).start()

    def settle(self) -> int:
        """Call `then` of what has arrived, in order; how many. Raises what a put raised."""
        self.stirred.clear()
        count = 0
        while self._puts and self._puts[0].done.is_set():
            put = self._puts.popleft()
            if put.error is not None:
                raise put.error
            put.then()
            count += 1
        return count

    def forsake(self, patience_s: float) -> None:
        """Wait a moment for what is on its way, then forget it."""
        deadline = time.monotonic() + patience_s
        for put in self._puts:
            put.done.wait(max(0.0, deadline - time.monotonic()))
        self._puts.clear()

    def _run(self, put: Put, data: memoryview) -> None:
        begun = time.monotonic()
        try:
            self._place.put(put.path, data)
            self._meter.note(data.nbytes, max(time.monotonic() - begun, 1e-9))
            self.rooms.give(data)  # not that of a put that failed: it may still be read
        except SustainError as error:
            put.error = error
            self._meter.failed(time.monotonic())
        except Exception as error:  # noqa: BLE001 - the thread that settles raises it
            put.error = error
        finally:
            put.done.set()
            self.stirred.set()
