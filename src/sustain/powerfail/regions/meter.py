"""What bandwidth a destination takes, measured beside the transfer. Pure: the time comes with each call.

Used by `peer`. Time counts while something is on its way: pages sent and not yet taken, or a flush that is awaited.
So a copy that is slow on purpose does not make its destination look slow, and a flush does. A sample is closed
after a quarter of a second of such time, and at each flush of enough pages, flush included; the budget uses a low
percentile of them (`budget.Bandwidth`), because a drain on battery has no second try.
"""

from sustain.powerfail.budget import Bandwidth

_SAMPLE_S = 0.25
_SAMPLE_BYTES = 1 << 20
_ROUND_S = 0.01  # a flush sooner than that says more about the clock


class Meter:
    """Fed by a sender, under its lock. Times in seconds of any steady clock."""

    def __init__(self) -> None:
        self._bandwidth = Bandwidth()
        self._on_the_way = 0
        self._flushing = False
        self._busy_since: float | None = None
        self._sample = _Span()
        self._round = _Span()  # since the last flush

    def low(self) -> float | None:
        """The low percentile, bytes per second; None: never measured."""
        return self._bandwidth.low()

    def sent(self, size_bytes: int, now_s: float) -> None:
        """So much is on its way."""
        self._on_the_way += size_bytes
        if self._busy_since is None:
            self._busy_since = now_s

    def flush_asked(self, now_s: float) -> None:
        """All of it is to be made durable."""
        self._flushing = True
        if self._busy_since is None:
            self._busy_since = now_s

    def taken(self, size_bytes: int, now_s: float) -> None:
        """So much of it was taken there."""
        self._on_the_way -= size_bytes
        self._account(size_bytes, now_s)
        if self._sample.seconds >= _SAMPLE_S and self._sample.bytes >= _SAMPLE_BYTES:
            self._sample = self._close(self._sample)

    def flushed(self, now_s: float) -> None:
        """It is durable."""
        self._flushing = False
        self._account(0, now_s)
        if self._round.bytes >= _SAMPLE_BYTES and self._round.seconds >= _ROUND_S:
            self._round = self._close(self._round)
            self._sample = _Span()

    def stopped(self) -> None:
        """The connection has ended: what was on its way says nothing."""
        self._on_the_way, self._flushing, self._busy_since = 0, False, None
        self._sample, self._round = _Span(), _Span()

    def _account(self, size_bytes: int, now_s: float) -> None:
        spent_s = 0.0 if self._busy_since is None else now_s - self._busy_since
        for span in (self._sample, self._round):
            span.bytes += size_bytes
            span.seconds += spent_s
        self._busy_since = now_s if self._on_the_way > 0 or self._flushing else None

    def _close(self, span: "_Span") -> "_Span":
        self._bandwidth.note(span.bytes, span.seconds)
        return _Span()


class _Span:
    def __init__(self) -> None:
        self.bytes = 0
        self.seconds = 0.0
