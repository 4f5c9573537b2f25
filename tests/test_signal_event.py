"""An event that signal handlers set, under more signals than anybody sends."""

import subprocess
import sys
import threading
import time

from sustain.signal_event import SignalEvent

# Another process, since the main thread of this one is pytest's, and since what hangs cannot be interrupted.
STORM = """
import signal, sys, threading
from sustain.signal_event import SignalEvent
event = {"SignalEvent": SignalEvent, "Event": threading.Event}[sys.argv[1]]()
signals = 0
def on_signal(*_):
    global signals
    signals += 1
    event.set()
signal.signal(signal.SIGALRM, on_signal)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.00003)
rounds = 0
while signals < 3000:
    event.wait(0.0001)
    event.clear()
    rounds += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(rounds, signals)
"""


def storm(kind: str, limit_s: float) -> bool:
    """Whether it comes through."""
    process = subprocess.Popen([sys.executable, "-c", STORM, kind], stdout=subprocess.PIPE)
    try:
        process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    return process.returncode == 0


def test_a_handler_may_set_it_at_any_moment() -> None:
    assert storm("SignalEvent", 60)


def test_that_of_threading_would_hang() -> None:
    assert any(not storm("Event", 20) for _ in range(3)), "it may be used in handlers by now"


def test_it_is_an_event() -> None:
    event = SignalEvent()
    assert not event.is_set()
    assert repr(event) == "<SignalEvent: unset>"
    assert not event.wait(0.001)
    event.set()
    event.set()
    assert event.is_set()
    assert event.wait()
    event.clear()
    event.clear()
    assert not event.is_set()
    assert not event.wait(0)


def test_all_who_wait_are_woken_and_it_stays_set() -> None:
    event = SignalEvent()
    seen: list[bool] = []
    threads = [threading.Thread(target=lambda: seen.append(event.wait(60))) for _ in range(3)]
    for each in threads:
        each.start()
    time.sleep(0.01)
    event.set()
    for each in threads:
        each.join()
    assert seen == [True] * 3
    assert event.is_set()
