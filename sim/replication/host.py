"""One simulated host: its supervisor, and the processes that the supervisor starts.

All of it is the product's: `Supervisor` with its `decide`, its custodian and its lease worker, `Shipper`, `Receiver`.
Here is only what stands for the operating system (starting and ending processes) and for the user's command, which
writes numbered commits and can tell from what it finds which of them it holds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sim.replication import tasks
from sim.replication.command import run_command
from sim.replication.disk import Disk
from sustain.errors import SustainError
from sustain.failover.custodian import StoreCustodian
from sustain.failover.custodian.store import NewStore
from sustain.failover.supervise import Supervisor, Workload
from sustain.failover.types import ChildState, ChildView, Policy
from sustain.replication.credentials import NO_FILES
from sustain.replication.outlet import LinkConfig
from sustain.replication.receive import Receiver, ReceiverConfig
from sustain.replication.ship import Shipper, ShipperConfig
from sustain.replication.urls import parse_listen, parse_peer
from sustain.units import to_ns

if TYPE_CHECKING:
    from sim.replication.world import World

TTL_S = 0.5
HEARTBEAT_S, TIMEOUT_S = 0.12, 0.4
PORT = 7411
CLOCK_NS = 1 << 61  # far beyond this machine's clock, so that no deadline is past by that
STOP_LIMIT_S = 0.4


class SimClock:
    """A host's clock, as the product asks for it."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def boottime_ns(self) -> int:
        return CLOCK_NS + tasks.clock_ns(self._host)

    def realtime_ns(self) -> int:
        return tasks.Time.time_ns()


class SimPolicy(Policy):
    """Reads the lease less often, so that runs are cheap."""

    @property
    def poll_ns(self) -> int:
        return self.ttl_ns // 8


class Host:
    """Also a `tasks.Place`."""

    def __init__(self, world: World, at: int, rate: float, offset_ns: int) -> None:
        self.world = world
        self.name = chr(97 + at)
        self.address = f"127.0.0.{at + 1}"
        self.rate, self.offset_ns = rate, offset_ns
        self.paused_until_ns = 0
        self.down = False  # without power
        self.lease_cut = False
        self.disturbed_s = -9.0  # until when something was wrong with it
        self.clock = SimClock(self)
        self.disk = Disk(self)
        self.path = os.path.join(world.root, self.name, "app.sus")
        self.supervisor: Supervisor | None = None
        self.supervising: tasks.Process | None = None
        self.processes: list[tasks.Process] = []
        self.lives = 0
        os.mkdir(os.path.dirname(self.path))

    # the supervisor

    def start(self) -> None:
        if self.down or self.supervising is not None:
            return
        self.lives += 1
        self.disturbed_s = max(self.disturbed_s, self.world.kernel.now_ns / 1e9)
        self.world.tell(self, "supervisor starts")
        self.supervising = self.process("run")
        self.supervising.spawn(self._supervise, "run")

    def process(self, name: str) -> tasks.Process:
        made = tasks.Process(self.world.kernel, self, name)
        self.processes = [each for each in self.processes if not each.dead] + [made]
        return made

    def _supervise(self) -> None:
        world = self.world
        policy = SimPolicy(
            name=self.name,
            instance=f"{self.name}{self.lives}",
            ttl_ns=to_ns(TTL_S),
            create=world.all_create or self is world.hosts[0],
            peers=len(world.hosts) - 1,
            restarts=3,
            stop_timeout_ns=to_ns(0.3),
            drain_timeout_ns=to_ns(0.3),
            backoff_limit_ns=to_ns(0.3),
        )
        required = "?required=1" if world.required else ""
        peers = tuple(f"tcp://{each.address}:{PORT}{required}" for each in world.hosts if each is not self)
        listen = f"{self.address}:{PORT}"
        custodian = StoreCustodian(
            self.path,
            self.name,
            self.clock,
            new=NewStore(1 << 20, 1 << 20, "disk"),
            listen=listen,
            peers=peers,
            files=NO_FILES,
        )
        workload = Workload(("work",), "memory:", listen, peers)
        own = tasks.process()
        try:
            self.supervisor = Supervisor(workload, policy, custodian, world.lease(self), self.clock)
            self.supervisor.run()
        except SustainError as error:
            world.tell(self, f"supervisor ends: {error}")
        finally:
            if self.supervising is own:
                self.supervising = self.supervisor = None
                own.dead = True
                world.supervisor_ended(self)

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        if self.supervisor is not None:
            self.supervisor._on_signal(15, None)
            self.supervisor._bell.ring()

    def kill_supervisor(self) -> None:
        if self.supervising is not None:
            self.supervising.kill()
            self.supervising = self.supervisor = None
            self.world.supervisor_ended(self)

    def end_leftovers(self) -> None:
        """What an earlier supervisor has started ends."""
        for each in list(self.processes):
            if each is not self.supervising:
                each.kill()

    def kill(self, name: str) -> None:
        """A process, by name."""
        for each in list(self.processes):
            if each.name == name and not each.dead:
                each.kill()

    def lose_power(self) -> None:
        self.down = True
        self.paused_until_ns = 0
        for each in list(self.processes):
            each.kill()
        self.supervising = self.supervisor = None
        self.disk.lose_power(self.world.rng)


class SimChild:
    """`failover.process.Child`: a process of this host."""

    def __init__(self, clock: SimClock) -> None:
        self._clock = clock
        self._process: tasks.Process | None = None
        self._stop: tasks.Event | None = None
        self._view = ChildView()
        self._status: list[int] = []
        self.identity = None
        self.host: Host = clock._host

    def start(self, argv: Sequence[str], env: Mapping[str, str], stdout: int | None = None) -> None:
        if self.view().running:
            return
        words = argv[3:] if argv[0] == sys.executable else argv
        self._process = self.host.process(words[0])
        self._stop, self._status = tasks.Event(), []
        stop, status, process = self._stop, self._status, self._process

        def run() -> None:
            try:
                status.append(_MAIN[words[0]](self.host, words, env, stop))
            except SustainError as error:
                self.host.world.tell(self.host, f"{words[0]} fails: {error}")
                status.append(1)
            except tasks.Killed:
                raise
            except BaseException as error:  # the run's end, and not only this process's
                self.host.world.kernel.error = error
                raise
            finally:
                process.kill()
                self.host.world.child_ended(self.host)

        process.spawn(run, words[0])
        self._view = ChildView(ChildState.RUNNING, None, self._clock.boottime_ns())

    def view(self) -> ChildView:
        if self._process is not None and self._process.dead:
            status = self._status[0] if self._status else -9
            self._process = None
            self._view = ChildView(ChildState.EXITED, status, self._clock.boottime_ns(), self._view.asked_ns)
        return self._view

    def stop(self, kill_at_ns: int) -> None:
        if self._process is None:
            return
        now_ns = self._clock.boottime_ns()
        if now_ns >= kill_at_ns:
            self._process.kill()
        elif not self._view.asked and self._stop is not None:
            self._stop.set()
        if not self._view.asked:
            self._view = ChildView(ChildState.RUNNING, None, self._view.changed_ns, now_ns)


def _ship(host: Host, words: Sequence[str], _: Mapping[str, str], stop: tasks.Event) -> int:
    """As `sustain ship`."""
    peers = [parse_peer(words[at + 1]) for at, word in enumerate(words) if word == "--peer"]
    link = LinkConfig(
        name=host.name,
        chunk_bytes=64 << 10,
        linger_s=0.03,
        heartbeat_s=HEARTBEAT_S,
        timeout_s=TIMEOUT_S,
        connect_timeout_s=0.3,
        handshake_timeout_s=TIMEOUT_S,
        backoff_first_s=0.02,
        backoff_limit_s=0.3,
        report=lambda text: host.world.tell(host, f"ship: {text}"),
    )
    config = ShipperConfig(host.path, peers, link, pin_limit=0.6, stall_s=0.8)
    reason = Shipper(config).run(stop)  # type: ignore[arg-type]
    if reason.error is not None:
        raise reason.error
    return 0


def _receive(host: Host, words: Sequence[str], _: Mapping[str, str], stop: tasks.Event) -> int:
    """As `sustain receive`."""
    receiver = Receiver(
        ReceiverConfig(
            host.path,
            parse_listen(words[words.index("--listen") + 1]),
            name=host.name,
            durability="disk",
            heartbeat_s=HEARTBEAT_S,
            timeout_s=TIMEOUT_S,
            handshake_timeout_s=TIMEOUT_S,
            report=lambda text: host.world.tell(host, f"receive: {text}"),
        )
    )
    receiver.start()
    while not stop.wait(0.1) and not receiver.wait(0):
        pass
    receiver.stop()
    if receiver.failure is not None:
        raise receiver.failure
    return 0


_MAIN = {"ship": _ship, "receive": _receive, "work": run_command}
