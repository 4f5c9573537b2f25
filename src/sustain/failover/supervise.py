"""`sustain run`: looks, lets `decide` decide, and does it.

Used by `cli.run`. One thread, one loop: observe, decide, act, then sleep until the moment that the plan
names or until something happens (a child ended, a signal came, the lease changed). Whatever may block for
long has a thread of its own: the lease store (`LeaseWorker`) and opening the store in a new epoch
(`_Preparation`), so that renewing and self-fencing go on meanwhile.

The lease's deadline is written into the store's control words after every renewal; the engine refuses
commits past it. So even if this process dies, hangs or is stopped, its command cannot commit once another
host may.
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from sustain._native import Engine, Replica
from sustain.clock import Clock
from sustain.errors import StoreBusy, StoreFenced, StoreIOError, StoreUntrusted, SustainError
from sustain.failover import report, runfile
from sustain.failover.decide import decide
from sustain.failover.door import Door
from sustain.failover.journal import Journal
from sustain.failover.lease import Lease, LeaseState, LeaseView
from sustain.failover.lease.worker import LeaseStatus, LeaseWorker
from sustain.failover.observe import StoreWatch
from sustain.failover.process import Child
from sustain.failover.types import (
    Action,
    Announce,
    CreateStore,
    Exit,
    ForgetLease,
    Observation,
    Plan,
    Policy,
    Promote,
    ReleaseLease,
    Renew,
    Role,
    SetAside,
    StartCommand,
    StartReceiver,
    StartShipper,
    State,
    StopCommand,
    StopReceiver,
    StopShipper,
    StoreView,
    TryAcquire,
)
from sustain.host.processes import boot_id
from sustain.replication.orphan import unresolved

_CLOSED_NS = 1  # a deadline in the past: no commit in this epoch any more


@dataclass(frozen=True, slots=True)
class Workload:
    """What to run and with what. Sizes in bytes."""

    store: str  # absolute path
    command: tuple[str, ...]
    lease_url: str
    listen: str | None
    peers: tuple[str, ...]
    key_file: str | None = None
    size: int = 256 << 20
    log_size: int = 64 << 20
    durability: str = "auto"
    report_dir: str = ""
    event_log: str | None = None


class Supervisor:
    """One host's supervisor of one workload."""

    def __init__(self, workload: Workload, policy: Policy, lease: Lease, clock: Clock) -> None:
        self._workload = workload
        self._policy = policy
        self._lease = lease
        self._clock = clock
        self._journal = Journal(policy.name, workload.event_log, clock)
        self._watch = StoreWatch(workload.store)
        self._bell = _Bell()
        self._worker = LeaseWorker(lease, clock, policy.name, policy.instance, self._bell.ring)
        self._command, self._shipper, self._receiver = Child(clock), Child(clock), Child(clock)
        self._door = Door(
            workload.store,
            workload.listen,
            workload.key_file,
            tell=self._journal.tell,
            fenced=self._bell.ring,
        )
        self._preparation = _Preparation(self._bell.ring)
        self._state = State()
        self._stop_requested = False
        self._exit: Exit | None = None
        self._deadline_in_store = (0, 0)
        self._taken: _Taken | None = None
        self._run_entry: dict[str, object] = {}
        self._boot_id = boot_id()

    def run(self) -> int:
        """Until the work is finished or a signal ends it; the exit status.

        Raises StoreBusy when another supervisor or a stranger has the store, LeaseError when the lease
        store cannot be read at the start, StoreError for a store that nobody could use.
        """
        with _exclusive(f"{self._workload.store}.run.lock"):
            self._lease.read()  # a wrong lease is said now, not after the first failure
            runfile.end_leftovers(self._workload.store, self._boot_id, self._journal.tell)
            self._bell.listen(self._on_signal)
            self._worker.start()
            try:
                while self._exit is None:
                    self._bell.wait(self._step(), self._clock)
            finally:
                self._end()
        if self._exit.status:
            raise SustainError(self._exit.reason, hint=self._exit.hint)
        return 0

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._stop_requested = True

    def _step(self) -> int:
        """Look, decide, act; when to do so again at the latest."""
        # The clock is read first: what is seen is never older than the moment that is decided for.
        now_ns = self._clock.boottime_ns()
        status, busy = self._worker.status()
        seen = self._observe(status, busy)
        plan = decide(seen, self._state, self._policy, now_ns)
        before, self._state = self._state, plan.state
        self._worker.poll_s = plan.poll_ns / 1e9
        self._journal.note(before.role, plan, seen)
        for action in plan.actions:
            self._act(action, status, seen)
        self._write_run_file(plan, status, seen)
        return plan.wake_ns

    def _observe(self, status: LeaseStatus, busy: bool) -> Observation:
        store, destinations = self._watch.look()
        self._set_deadline(status, store)
        return Observation(
            lease=status.view,
            lease_error=status.error,
            lease_error_ns=status.error_ns,
            lease_busy=busy,
            grant=status.grant,
            grant_lost=status.lost,
            candidates=status.candidates,
            store=store,
            preparing=self._preparation.running,
            prepare_error=self._preparation.error,
            command=self._command.view(),
            receiver=self._receiver.view(),
            shipper=self._shipper.view(),
            destinations=destinations,
            stop_requested=self._stop_requested,
        )

    def _set_deadline(self, status: LeaseStatus, store: StoreView | None) -> None:
        grant = status.grant
        if grant is None or store is None or store.log_epoch != grant.epoch or status.lost:
            return
        wanted = (grant.epoch, grant.deadline_ns)
        if self._deadline_in_store[0] == grant.epoch and self._deadline_in_store[1] >= grant.deadline_ns:
            return  # known already, or closed for good
        control = self._watch.control()
        if control is not None:
            control.set_lease(*wanted)
            self._deadline_in_store = wanted

    def _close_epoch(self, epoch: int, store: StoreView | None) -> None:
        """From now on nobody commits in `epoch` here, not even a process that nobody knows of."""
        control = self._watch.control()
        if control is not None and store is not None and store.log_epoch == epoch:
            control.set_lease(epoch, _CLOSED_NS)
            self._deadline_in_store = (epoch, 1 << 63)

    def _act(self, action: Action, status: LeaseStatus, seen: Observation) -> None:  # noqa: PLR0912 - one table
        worker, grant = self._worker, status.grant
        match action:
            case TryAcquire():
                if status.view is not None:
                    self._taken = _Taken(status.view, self._clock.boottime_ns())
                    self._preparation.error = ""
                    worker.acquire(status.view, self._policy.ttl_ns / 1e9, action.at_least_epoch)
            case Renew():
                if grant is not None:
                    worker.renew(grant, action.store_uuid)
            case ReleaseLease():
                if grant is not None:
                    self._close_epoch(grant.epoch, seen.store)
                    worker.release(grant, action.state, action.position, action.reason)
            case ForgetLease():
                worker.forget()
            case Announce():
                worker.announce(action.rank, action.usable, action.round)
            case CreateStore():
                self._preparation.start(self._create)
            case SetAside():
                self._set_aside()
            case Promote():
                self._preparation.start(lambda: self._promote(action.epoch))
            case StartCommand():
                self._start_command(action, status)
            case StopCommand():
                self._command.stop(action.kill_at_ns)
            case StartShipper():
                peers = [word for peer in self._workload.peers for word in ("--peer", peer)]
                self._start_part(self._shipper, "ship", peers)
                if grant is not None:
                    self._door.open(grant.epoch)
            case StopShipper():
                self._door.close()
                self._shipper.stop(action.kill_at_ns)
            case StartReceiver():
                assert self._workload.listen is not None
                self._door.close()
                self._start_part(self._receiver, "receive", ["--listen", self._workload.listen])
            case StopReceiver():
                self._receiver.stop(action.kill_at_ns)
            case Exit():
                self._exit = action
            case _:
                raise AssertionError(f"unknown action {action}")

    def _create(self) -> None:
        Engine.format(
            self._workload.store, self._workload.size, self._workload.log_size, self._workload.durability
        )

    def _set_aside(self) -> None:
        aside = f"{self._workload.store}.set-aside-{self._clock.realtime_ns()}"
        self._watch.close()
        try:
            os.rename(self._workload.store, aside)
        except OSError as error:
            raise StoreIOError(
                f"{self._workload.store}: cannot be renamed: {error.strerror}",
                hint="move it away",
                errno=error.errno,
            ) from error
        self._journal.tell(f"the empty store is kept as {aside}")

    def _promote(self, epoch: int) -> None:
        """In a thread. The receiver has ended; nobody else may have the store."""
        words, taken = self._watch_words(), self._taken
        replica = Replica(self._workload.store)
        try:
            held, commits = replica.end, replica.end_seq
            orphan = unresolved(self._workload.store, replica.superblock()["replica_uuid"], held)
            if orphan is not None:  # recovery may have shown an end that was not known before
                raise StoreUntrusted(
                    f"{self._workload.store}: it holds commits that a newer primary does not know ({orphan})",
                    hint="start the host that was primary last, or restore from it; the file named is the report",
                )
            # Recovery may have taken long, or this host was stopped meanwhile: an epoch that others have gone
            # past would do no harm, but would only be an orphan.
            grant = self._worker.status()[0].grant
            if grant is None or grant.epoch != epoch or self._clock.boottime_ns() >= grant.deadline_ns:
                raise StoreFenced(
                    f"{self._workload.store}: the lease ran out before epoch {epoch} could begin"
                )
            start = replica.promote(epoch)
        finally:
            replica.close()
        if taken is not None:
            taken.promoted(self._clock.boottime_ns(), held, commits, start, words)

    def _watch_words(self) -> tuple[int, int] | None:
        """(primary's position, when it was heard), as the receiver left it."""
        watch = StoreWatch(self._workload.store)
        try:
            words = watch.words()
        finally:
            watch.close()
        if words is None or words["primary_heard_ns"] == 0:
            return None
        return words["primary_committed"], words["primary_heard_ns"]

    def _start_command(self, action: StartCommand, status: LeaseStatus) -> None:
        env = {
            **os.environ,
            "SUSTAIN_STORE": self._workload.store,
            "SUSTAIN_NAME": self._policy.name,
            "SUSTAIN_EPOCH": str(action.epoch),
        }
        try:
            self._command.start(self._workload.command, env)
        except OSError as error:
            self._journal.tell(f"the command cannot be started: {error}")
        if action.first:
            self._report(action.epoch, status)

    def _start_part(self, child: Child, verb: str, options: list[str]) -> None:
        argv = [sys.executable, "-m", "sustain.cli", verb, "--store", self._workload.store]
        argv += ["--name", self._policy.name, *options]
        if self._workload.key_file:
            argv += ["--key-file", self._workload.key_file]
        try:
            child.start(argv, os.environ, stdout=sys.stderr.fileno())
        except OSError as error:
            self._journal.tell(f"`sustain {verb}` cannot be started: {error}")

    def _report(self, epoch: int, status: LeaseStatus) -> None:
        taken, grant = self._taken, status.grant
        if taken is None or taken.view.record.state is LeaseState.ABSENT or grant is None:
            return  # the very first start takes over from nobody
        found = taken.report(self._policy.name, self._workload.store, epoch, self._clock)
        try:
            path = report.save(found, self._workload.report_dir or os.path.dirname(self._workload.store))
        except OSError as error:
            self._journal.tell(f"the takeover's report cannot be written: {error}")
            path = ""
        self._journal.takeover(found, path)

    def _write_run_file(self, plan: Plan, status: LeaseStatus, seen: Observation) -> None:
        record = None if status.view is None else status.view.record
        if status.grant is not None:
            record = status.grant.record
        who = {"command": self._command, "shipper": self._shipper, "receiver": self._receiver}
        command = self._command.identity
        entry: dict[str, object] = {
            "name": self._policy.name,
            "role": str(plan.state.role),
            "pid": os.getpid(),
            "boot_id": self._boot_id,
            "lease": self._workload.lease_url,
            "lease_state": None if record is None else str(record.state),
            "lease_error": status.error,
            "epoch": None if record is None else record.epoch,
            "holder": None if record is None else record.holder,
            "lease_deadline_ns": None if status.grant is None else status.grant.deadline_ns,
            "command_pid": None if command is None else command.pid,
            "restarts": len(plan.state.crashes),
            "waiting_for": plan.note,
            "peers": list(self._workload.peers),
            "listen": self._workload.listen,
        }
        entry |= {f"{role}_process": child.identity for role, child in who.items()}
        if entry != self._run_entry:
            self._run_entry = entry
            try:
                runfile.write(self._workload.store, entry)
            except OSError as error:
                self._journal.tell(f"{runfile.path_of(self._workload.store)} cannot be written: {error}")

    def _end(self) -> None:
        """After the last step, and when the supervisor itself has failed: nothing of it may be left."""
        self._door.close()
        for child in (self._command, self._shipper, self._receiver):
            while child.view().running:
                child.stop(self._clock.boottime_ns())
                self._bell.wait(self._clock.boottime_ns() + 50_000_000, self._clock)
        if not self._worker.stop(2.0):
            self._journal.tell("the lease store does not answer; leaving all the same")
        status, busy = self._worker.status()
        plan = Plan((), self._state, 0, 0, "" if self._exit is None else self._exit.reason)
        self._write_run_file(plan, status, self._observe(status, busy))
        self._watch.close()
        self._bell.close()
        self._journal.close()


class _Taken:
    """What is known of a takeover while it goes on."""

    def __init__(self, view: LeaseView, began_ns: int) -> None:
        self.view = view
        self.began_ns = began_ns
        self._promoted_ns = 0
        self._held: int | None = None
        self._commits: int | None = None
        self._start = 0
        self._heard: tuple[int, int] | None = None

    def promoted(
        self, now_ns: int, held: int, commits: int, start: int, heard: tuple[int, int] | None
    ) -> None:
        self._promoted_ns, self._held, self._commits = now_ns, held, commits
        self._start, self._heard = start, heard

    def report(self, name: str, store: str, epoch: int, clock: Clock) -> report.Takeover:
        old = self.view.record
        released = old.position if old.state is not LeaseState.HELD else None
        committed, heard_ns = self._heard if self._heard is not None else (None, None)
        now_ns = clock.boottime_ns()
        return report.Takeover(
            name=name,
            store=store,
            store_uuid=old.store_uuid,
            old_epoch=old.epoch,
            old_holder=old.holder,
            old_state=str(old.state),
            old_reason=old.reason,
            new_epoch=epoch,
            held_position=self._held,
            start_position=self._start,
            commits_held=self._commits,
            primary_committed=committed,
            primary_heard_boottime_ns=heard_ns,
            released_position=released,
            lease_free_boottime_ns=self.view.takeable_at_ns or None,
            acquired_boottime_ns=self.began_ns,
            promoted_boottime_ns=self._promoted_ns or now_ns,
            command_started_boottime_ns=now_ns,
            finished_realtime_ns=clock.realtime_ns(),
        )


class _Preparation:
    """Creating or promoting a store, in a thread: a slow disk must not hold up renewals."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._thread: threading.Thread | None = None
        self.error = ""

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        if self.running:
            return
        self._thread = threading.Thread(target=self._run, args=(work,), name="prepare", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (SustainError, OSError) as error:
            self.error = f"the store cannot be opened in the new epoch: {error}"
        finally:
            self._thread = None
            self._wake()


class _Bell:
    """Wakes the loop: rung by threads and, through the wake-up descriptor, by signals."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def listen(self, handler: Callable[[int, FrameType | None], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._far.fileno(), warn_on_full_buffer=False)

    def ring(self) -> None:
        with contextlib.suppress(OSError):  # full: it rings already; closed: nobody listens any more
            self._far.send(b"!")

    def wait(self, until_ns: int, clock: Clock) -> None:
        timeout_s = max(0.0, (until_ns - clock.boottime_ns()) / 1e9)
        if select.select([self._near], [], [], timeout_s)[0]:
            with contextlib.suppress(BlockingIOError):
                self._near.recv(4096)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        self._near.close()
        self._far.close()


class _exclusive:
    """Only one supervisor for a store, also while there is no store yet."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> None:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreIOError(
                f"{self._path}: {error.strerror}",
                hint="the store's directory must exist and be writable",
                errno=error.errno,
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            store = self._path.removesuffix(".run.lock")
            raise StoreBusy(
                f"another `sustain run` on this host has {store}",
                hint=f"see {store}.run.json, or use another path",
            ) from error

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


__all__ = ["Role", "Supervisor", "Workload"]
