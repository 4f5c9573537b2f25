"""The log is trimmed behind what a replica has acknowledged, also while its sender is not done with the same bytes."""

import os
import threading
import time

import pytest

from sustain._native import Control
from sustain.replication.channel import Channel
from sustain.replication.wire import Kind

from .conftest import LIMIT_S, Lab, contents, fill

PATIENCE_S = 0.05  # for the log to be trimmed


def test_what_was_acknowledged_meanwhile_needs_no_snapshot(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that sends may stand still, on a busy machine, until the replica has acknowledged what it sent and
    the application has made use of the room."""
    store = lab.create(log_size="2MiB")
    control, begun = Control(lab.path("a")), threading.Event()
    overtaken, send = [], Channel.send

    def late(self: Channel, kind: Kind, a: int = 0, *rest: int, **more: bytes | memoryview) -> None:
        send(self, kind, a, *rest, **more)
        end_s = time.monotonic() + PATIENCE_S
        while kind is Kind.LOG and begun.is_set() and time.monotonic() < end_s:
            words = control.words()
            if words is not None and words["tail"] > a:
                overtaken.append(a)
                return
            os.sched_yield()

    monkeypatch.setattr(Channel, "send", late)
    receiver = lab.receiver("b")
    running = lab.ship(receiver, required=True)
    store.wait(fill(store, 0, 10), copies=1, timeout=LIMIT_S)
    begun.set()
    blob = store.file("blob")
    for _ in range(200):
        blob.pwrite(os.urandom(50_000), 0)
        position = store.commit()
    begun.clear()
    store.wait(position, copies=1, timeout=LIMIT_S)
    running.stop()
    receiver.stop()
    control.close()
    assert overtaken, "the log was trimmed while the sender stood"
    assert sum("gets a snapshot: " in line for line in running.said) == 1, running.said
    assert contents(lab.open("b")) == contents(store)
