"""How fast a destination takes the log, found out while it does. Pure: the time comes with each call.

Used by `outlet`, which feeds it from two threads, under a lock. The model: bandwidth can be seen only while the
pipe is full. A sample is what was acknowledged within a tenth of a second or more, in which the sender either
always had something to send, or what was on the way never fell below 20 ms of the rate that was found. (From the
first byte sent to its acknowledgement was rejected: on a long link that measures its length, not its width.)

Where there was no such time for a while, the outlet sends a probe: a train of frames that the receiver counts and
answers one by one. Its rate is the lowest from any answer of its first half to its end, because what a shaper lets
through at once, at first or in clumps, is no promise; and not more than what arrived since it was sent, the log
before it and the whole train, less the shortest way there and back of earlier probes: because a receiver that slept
finds the train complete and counts it in no time. A probe knows nothing of the replica's medium, so the usual rate
of real transfers caps what probes say.

A link that stops gives no samples at all. So while nothing is heard of what is on the way, and while there is no
connection, the estimate falls with the time that this lasts, as an average over it would: a disk that takes a
moment for its flush stops nobody, and a destination that has gone is soon worth nothing.
"""

from collections import deque
from statistics import median

from sustain.powerfail.budget import Bandwidth

SAMPLE_S = 0.1
FULL_S = 0.02
SILENT_S = 0.25
PROBE_EVERY_S = 10.0
PROBE_AGAIN_S = 1.0  # while it matters most
PROBE_AIM_S = 0.03  # what a probe is to take
PROBE_FRAMES = 16
PROBE_FIRST_BYTES = 32 << 10
PROBE_LIMIT_BYTES = 4 << 20
_PROBE_LEAST_BYTES = PROBE_FRAMES << 10
_PROBE_SHORT_S = 0.01  # a train that took less is not believed, but sent again, longer
_PROBE_GROWS = 8
_RUNS_TRUSTED = 3
_SAMPLES_LEAST = 3  # one may be wrong: a busy host's clock, a shaper that lets the first bytes through


class DrainMeter:
    """Of one destination, over all its connections. Positions are LSNs, times seconds of any steady clock."""

    def __init__(self) -> None:
        self._samples = Bandwidth(samples=32)
        self._runs: deque[float] = deque(maxlen=32)  # real transfers; forgotten one by one as probes come
        self._sent = self._acked = self._received = 0
        self._mark: tuple[int, float] | None = None  # acknowledged when the sample began
        self._starved = False
        self._least_bytes = 0  # on the way, within the sample
        self._silent_s: float | None = None  # since when nothing was heard, though something should have been
        self._measured_s: float | None = None
        self._train: _Train | None = None
        self._trips: deque[float] = deque(maxlen=16)
        self._again = False
        self._probe_bytes = PROBE_FIRST_BYTES

    def estimate(self, now_s: float) -> float | None:
        """Bytes per second that can be counted on; None: not measured often enough."""
        low = self._samples.low()
        if low is None or self._samples.count < _SAMPLES_LEAST:
            return None
        if len(self._runs) >= _RUNS_TRUSTED:
            low = min(low, median(self._runs))
        silence_s = 0.0 if self._silent_s is None else now_s - self._silent_s
        return low * min(1.0, SILENT_S / max(silence_s, SILENT_S))

    # a connection

    def connected(self, lsn: int) -> None:
        """A connection goes on at `lsn`; nothing is on the way."""
        self._sent = self._acked = self._received = lsn
        self._mark = self._silent_s = self._train = self._measured_s = None

    def disconnected(self, now_s: float) -> None:
        """Nothing will be heard, until there is a connection again."""
        if self._silent_s is None:
            self._silent_s = now_s
        self._mark = self._train = None

    # the sender

    def sending(self, until: int, now_s: float) -> None:
        """Log bytes before `until` are handed over."""
        if self._silent_s is None:
            self._silent_s = now_s
        self._sent = until

    def starved(self) -> None:
        """The sender had nothing to send."""
        self._starved = True

    # what is heard

    def acknowledged(self, lsn: int, now_s: float) -> None:
        """Everything before `lsn` is durable there."""
        if lsn <= self._acked:
            return
        self._acked = lsn
        self._received = max(lsn, self._received)
        on_the_way = self._sent - lsn
        self._heard(now_s)
        if self._mark is None:
            self._begin_sample(lsn, now_s)
            return
        self._least_bytes = min(self._least_bytes, on_the_way)
        began, began_s = self._mark
        if now_s - began_s >= SAMPLE_S:
            rate = (lsn - began) / (now_s - began_s)
            if not self._starved or self._least_bytes >= rate * FULL_S:
                self._runs.append(rate)
                self._note(lsn - began, now_s - began_s, now_s)
            self._begin_sample(lsn, now_s)
        if on_the_way <= 0:
            self._mark = None

    def received(self, lsn: int, now_s: float) -> None:
        """Everything before `lsn` has arrived there; it may not be durable yet."""
        if lsn > self._received:
            self._received = lsn
            self._heard(now_s)

    def _heard(self, now_s: float) -> None:
        self._silent_s = now_s if self._sent > self._acked or self._train is not None else None

    def _begin_sample(self, lsn: int, now_s: float) -> None:
        self._mark = (lsn, now_s)
        self._starved = False
        self._least_bytes = self._sent - lsn

    def _note(self, transferred_bytes: int, duration_s: float, now_s: float) -> None:
        self._samples.note(transferred_bytes, duration_s)
        self._measured_s = now_s

    # probes

    def probe_due(self, now_s: float, pressed: bool = False) -> bool:
        """Whether to probe, if there is nothing to send. `pressed`: commits are held back by what is known."""
        if self._train is not None:
            return False
        if self._measured_s is None or self._again or self._samples.count < _SAMPLES_LEAST:
            return True
        since_s = now_s - self._measured_s
        if since_s < PROBE_AGAIN_S:
            return False
        return since_s >= (PROBE_AGAIN_S if pressed or self._fallen() else PROBE_EVERY_S)

    def probe_begins(self, now_s: float) -> list[int]:
        """Sizes of the frames of a probe, in bytes."""
        frame_bytes = self._probe_bytes // PROBE_FRAMES
        self._train = _Train(frame_bytes, now_s, max(0, self._sent - self._received))
        self._again = False
        if self._silent_s is None:
            self._silent_s = now_s
        return [frame_bytes] * PROBE_FRAMES

    def probe_counted(self, counted_bytes: int, now_s: float) -> None:
        """The receiver has counted so many bytes of the probe."""
        train = self._train
        if train is None:
            return
        if train.heard(counted_bytes, now_s):
            self._train = None
            self._take(train, now_s)
        self._heard(now_s)

    def _take(self, train: "_Train", now_s: float) -> None:
        known_trips = list(self._trips)  # without its own: a receiver that slept makes that one long
        if train.before_bytes == 0:
            self._trips.append(train.answers[0][1] - train.began_s)
        if not known_trips and self._trips:
            self._again = True  # the first one tells how long the way is, and no more
            return
        rate = train.rate(min(known_trips, default=0.0))
        if train.duration_s < _PROBE_SHORT_S and self._probe_bytes < PROBE_LIMIT_BYTES:
            self._again = True
            self._probe_bytes = min(PROBE_LIMIT_BYTES, self._probe_bytes * _PROBE_GROWS)
            return
        self._note(int(rate * SAMPLE_S), SAMPLE_S, now_s)
        if self._runs:
            self._runs.popleft()
        aim = int(rate * PROBE_AIM_S)
        self._probe_bytes = max(_PROBE_LEAST_BYTES, min(PROBE_LIMIT_BYTES, aim))

    def _fallen(self) -> bool:
        usual, low = self._samples.low(percentile=50.0, newest=0), self._samples.low()
        return usual is not None and low is not None and low < usual / 2


class _Train:
    """A probe under way."""

    def __init__(self, frame_bytes: int, began_s: float, before_bytes: int) -> None:
        self.began_s = began_s
        self.before_bytes = before_bytes  # of the log, on the way when it was sent
        self.answers: list[tuple[int, float]] = []
        self._frame_bytes = frame_bytes

    def heard(self, counted_bytes: int, now_s: float) -> bool:
        """An answer; whether it was the last."""
        self.answers.append((counted_bytes, now_s))
        return counted_bytes >= self._frame_bytes * PROBE_FRAMES

    @property
    def duration_s(self) -> float:
        """From the first answer to the last."""
        return self.answers[-1][1] - self.answers[0][1]

    def rate(self, trip_s: float) -> float:
        """Bytes per second; `trip_s`: the shortest way there and back."""
        (first_bytes, _), (last_bytes, last_s) = self.answers[0], self.answers[-1]
        rates = [
            (last_bytes - bytes_then) / max(last_s - then_s, 1e-6)
            for bytes_then, then_s in self.answers[: len(self.answers) // 2 + 1]
        ]
        arrived_bytes = self.before_bytes + last_bytes - first_bytes
        return min(*rates, arrived_bytes / max(last_s - self.began_s - trip_s, 1e-6))
