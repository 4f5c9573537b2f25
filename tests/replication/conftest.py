"""Pairs of hosts for tests: a primary's store, its shipper in a thread, receivers, all in one process and on
loopback."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sustain
from sustain.replication.outlet import LinkConfig
from sustain.replication.receive import Receiver, ReceiverConfig
from sustain.replication.ship import ExitReason, Shipper, ShipperConfig
from sustain.replication.urls import join, parse_destination

LIMIT_S = 60.0  # on a machine that is busy with other things
# Short enough that a dead peer is noticed within a test, long enough for a loaded machine.
LINK = LinkConfig(
    name="a",
    heartbeat_s=0.2,
    timeout_s=3.0,
    backoff_first_s=0.02,
    backoff_limit_s=0.2,
    handshake_timeout_s=5.0,
)


def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Wait for something that has no event of its own; what `condition` gave. Fails after the limit."""
    deadline = time.monotonic() + limit_s
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        pause.wait(0.005)


class Running:
    """A shipper in a thread."""

    def __init__(self, config: ShipperConfig) -> None:
        self.said: list[str] = []
        self.stop_event = threading.Event()
        self.reason: ExitReason | None = None
        self.error: Exception | None = None
        link = replace(config.link, report=self.said.append)
        self.shipper = Shipper(replace(config, link=link))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.reason = self.shipper.run(self.stop_event)
        except Exception as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def join(self) -> ExitReason:
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "the shipper does not end"
        if self.error is not None:
            raise self.error
        assert self.reason is not None
        return self.reason

    def stop(self) -> ExitReason:
        self.stop_event.set()
        return self.join()


class Lab:
    """Makes hosts, and ends what it made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.said: list[str] = []
        self.stores: dict[str, sustain.Store] = {}  # the newest handle of each
        self._ending: list[Callable[[], object]] = []

    def create(self, name: str = "a", size: str = "8MiB", log_size: str = "2MiB") -> sustain.Store:
        store = sustain.create(self.path(name), size=size, log_size=log_size, durability="memory")
        self._ending.append(store.close)
        self.stores[name] = store
        return store

    def open(self, name: str, **options: Any) -> sustain.Store:
        store = sustain.open(self.path(name), **options)
        self._ending.append(store.close)
        self.stores[name] = store
        return store

    def path(self, name: str) -> str:
        return str(self.directory / f"{name}.sus")

    def receiver(self, name: str = "b", port: int = 0, **options: Any) -> Receiver:
        defaults: dict[str, Any] = {"heartbeat_s": 0.2, "timeout_s": 3.0, "handshake_timeout_s": 3.0}
        config = ReceiverConfig(
            **{"store": self.path(name), "listen": ("127.0.0.1", port), "name": name}
            | {"report": self.said.append}
            | defaults
            | options
        )
        receiver = Receiver(config)
        receiver.start()
        self._ending.append(receiver.stop)
        return receiver

    def ship(
        self, *targets: Receiver | str, name: str = "a", required: bool = False, **options: Any
    ) -> Running:
        urls = [each if isinstance(each, str) else f"tcp://{join(*each.address)}" for each in targets]
        suffix = "?required=1" if required else ""
        link = options.pop("link", LINK)
        config = ShipperConfig(
            self.path(name), [parse_destination(url + suffix) for url in urls], link=link, stall_s=3.0
        )
        running = Running(replace(config, **options))
        self._ending.append(running.stop_event.set)
        return running

    def end(self) -> None:
        for each in reversed(self._ending):
            each()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.end()


def contents(store: sustain.Store, name: str = "users") -> dict[bytes, bytes]:
    """Everything in a map."""
    return dict(store.map(name).items())


def fill(store: sustain.Store, first: int, count: int, value: bytes = b"x" * 50) -> int:
    """One commit for each of `count` keys; the last position."""
    users, position = store.map("users"), 0
    for number in range(first, first + count):
        users[b"%06d" % number] = value + b"%d" % number
        position = store.commit()
    return position
