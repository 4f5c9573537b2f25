"""A scheduler's loop in the foreground: until a signal or for a time, and then everything is put back.

Used by `sustain pages run` and `sustain packages run`. The loop has its own thread; this one waits for signals, which
are blocked meanwhile, so that what they end is never in the middle of something.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sustain.errors import SustainError
from sustain.signal_event import SignalEvent

_STOP_S = 60.0
_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_EVERY_S = 1.0  # whether it goes on

Mask = Iterable[int]


def no_last(mask: Mask) -> None:
    """For whoever has nothing to do before all is put back."""


def run(loop: Any, config: str, span_s: float | None, last: Callable[[Mask], None] = no_last) -> Any:
    """The last good tick, after everything was put back (`loop.left`: what was not). `last` is called while everything
    is as the loop has it, with the signals that are not blocked otherwise. Raises SustainError; `config` names the file
    in its hints."""
    name = loop.scheduler.name
    ended: list[str] = []  # why it ended by itself

    def work() -> None:
        try:
            loop.run()
        except Exception as error:  # noqa: BLE001 - said below, and the run ends with it
            ended.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=work, name=name, daemon=True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    # Threads from before, as numpy's, do not block them, and get one while this thread is not waiting.
    stop = SignalEvent()
    handlers = {number: signal.signal(number, lambda *_: stop.set()) for number in _STOP}
    try:
        thread.start()
        _wait(thread, span_s, stop)
        if thread.is_alive():
            last(mask)
        tick = loop.good
    finally:
        loop.stop()
        thread.join(_STOP_S)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if thread.is_alive():
        raise SustainError(
            "what was changed is still being put back",
            hint=f"`sustain agent restore --config {config}` goes on with it",
        )
    if ended:
        raise SustainError(
            f"{name} ended: {ended[0]}",
            hint=f"`sustain agent restore --config {config}` puts back what it may have left",
        )
    if tick is None:
        raise SustainError(loop.failure or "nothing was seen", hint="give it more time: --for")
    return tick


def _wait(thread: threading.Thread, span_s: float | None, stop: SignalEvent) -> None:
    """Until a signal (they are blocked), for a time, or until the thread has ended by itself."""
    end_s = math.inf if span_s is None else time.monotonic() + span_s
    while thread.is_alive() and not stop.is_set():
        left_s = end_s - time.monotonic()
        if left_s <= 0 or signal.sigtimedwait(_STOP, min(left_s, _LOOK_EVERY_S)) is not None:
            return


@contextlib.contextmanager
def unblocked(mask: Mask) -> Iterator[SignalEvent]:
    """With signals as they were before they were blocked, so that a command which is run has them, too; whether one of
    those came that end a run. That is no exception, which would leave a command behind that has just been started."""
    interrupted = SignalEvent()
    before = {number: signal.signal(number, lambda *_: interrupted.set()) for number in _STOP}
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield interrupted
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in before.items():
            signal.signal(number, handler)
