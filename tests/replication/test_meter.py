"""What the meter makes of a link: a model of a pipe with a width and a length, in simulated time, feeds it."""

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sustain.replication.meter import (
    PROBE_AGAIN_S,
    PROBE_EVERY_S,
    PROBE_LIMIT_BYTES,
    SILENT_S,
    DrainMeter,
)

STEP_S = 0.0005


class Pipe:
    """A link of `rate` bytes a second and `trip_s` there and back, with a sender in front of it."""

    def __init__(self, rate: float, trip_s: float = 0.0005, buffer_bytes: int = 1 << 20) -> None:
        self.rate, self.trip_s, self.buffer_bytes = rate, trip_s, buffer_bytes
        self.meter = DrainMeter()
        self.now_s = 100.0
        self.committed = self.sent = self.acked = 1000
        self._room = 0.0
        self._queue: deque[tuple[str, int]] = deque()  # what is in the pipe: kind, bytes
        self._answers: deque[tuple[float, str, int]] = deque()
        self._counted = 0
        self.probes: list[int] = []
        self.meter.connected(self.sent)

    def run(self, seconds: float, app_rate: float = 0.0, probing: bool = True) -> None:
        """So long, while an application commits at `app_rate`."""
        end_s, owed = self.now_s + seconds, 0.0
        while self.now_s < end_s:
            self.now_s += STEP_S
            owed += app_rate * STEP_S
            if owed >= 2000:
                self.committed += int(owed)
                owed = 0.0
            self._send(probing)
            self._move()
            while self._answers and self._answers[0][0] <= self.now_s:
                _, kind, value = self._answers.popleft()
                if kind == "log":
                    self.acked = value
                    self.meter.acknowledged(value, self.now_s)
                else:
                    self.meter.probe_counted(value, self.now_s)

    def _queued(self) -> int:
        return sum(size for _, size in self._queue)

    def _send(self, probing: bool) -> None:
        while self.sent < self.committed and self._queued() < self.buffer_bytes:
            size = min(self.committed - self.sent, 64 << 10)
            self.sent += size
            self.meter.sending(self.sent, self.now_s)
            self._queue.append(("log", size))
        if self.sent == self.committed:
            self.meter.starved()
            if probing and self.meter.probe_due(self.now_s):
                sizes = self.meter.probe_begins(self.now_s)
                self.probes.append(sum(sizes))
                self._counted = 0
                self._queue.extend(("probe", size) for size in sizes)

    def _move(self) -> None:
        self._room = min(self._room + self.rate * STEP_S, max(self.rate * STEP_S, 64 << 10))
        arrived = self.acked if not self._answers else 0
        for _, kind, value in self._answers:
            if kind == "log":
                arrived = value
        arrived = max(arrived, self.acked)
        while self._queue and self._room > 0:
            kind, size = self._queue[0]
            moved = min(size, int(self._room) or 1)
            self._room -= moved
            if moved < size:
                self._queue[0] = (kind, size - moved)
            else:
                self._queue.popleft()
            if kind == "log":
                arrived += moved
                self._answers.append((self.now_s + self.trip_s, kind, arrived))
            else:
                self._counted += moved
                if moved == size:
                    self._answers.append((self.now_s + self.trip_s, kind, self._counted))
        if not self._queue:
            self._room = 0.0

    def estimate(self) -> float | None:
        return self.meter.estimate(self.now_s)


@pytest.mark.parametrize("trip_s", [0.0005, 0.03, 0.2])
@pytest.mark.parametrize("rate", [2e5, 1e7, 2e8])
def test_an_idle_link_is_measured_by_a_probe_that_is_short(rate: float, trip_s: float) -> None:
    pipe = Pipe(rate, trip_s)
    assert pipe.estimate() is None
    pipe.run(3.0)
    found = pipe.estimate()
    assert found is not None
    assert rate * 0.7 <= found <= rate * 1.1
    assert sum(pipe.probes) <= max(64 << 10, rate * 0.15) or max(pipe.probes) <= PROBE_LIMIT_BYTES
    begun = len(pipe.probes)
    pipe.run(5 * PROBE_EVERY_S)
    assert 3 <= len(pipe.probes) - begun <= 6, "about every ten seconds"
    for size in pipe.probes[begun:]:
        assert size / rate <= 0.1, "some tens of milliseconds"


@pytest.mark.parametrize("trip_s", [0.0005, 0.03])
@pytest.mark.parametrize("rate", [1e6, 5e7])
def test_a_full_link_is_measured_without_probes(rate: float, trip_s: float) -> None:
    pipe = Pipe(rate, trip_s)
    pipe.run(1.5, app_rate=rate * 1.5, probing=False)
    found = pipe.estimate()
    assert found is not None
    assert rate * 0.8 <= found <= rate * 1.1
    assert pipe.probes == []


def test_a_link_that_is_never_full_is_not_called_slow() -> None:
    pipe = Pipe(5e7)
    pipe.run(3.0, app_rate=1e6)
    found = pipe.estimate()
    assert found is not None
    assert found >= 3e7


@pytest.mark.parametrize("busy", [False, True])
def test_a_fall_is_seen_at_once(busy: bool) -> None:
    pipe = Pipe(5e7)
    app_rate = 6e7 if busy else 0.0
    pipe.run(5.0, app_rate)
    before = pipe.estimate()
    pipe.rate = 1e6
    pipe.run(0.6 if busy else PROBE_EVERY_S + 1.0, app_rate)
    after = pipe.estimate()
    assert before is not None
    assert after is not None
    assert before > 4e7
    # In a full pipe the sample under way is of both rates; it is a mean, and the next is not.
    pipe.run(0.6, app_rate)
    assert (pipe.estimate() or 0) <= 1.2e6


def test_a_link_that_stops_is_worth_less_and_less_until_it_is_measured_again() -> None:
    pipe = Pipe(1e7)
    pipe.run(2.0, app_rate=2e7)
    before = pipe.estimate()
    assert before is not None
    pipe.rate = 0.0
    pipe.run(SILENT_S * 4, app_rate=2e7)
    during = pipe.estimate()
    assert during is not None
    assert during <= before / 3
    pipe.meter.disconnected(pipe.now_s)
    pipe.now_s += 100.0
    assert (pipe.estimate() or 0.0) <= before / 100
    pipe.rate = 1e7
    pipe.sent = pipe.acked
    pipe._queue.clear()
    pipe.meter.connected(pipe.sent)
    pipe.run(3.0, app_rate=2e7)
    assert (pipe.estimate() or 0.0) >= 5e6


def test_a_slow_medium_behind_a_fast_link_is_not_forgotten_in_a_pause() -> None:
    pipe = Pipe(1e6)
    pipe.run(2.0, app_rate=2e6)
    pipe.run(10.0)  # all is drained
    pipe.rate = 1e9  # what probes see of it
    pipe.run(5 * PROBE_EVERY_S)
    assert (pipe.estimate() or 0.0) <= 1.2e6


def test_while_it_is_pressed_it_is_measured_more_often() -> None:
    meter = DrainMeter()
    meter.connected(0)
    assert meter.probe_due(0.0)
    for at_s in (0.0, 0.02, 0.04, 0.06):  # the first tells the length of the way, and then one is not enough
        assert meter.estimate(at_s) is None
        assert meter.probe_due(at_s)
        _answer(meter, at_s, 0.02)
    assert meter.estimate(0.08) is not None
    assert not meter.probe_due(PROBE_AGAIN_S / 2, pressed=True)
    assert meter.probe_due(0.1 + PROBE_AGAIN_S, pressed=True)
    assert not meter.probe_due(0.1 + PROBE_AGAIN_S)
    assert meter.probe_due(0.1 + PROBE_EVERY_S)


def test_a_receiver_that_slept_does_not_make_a_link_fast() -> None:
    meter = DrainMeter()
    meter.connected(0)
    for at_s in (0.0, 0.04, 0.08, 0.12):
        _answer(meter, at_s, 0.03)
    honest = meter.estimate(0.2)
    assert honest is not None
    for at_s in (10.0, 20.0, 30.0, 40.0):
        sizes = meter.probe_begins(at_s)
        for number in range(1, len(sizes) + 1):  # it finds all of them, late, and counts them in no time
            meter.probe_counted(sum(sizes[:number]), at_s + 0.06 + number * 0.0004)
    found = meter.estimate(41.0)
    assert found is not None
    assert found <= honest * 1.5


def test_a_receiver_that_slept_at_the_very_first_probe_does_not_either() -> None:
    meter = DrainMeter()
    meter.connected(0)
    for at_s, slept_s in (
        (0.0, 0.030),
        (0.1, 0.0),
        (0.2, 0.0),
        (0.3, 0.0),
    ):  # on a link where a train takes 40 ms
        sizes = meter.probe_begins(at_s)
        for number in range(1, len(sizes) + 1):
            arrived_s = 0.0005 + 0.04 * number / len(sizes)
            meter.probe_counted(sum(sizes[:number]), at_s + max(slept_s, arrived_s))
        found = meter.estimate(at_s + 0.05)
        assert found is None or found <= sum(sizes) / 0.04 * 1.1
    assert found is not None


def _answer(meter: DrainMeter, at_s: float, duration_s: float) -> None:
    sizes = meter.probe_begins(at_s)
    for number in range(1, len(sizes) + 1):
        meter.probe_counted(sum(sizes[:number]), at_s + 0.0005 + duration_s * number / len(sizes))


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.floats(5e4, 1e8), st.floats(0.0002, 0.2))
def test_it_never_promises_much_more_than_the_link_has(seed: int, rate: float, trip_s: float) -> None:
    rng = random.Random(seed)
    pipe = Pipe(rate, trip_s)
    for _ in range(6):
        pipe.run(rng.uniform(0.1, 1.0), app_rate=rng.choice([0.0, rate / 10, rate, rate * 3]))
        found = pipe.estimate()
        assert found is None or found <= rate * 1.25 + 70_000
