"""A destination that is left alone for a while: `sustain status` says for how long still, and why."""

import contextlib
import io
import json
import signal
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import sustain
from sustain._native import LogTail
from sustain.cli import main
from sustain.errors import ArchiveIOError
from sustain.replication.archive.directory import Directory
from sustain.replication.archive.names import part_name
from sustain.testing.link import Link

from .conftest import LIMIT_S, LINK, Lab, fill, until
from .test_processes import Processes
from .test_several import STALL_S, go_on, state_of

NOBODY = "tcp://127.0.0.1:1"
PATIENT = replace(LINK, backoff_first_s=600.0, backoff_limit_s=600.0)


def shown(store: sustain.Store) -> sustain.DestinationStatus:
    (destination,) = store.status().destinations
    return destination


def said(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(list(words)) == 0
    return out.getvalue()


def test_one_that_cannot_be_reached_is_left_alone_and_says_so(lab: Lab) -> None:
    store, url = lab.create(), NOBODY
    running = lab.ship(url, link=PATIENT)
    until(lambda: shown(store).left_alone_s, "it is left alone")
    status = shown(store)
    assert status.left_alone_s is not None
    assert 60 < status.left_alone_s <= 600
    assert status.left_alone_why is not None
    assert url in status.left_alone_why
    (told,) = json.loads(said("status", lab.path("a"), "--json"))["destinations"]
    assert 60 < told["left_alone_s"] <= status.left_alone_s
    assert told["left_alone_why"] == status.left_alone_why
    (line,) = [each for each in said("status", lab.path("a")).splitlines() if "left alone" in each]
    assert line.startswith(f"{url}: left alone for ")
    assert status.left_alone_why in line
    running.stop()
    assert (shown(store).left_alone_s, shown(store).left_alone_why) == (None, None), "nobody will try it"


def test_one_that_streams_is_not_left_alone(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver()
    lab.ship(receiver)
    store.wait(fill(store, 0, 1), copies=1, timeout=LIMIT_S)
    assert (shown(store).left_alone_s, shown(store).left_alone_why) == (0.0, None)
    (told,) = json.loads(said("status", lab.path("a"), "--json"))["destinations"]
    assert (told["left_alone_s"], told["left_alone_why"]) == (0.0, None)
    assert "left alone" not in said("status", lab.path("a"))


def test_what_a_killed_shipper_was_about_to_do_is_unknown(lab: Lab) -> None:
    store, processes = lab.create(), Processes(lab)
    try:
        shipper = processes.start("ship", lab.path("a"), "--to", NOBODY)
        until(lambda: store.status().destinations and shown(store).left_alone_s, "it is left alone")
        until(
            lambda: (shown(store).left_alone_s or 0.0) > 1.0 and not shipper.send_signal(signal.SIGSTOP),
            "a long pause",
        )
        assert shown(store).left_alone_why is not None, "stopped is not dead"
        shipper.kill()
        shipper.wait(LIMIT_S)
    finally:
        processes.end()
    assert (shown(store).left_alone_s, shown(store).left_alone_why) == (None, None)


def test_a_peer_that_cannot_keep_up_says_that(lab: Lab) -> None:
    store, good, bad = lab.create(log_size="2MiB"), lab.receiver("b"), lab.receiver("c")
    with Link(bad.address) as link:
        link.slow(150_000)  # a snapshot takes seconds
        running = lab.ship(good, link.url, link=replace(LINK, overrun_first_s=300.0), stall_s=STALL_S)
        until(lambda: any("gets a snapshot" in line for line in running.said), "the first snapshot begins")

        def alone() -> bool:
            slow = next(each for each in store.status().destinations if each.url == link.url)
            return "cannot keep up" in (slow.left_alone_why or "") and (slow.left_alone_s or 0) > 100

        go_on(store, alone)
        assert state_of(store, link.url) == "needs-snapshot"
        running.stop()


def test_an_archive_that_cannot_keep_up_is_left_alone_too(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that never ends would hold the log up for the stall time again and again."""
    store, receiver = lab.create(log_size="2MiB"), lab.receiver()
    put, ends = Directory.put, []

    def slow(place: Directory, path: str, data: Any) -> None:
        if part_name(path):
            until(lambda: any(each() for each in ends), "it is let go")
            raise ArchiveIOError(f"{path}: too slow")
        put(place, path, data)

    monkeypatch.setattr(Directory, "put", slow)
    url = f"file://{tmp_path}/arch"
    link = replace(LINK, overrun_first_s=300.0)
    running = lab.ship(receiver, f"{url}?every=5ms", link=link, stall_s=STALL_S)

    def archive() -> sustain.DestinationStatus:
        return next(each for each in store.status().destinations if each.url == url)

    ends.append(lambda: archive().state == "needs-snapshot")

    def alone() -> bool:
        return "cannot keep up" in (archive().left_alone_why or "") and (archive().left_alone_s or 0) > 100

    go_on(store, alone)
    assert any(f"{url} cannot keep up" in line for line in running.said)
    ends.append(lambda: True)
    running.stop()


def test_why_is_cut_where_a_character_ends(lab: Lab) -> None:
    store = lab.create()
    tail = LogTail(lab.path("a"))
    slot = tail.claim_slot(NOBODY, required=False)
    for why, kept in (("é" * 200, "é" * 120), ("x" + "é" * 200, "x" + "é" * 119), ("short", "short")):
        tail.leave_alone(slot, 10.0, why)
        assert shown(store).left_alone_why == kept
    tail.leave_alone(slot, 0.0, "it is tried")
    assert shown(store).left_alone_s == 0.0
    tail.close()


def test_a_reason_is_read_whole_while_it_changes(lab: Lab) -> None:
    """Two that differ in every byte, one after the other as fast as possible, in another thread."""
    store = lab.create()
    tail = LogTail(lab.path("a"))
    slot = tail.claim_slot(NOBODY, required=False)
    whys = {letter * 240 for letter in "ab"}
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for why in whys:
                tail.leave_alone(slot, 10.0, why)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        seen = {shown(store).left_alone_why for _ in range(3000)}
    finally:
        stop.set()
        thread.join()
    assert seen <= {*whys, None}
    assert whys & seen
    tail.close()


def test_a_store_may_have_had_any_number_of_destinations(lab: Lab) -> None:
    """Not more than sixteen at a time; whoever is not named any more takes no room, and counts as nobody's copy."""
    store = lab.create()
    position = fill(store, 0, 1)
    urls = [f"file://{lab.directory}/arch-{number}" for number in range(17)]

    def only(url: str) -> bool:
        return [url] == [each.url for each in store.status().destinations]

    for url in urls:
        running = lab.ship(f"{url}?every=1ms")
        until(partial(only, url), "it is the only one")
        store.wait(position, copies=1, timeout=LIMIT_S)
        running.stop()
    running = lab.ship(NOBODY, link=PATIENT)
    until(lambda: shown(store).url == NOBODY and shown(store).left_alone_s, "it is left alone")
    with pytest.raises(sustain.WaitTimeout):
        store.wait(position, copies=1, timeout=0.0)
    running.stop()
    with pytest.raises(sustain.ConfigError) as caught:
        lab.ship(*urls)
    assert "17 destinations" in str(caught.value)
    assert "16" in str(caught.value)
    assert caught.value.hint
