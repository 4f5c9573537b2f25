"""A real shipper over a real, throttled link, under a battery's budget: never more is unshipped than the battery
allows, and what it allows follows the link and the battery at once."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

import sustain
from sustain._native import Control
from sustain.powerfail.budget import POWER_STATES, BudgetPolicy
from sustain.powerfail.decide import Power
from sustain.replication import wire
from sustain.replication.ship import End
from sustain.replication.wire import Kind
from sustain.testing.link import Link

from .conftest import LIMIT_S, Lab, Running, fill, until

ON_AC, ON_BATTERY = POWER_STATES.index(Power.ON_AC), POWER_STATES.index(Power.ON_BATTERY)
NO_DELAY = BudgetPolicy(first_threshold=0.9, second_threshold=0.9)  # so that the limit itself is met


class Writers:
    """An application that commits flat out."""

    def __init__(self, store: sustain.Store, threads: int = 3) -> None:
        self.commits = 0
        self.errors: list[Exception] = []
        self._store = store
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        users, blob = self._store.map("users"), os.urandom(1500)
        try:
            while not self._stop.is_set():
                users[b"%d %d" % (number, self.commits % 500)] = blob + b"%d" % self.commits
                self._store.commit()
                self.commits += 1
        except Exception as error:  # noqa: BLE001 - handed to the test
            self.errors.append(error)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        assert self.errors == []


@dataclass
class Watch:
    """Looks at the words from outside, as fast as it can."""

    control: Control
    worst_bytes: int = 0  # most unshipped
    past_limit: list[tuple[int, int]] = field(default_factory=list)
    waited: bool = False

    def look(self) -> None:
        # A limit only rises, as long as the budget stays: what is committed now lies before the limit of later.
        words = self.control.words()
        later = self.control.words()
        (destination,) = self.control.destinations()
        assert words is not None
        assert later is not None
        if destination["acked"] is not None:
            self.worst_bytes = max(self.worst_bytes, words["committed"] - destination["acked"])
        self.waited |= words["waiting_since_ns"] != 0
        limit = max(words["limit_lsn"], later["limit_lsn"])
        if words["committed"] > limit:
            self.past_limit.append((words["committed"], limit))

    def go_on(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.look()


@dataclass
class Scene:
    store: sustain.Store
    control: Control
    link: Link
    running: Running

    @property
    def bandwidth(self) -> int | None:
        (destination,) = self.control.destinations()
        return destination["bandwidth_bytes_per_s"]

    @property
    def limit_lsn(self) -> int:
        words = self.control.words()
        assert words is not None
        return words["limit_lsn"]


@pytest.fixture
def scene(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A pair with a link of 4 MB/s between them, and a battery for a drain of half a second."""
    store, receiver = lab.create(size="32MiB", log_size="32MiB"), lab.receiver()
    fill(store, 0, 10)
    control = Control(lab.path("a"), writable=True)
    control.set_power(ON_AC, 500_000_000)
    with Link(receiver.address) as link:
        link.slow(4e6)
        running = lab.ship(link.url, budget=getattr(request, "param", NO_DELAY))
        yield Scene(store, control, link, running)
        link.flow()
    control.close()


def test_never_more_is_unshipped_than_gets_away(scene: Scene) -> None:
    until(lambda: scene.bandwidth, "the link is measured though nothing is sent")
    probed, writers = Watch(scene.control), Writers(scene.store)
    until(lambda: probed.look() or probed.waited, "commits wait at the limit")
    # A probe is short, and a link that lets bytes through in clumps may look a quarter better than it is (which the
    # margin is for). The first samples of the full link lower that; what is over then has to go first.
    assert probed.worst_bytes <= 1.25 * 0.5 * 4e6, "a probe found a link that is not there"
    until(lambda: _within(scene), "what a full link has shown is what counts")
    watch = Watch(scene.control)
    watch.go_on(2.0)
    writers.stop()
    assert writers.commits > 200
    assert watch.worst_bytes <= 0.5 * 4e6, "more than half a second of the link is unshipped"
    assert watch.worst_bytes > 0.05 * 4e6, "the budget is not made use of"


def _within(scene: Scene) -> bool:
    words, (destination,) = scene.control.words(), scene.control.destinations()
    assert words is not None
    held, measured = destination["acked"], destination["bandwidth_bytes_per_s"]
    inside = held is not None and words["committed"] - held <= 0.5 * 4e6
    return inside and measured is not None and measured <= 1.02 * 4e6


@pytest.mark.parametrize("scene", [BudgetPolicy(first_threshold=0.4, second_threshold=0.9)], indirect=True)
def test_commits_are_delayed_before_they_have_to_wait(scene: Scene) -> None:
    until(lambda: scene.bandwidth, "the link is measured")
    writers = Writers(scene.store, threads=1)

    def commits() -> str:
        power = scene.store.status().power
        return "" if power is None else power.commits

    until(lambda: commits() == "delayed", "a commit is delayed")
    done = writers.commits
    until(lambda: writers.commits > done + 20, "and others after it")
    writers.stop()


def test_a_fall_of_the_bandwidth_tightens(scene: Scene) -> None:
    until(lambda: scene.bandwidth, "the link is measured")
    writers = Writers(scene.store)
    until(lambda: writers.commits > 300, "commits")
    before = scene.bandwidth
    assert before is not None
    scene.link.slow(2e5)
    until(lambda: (scene.bandwidth or before) < before / 2, "the fall is seen", limit_s=20.0)
    until(lambda: (scene.bandwidth or before) < 4e5, "and what it fell to")
    words = scene.control.words()
    assert words is not None
    assert words["budget_bytes"] <= 0.5 * 4e5
    scene.link.flow()
    writers.stop()


def test_a_fall_of_the_battery_tightens_and_its_end_stops_commits(scene: Scene) -> None:
    until(lambda: scene.bandwidth, "the link is measured")
    writers = Writers(scene.store)
    until(lambda: writers.commits > 100, "commits")
    scene.control.set_power(ON_BATTERY, 100_000_000)  # runs down, without another word
    until(lambda: (scene.control.words() or {}).get("budget_bytes") == 0, "nothing is allowed any more")
    scene.link.flow()
    until(lambda: scene.control.destinations()[0]["acked"] == scene.store.position, "all is held there")
    committed = writers.commits
    assert scene.limit_lsn == scene.store.position
    time.sleep(0.2)  # nothing can be waited for: nothing happens
    assert writers.commits <= committed + 1
    scene.control.set_power(ON_AC, 500_000_000)
    until(lambda: writers.commits > committed + 50, "the power is back, and commits go on")
    scene.control.clear_power()
    until(lambda: scene.limit_lsn == 0, "nobody watches the power")
    writers.stop()


def test_nobody_to_drain_to_stops_nobody(lab: Lab) -> None:
    """A host that took over from one that is gone goes on, whatever its battery says."""
    store = lab.create()
    fill(store, 0, 10)
    control = Control(lab.path("a"), writable=True)
    control.set_power(ON_AC, 10_000_000_000)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        running = lab.ship(f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        until(lambda: (control.words() or {}).get("limit_lsn", 0) > 1 << 62, "no limit")
        fill(store, 10, 10)
        running.stop()
    control.close()


def test_without_a_measurement_everything_waits_and_without_a_battery_nothing(lab: Lab) -> None:
    store = lab.create()
    fill(store, 0, 10)
    control = Control(lab.path("a"), writable=True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        running = lab.ship(f"tcp://127.0.0.1:{silent.getsockname()[1]}?required=1")
        until(control.destinations, "the shipper runs")
        fill(store, 10, 10)
        words = control.words()
        assert words is not None
        assert words["limit_lsn"] == 0
        control.set_power(ON_AC, None)
        fill(store, 20, 10)
        control.set_power(ON_AC, 10_000_000_000)
        until(lambda: (control.words() or {}).get("limit_lsn") == 1, "no credit")
        control.clear_power()
        fill(store, 30, 10)
        running.stop()
    control.close()


def test_limits_outlast_a_shipper_that_is_killed_and_commits_wait(scene: Scene) -> None:
    until(lambda: scene.bandwidth, "the link is measured")
    assert scene.running.stop().end is End.STOPPED
    writers = Writers(scene.store)
    limit = scene.limit_lsn
    assert limit > scene.store.position
    until(lambda: (scene.control.words() or {}).get("waiting_since_ns"), "commits wait")
    assert scene.store.position <= limit
    assert scene.limit_lsn == limit
    scene.control.clear_power()
    writers.stop()


def test_a_probe_outside_of_a_stream_ends_the_connection(lab: Lab) -> None:
    """A receiver counts nothing for somebody who has not begun."""
    from sustain.replication.auth import NO_KEY, STORES, ShipperHandshake
    from sustain.replication.channel import Channel

    store, receiver = lab.create(), lab.receiver()
    fill(store, 0, 5)
    running = lab.ship(receiver)
    store.wait(store.position, copies=1, timeout=LIMIT_S)
    hello = running.shipper.hello()
    running.stop()
    channel = Channel(socket.create_connection(receiver.address), 5.0)
    channel.set_deadline(LIMIT_S)
    handshake = ShipperHandshake(NO_KEY, STORES)
    _, payload = channel.receive_frame(wire.SHIPPER_HANDSHAKE)
    channel.send_raw([handshake.hello(payload, hello)])
    header, payload = channel.receive_frame(wire.SHIPPER_HANDSHAKE)
    assert handshake.answer(header.kind, payload).probes
    channel.send(Kind.PROBE, 1, payload=bytes(100))
    while header.kind is not Kind.BYE:
        header, payload = channel.receive_frame(wire.SHIPPER_STREAM)
    assert "PROBE" in wire.decode(wire.Bye, payload).message
    channel.release()
