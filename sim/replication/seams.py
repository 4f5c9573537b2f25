"""Where the product is cut from the machine: which names of which modules are simulated.

Everything that is not named here runs as it is. A module of the product that imports threads, time, sockets or the
engine and is not here either is not part of the simulation, or would wait in real time: a test compares.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sim.replication import network, tasks
from sim.replication.disk import SimLogTail, SimReplica
from sim.replication.host import SimChild
from sustain.failover import loop, supervise
from sustain.failover.custodian import store as custodian
from sustain.failover.journal import Journal
from sustain.failover.lease import worker
from sustain.replication import (
    accounts,
    applier,
    channel,
    destination,
    dial,
    intake,
    listener,
    orphan,
    outlet,
    receive,
    ship,
    standby,
)

if TYPE_CHECKING:
    from sim.replication.world import World

THREADS = (accounts, applier, channel, destination, intake, listener, outlet, receive, ship, worker, loop)
CLOCKS = (accounts, channel, destination, intake, outlet, receive, ship, orphan, standby)
SOCKETS = (channel, dial, listener)
STORES = (standby, custodian)


class SimDestination(destination.Destination):
    """A destination, whose thread is a task."""

    _task: tasks.Task

    def start(self) -> None:
        self._task = tasks.process().spawn(self.run, "destination")

    def join(self, timeout: float | None = None) -> None:
        tasks.join(self._task, timeout)


class SimIntake(intake.Intake):
    """A session that the checker hears of."""

    def __init__(self, channel: Any, hello: Any, standby: Any, heartbeat_s: float, report: Any) -> None:
        super().__init__(channel, hello, standby, heartbeat_s, report)
        host = tasks.process().host
        host.world.checker.admitted(host, hello, standby)  # type: ignore[attr-defined]


class SimBell:
    """`loop.Bell`, without signals."""

    def __init__(self) -> None:
        self._rung = tasks.Event()

    def listen(self, _: object) -> None:
        pass

    def ring(self) -> None:
        self._rung.set()

    def wait(self, until_ns: int, clock: Any) -> None:
        self._rung.wait(max(0.0, (until_ns - clock.boottime_ns()) / 1e9))
        self._rung.clear()

    def close(self) -> None:
        pass


class SimJournal(Journal):
    """What a supervisor says to people is part of the story."""

    def _print(self, text: str) -> None:
        host = tasks.process().host
        host.world.tell(host, text)  # type: ignore[attr-defined]


class SimRunfile:
    """`runfile`: processes of simulated hosts have no entries in /proc."""

    @staticmethod
    def write(store: str, data: Mapping[str, object]) -> None:
        pass

    @staticmethod
    def path_of(store: str) -> str:
        return f"{store}.run.json"

    @staticmethod
    def end_leftovers(*_: object) -> None:
        tasks.process().host.end_leftovers()  # type: ignore[attr-defined]


def write_durably(name: str, fill: Callable[[int], None]) -> None:
    """`orphan.write_durably`, on a disk that may be full."""
    host = tasks.process().host
    if host.disk.full:  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")
    _write_durably(name, fill)


_write_durably = orphan.write_durably


@contextlib.contextmanager
def installed(world: World) -> Iterator[None]:
    """The product on simulated hosts, until the block ends; then everything is as it was."""
    changes: list[tuple[Any, str, Any]] = []
    changes += [(module, "threading", tasks.Threading) for module in THREADS]
    changes += [(module, "time", tasks.Time) for module in CLOCKS]
    changes += [(module, "socket", network.SocketModule) for module in SOCKETS]
    changes += [(module, "Replica", SimReplica) for module in STORES]
    changes += [
        (worker, "queue", tasks.Queue),
        (channel, "select", network.Select),
        (destination, "random", world.rng),
        (orphan, "write_durably", write_durably),
        (ship, "LogTail", SimLogTail),
        (ship, "Destination", SimDestination),
        (receive, "Intake", SimIntake),
        (supervise, "Child", SimChild),
        (supervise, "Bell", SimBell),
        (supervise, "Journal", SimJournal),
        (supervise, "runfile", SimRunfile),
        (supervise, "exclusive", lambda _: contextlib.nullcontext()),
    ]
    changes += world.variant.changes()
    before = [(owner, name, _held(owner, name)) for owner, name, _ in changes]
    tasks.install(world.kernel)
    network.install(world.network)
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


def _held(owner: Any, name: str) -> Any:
    """What is there, as it is there: a static method stays one."""
    return vars(owner)[name] if isinstance(owner, type | ModuleType) else getattr(owner, name)
