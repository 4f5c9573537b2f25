"""`sustain run`: looks, lets `decide` decide, and does it.

Used by `cli.run`. One thread, one loop: observe, decide, act, then sleep until the moment that the plan
names or until something happens (a child ended, a signal came, the lease changed). Whatever may block for
long has a thread of its own: the lease store (`LeaseWorker`) and opening the store in a new epoch
(`_Preparation`), so that renewing and self-fencing go on meanwhile.

The lease's deadline is written into the store's control words after every renewal; the engine refuses
commits past it. So even if this process dies, hangs or is stopped, its command cannot commit once another
host may.
"""

import os
import signal
import sys
from dataclasses import dataclass
from types import FrameType

from sustain.clock import Clock
from sustain.errors import LeaseUnavailable, SustainError
from sustain.failover import report, runfile
from sustain.failover.completion import Completion
from sustain.failover.custodian import Custodian
from sustain.failover.custodian.base import Opened
from sustain.failover.decide import decide
from sustain.failover.door import Door
from sustain.failover.journal import Journal
from sustain.failover.lease import Lease, LeaseState
from sustain.failover.lease.worker import LeaseStatus, LeaseWorker
from sustain.failover.loop import Bell, Preparation, exclusive
from sustain.failover.outage_report import OutageReport
from sustain.failover.power import PowerWatch, Watching
from sustain.failover.process import Child
from sustain.failover.shed import Shedder
from sustain.failover.timing import Stopwatch
from sustain.failover.types import (
    Action,
    Announce,
    AnswerRequest,
    CloseEpoch,
    CreateStore,
    Evacuate,
    Exit,
    FetchStore,
    ForgetLease,
    Observation,
    Plan,
    Policy,
    PowerView,
    Promote,
    ReadyForPowerOff,
    ReleaseLease,
    Renew,
    ResumeLease,
    Role,
    SetAside,
    Shed,
    StartCommand,
    StartFetcher,
    StartReceiver,
    StartShipper,
    State,
    StopCommand,
    StopFetcher,
    StopReceiver,
    StopShipper,
    Thaw,
    TryAcquire,
)
from sustain.host.processes import boot_id
from sustain.powerfail.sources import PowerSource
from sustain.replication.credentials import NO_FILES, CredentialFiles
from sustain.units import format_duration, to_ns

_LEASE_PAUSE_NS = to_ns(0.25)  # between two readings while nobody answers at the start
_REPORT_EVERY_NS = to_ns(1.0)  # while an outage's work goes on


@dataclass(frozen=True, slots=True)
class Workload:
    """What to run and with what."""

    command: tuple[str, ...]
    lease_url: str
    listen: str | None
    peers: tuple[str, ...]
    files: CredentialFiles = NO_FILES
    report_dir: str = ""
    event_log: str | None = None
    lease_wait_s: float = 0.0  # at the start, for a lease store that does not answer
    sheds: tuple[str, ...] = ()  # shell commands, carried out in this order when the power fails


class Supervisor:
    """One host's supervisor of one workload."""

    def __init__(
        self,
        workload: Workload,
        policy: Policy,
        custodian: Custodian,
        lease: Lease,
        clock: Clock,
        power: tuple[PowerSource, Watching] | None = None,
    ) -> None:
        self._workload = workload
        self._policy = policy
        self._custodian = custodian
        self._lease = lease
        self._clock = clock
        self._journal = Journal(policy.name, workload.event_log, clock)
        self._bell = Bell()
        self._worker = LeaseWorker(lease, clock, policy.name, policy.instance, self._bell.ring)
        self._command, self._shipper, self._receiver = Child(clock), Child(clock), Child(clock)
        self._fetcher = Child(clock)
        self._door = Door(
            custodian.path,
            workload.listen if custodian.has_door else None,
            workload.files,
            tell=self._journal.tell,
            fenced=self._bell.ring,
        )
        self._preparation = Preparation(self._bell.ring)
        self._stopwatch = Stopwatch(policy.name, clock, custodian.last_commit_ns, self._worker.amend)
        self._shedder = Shedder(workload.sheds, tell=self._journal.tell, wake=self._bell.ring)
        self._power: PowerWatch | None = None
        if power is not None:
            source, watching = power
            self._power = PowerWatch(source, watching, clock, wake=self._bell.ring, tell=self._journal.tell)
        self._state = State()
        self._stop_requested = False
        self._exit: Exit | None = None
        self._taken: report.Taken | None = None
        self._completion = Completion(custodian.path, self._report_dir, clock, self._journal.tell)
        self._run_entry: dict[str, object] = {}
        self._reported_ns = 0
        self._boot_id = boot_id()

    def run(self) -> int:
        """Until the work is finished or a signal ends it; the exit status.

        Raises StoreBusy when another supervisor or a stranger has the store, LeaseError when the lease store cannot
        be read at the start (LeaseUnavailable only after `Workload.lease_wait_s`), StoreError for a store that nobody
        could use.
        """
        with exclusive(f"{self._custodian.path}.run.lock"):
            wait_until_ns = self._clock.boottime_ns() + to_ns(self._workload.lease_wait_s)
            # A wrong lease is said now, not after the first failure.
            answers = self._lease_answers(wait_until_ns)
            runfile.end_leftovers(self._custodian.path, self._boot_id, self._journal.tell)
            while not answers:
                self._bell.wait(self._clock.boottime_ns() + _LEASE_PAUSE_NS, self._clock)
                answers = self._lease_answers(wait_until_ns)
            self._bell.listen(self._on_signal)
            self._worker.start()
            if self._power is not None:
                self._power.start()
            try:
                while self._exit is None:
                    self._bell.wait(self._step(), self._clock)
            finally:
                self._end()
        if self._exit.status:
            raise SustainError(self._exit.reason, hint=self._exit.hint)
        return 0

    def _lease_answers(self, wait_until_ns: int) -> bool:
        """Read the lease; False when nobody answers, as while other hosts still start. Raises LeaseError."""
        try:
            self._lease.read()
        except LeaseUnavailable as error:
            if self._clock.boottime_ns() >= wait_until_ns:
                raise
            limit = format_duration(self._workload.lease_wait_s)
            self._journal.once(
                "lease-start", f"{error}; it is tried again, for {limit} at most ({error.hint})"
            )
            return False
        return True

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
            # Should this supervisor be killed, the next one must know whom it has started. What else has changed is
            # said when all of it is done.
            if self._run_entry:
                self._write_run_file(self._run_entry | self._processes())
        self._write_run_file(self._run_entry_of(plan, status, seen))
        for action in plan.actions:
            if isinstance(action, StartCommand) and action.first:
                self._report(action.epoch, status)
        self._mind_the_power(plan, before, seen)
        for completed, path in self._completion.look():
            self._journal.completed(completed, path)
        self._write_run_file(self._run_entry_of(plan, status, seen))
        return min(plan.wake_ns, self._stopwatch.see(plan, seen))

    def _observe(self, status: LeaseStatus, busy: bool) -> Observation:
        # Who changes the store is looked at before it: of one that has ended, all that it did is seen then.
        preparing, prepare_error = self._preparation.running, self._preparation.error
        command, receiver = self._command.view(), self._receiver.view()
        shipper, fetcher = self._shipper.view(), self._fetcher.view()
        store, destinations = self._custodian.look()
        grant = status.grant
        if grant is not None and store is not None and store.log_epoch == grant.epoch and not status.lost:
            self._custodian.set_deadline(grant)
        power = None if self._power is None else self._power.view(self._clock.boottime_ns())
        try:
            self._custodian.set_power(power)
        except SustainError as error:
            # A full disk beside a region must not end its workload; it is tried again.
            self._journal.once("power-file", str(error))
        return Observation(
            lease=status.view,
            lease_error=status.error,
            lease_error_ns=status.error_ns,
            lease_busy=busy,
            grant=status.grant,
            grant_lost=status.lost,
            candidates=status.candidates,
            request=status.request,
            store=store,
            preparing=preparing,
            prepare_error=prepare_error,
            command=command,
            receiver=receiver,
            shipper=shipper,
            fetcher=fetcher,
            destinations=destinations,
            stop_requested=self._stop_requested,
            power=power,
            shed_done=self._shedder.done,
        )

    def _mind_the_power(self, plan: Plan, before: State, seen: Observation) -> None:
        """What a power source is told, and what an outage leaves behind in writing."""
        if self._power is None or seen.power is None:
            return
        self._power.set_ready(any(isinstance(action, ReadyForPowerOff) for action in plan.actions))
        if not seen.power.fails:
            self._shedder.rearm()
        outage, now_ns = plan.state.outage, self._clock.boottime_ns()
        if outage is None:
            return
        goes_on = outage.done_ns == 0 and now_ns - self._reported_ns >= _REPORT_EVERY_NS
        if outage != before.outage or goes_on:
            self._reported_ns = now_ns
            self._report_outage(plan, seen, seen.power)

    def _report_outage(self, plan: Plan, seen: Observation, power: PowerView) -> None:
        outage = plan.state.outage
        assert outage is not None
        end = outage.end if outage.end is not None or seen.store is None else seen.store.end
        found = OutageReport(
            self._policy.name,
            self._custodian.path,
            outage,
            power,
            end,
            seen.destinations,
            self._clock.boottime_ns(),
            self._clock.realtime_ns(),
        )
        try:
            path = found.save(self._report_dir)
        except OSError as error:
            self._journal.tell(f"the outage's report cannot be written: {error}")
            path = ""
        self._journal.outage(found, path)

    @property
    def _report_dir(self) -> str:
        return self._workload.report_dir or os.path.dirname(self._custodian.path)

    def _act(self, action: Action, status: LeaseStatus, seen: Observation) -> None:
        if not self._act_on_lease(action, status, seen) and not self._act_on_parts(action, status, seen):
            raise AssertionError(f"unknown action {action}")

    def _act_on_lease(self, action: Action, status: LeaseStatus, seen: Observation) -> bool:  # noqa: PLR0912
        """What changes the owner record; False when it is something else."""
        worker, grant = self._worker, status.grant
        match action:
            case TryAcquire():
                if status.view is not None:
                    self._taken = report.Taken(status.view, self._clock.boottime_ns())
                    self._preparation.error = ""
                    worker.acquire(status.view, self._policy.ttl_ns / 1e9, action.at_least_epoch)
            case Renew():
                if grant is not None:
                    worker.renew(grant, action.store_uuid, action.state)
            case ResumeLease():
                if grant is not None:
                    self._taken = None  # from nobody
                    self._preparation.error = ""
                    worker.resume(grant, action.at_least_epoch)
            case ReleaseLease():
                if grant is not None:
                    if seen.store is not None and seen.store.log_epoch == grant.epoch:
                        self._custodian.close_epoch(grant.epoch)
                    worker.release(grant, action.state, action.position, action.reason, action.successor)
            case AnswerRequest():
                worker.amend(action.id, action.amended)
            case ForgetLease():
                worker.forget()
            case Announce():
                worker.announce(action.rank, action.usable, action.round, str(self._state.role))
            case _:
                return False
        return True

    def _act_on_parts(self, action: Action, status: LeaseStatus, seen: Observation) -> bool:  # noqa: PLR0912
        """What starts, ends and changes things on this host; False when it is something else."""
        match action:
            case Evacuate():
                self._custodian.evacuate(self._shipper.identity)
            case Thaw():
                self._custodian.thaw(self._shipper.identity, self._command.identity)
            case CloseEpoch():
                self._custodian.close_epoch(action.epoch)
            case Shed():
                self._shedder.start()
            case ReadyForPowerOff():
                pass  # see _mind_the_power
            case CreateStore():
                self._preparation.start(self._custodian.create)
            case FetchStore():
                self._preparation.start(lambda: self._fetch(action))
            case StartFetcher():
                self._start_part(self._fetcher, self._custodian.fetcher())
            case StopFetcher():
                self._fetcher.stop(action.kill_at_ns)
            case SetAside():
                self._journal.tell(f"the empty store is kept as {self._custodian.set_aside()}")
            case Promote():
                self._preparation.start(lambda: self._promote(action.epoch))
            case StartCommand():
                self._start_command(action)
            case StopCommand():
                self._command.stop(action.kill_at_ns)
            case StartShipper():
                self._start_shipper(status, seen)
            case StopShipper():
                self._door.close()
                self._shipper.stop(action.kill_at_ns)
            case StartReceiver():
                self._door.close()
                self._start_part(self._receiver, self._custodian.receiver())
            case StopReceiver():
                self._receiver.stop(action.kill_at_ns)
            case Exit():
                self._exit = action
            case _:
                return False
        return True

    def _start_shipper(self, status: LeaseStatus, seen: Observation) -> None:
        command = self._command.identity
        epoch = seen.store.log_epoch if seen.store is not None else 0
        self._start_part(
            self._shipper, self._custodian.shipper(epoch, None if command is None else command.pid)
        )
        if status.grant is not None:
            self._door.open(status.grant.epoch)

    def _promote(self, epoch: int) -> None:
        """In a thread."""
        self._opened(self._custodian.promote(epoch, lambda: self._still_ours(epoch)))

    def _fetch(self, asked: FetchStore) -> None:
        """In a thread."""
        ours = lambda: self._still_ours(asked.epoch)  # noqa: E731
        self._opened(self._custodian.fetch(asked.epoch, asked.store_uuid, asked.at_least, ours))

    def _opened(self, opened: Opened) -> None:
        if self._taken is not None:
            self._taken.promoted(self._clock.boottime_ns(), opened)

    def _still_ours(self, epoch: int) -> bool:
        grant = self._worker.status()[0].grant
        in_time = grant is not None and self._clock.boottime_ns() < grant.deadline_ns
        return in_time and grant is not None and grant.epoch == epoch

    def _start_command(self, action: StartCommand) -> None:
        env = {
            **os.environ,
            **self._custodian.environment(),
            "SUSTAIN_NAME": self._policy.name,
            "SUSTAIN_EPOCH": str(action.epoch),
        }
        try:
            self._command.start(self._workload.command, env)
        except OSError as error:
            self._journal.tell(f"the command cannot be started: {error}")
        if self._custodian.follows_command:
            self._shipper.stop(self._clock.boottime_ns())  # started again, with the new command

    def _start_part(self, child: Child, words: list[str]) -> None:
        argv = [sys.executable, "-m", "sustain.cli", *words]
        try:
            child.start(argv, os.environ, stdout=sys.stderr.fileno())
        except OSError as error:
            self._journal.tell(f"`sustain {words[0]}` cannot be started: {error}")

    def _report(self, epoch: int, status: LeaseStatus) -> None:
        taken, grant = self._taken, status.grant
        if taken is None or taken.view.record.state is LeaseState.ABSENT or grant is None:
            return  # the very first start takes over from nobody
        kind = "region" if self._policy.freezes else "store"
        found = taken.report(self._policy.name, self._custodian.path, epoch, self._clock, kind)
        try:
            path = report.save(found, self._report_dir)
        except OSError as error:
            self._journal.tell(f"the takeover's report cannot be written: {error}")
            path = ""
        self._journal.takeover(found, path)
        self._completion.due()

    def _processes(self) -> dict[str, object]:
        """Whom it has started, as the run file has it."""
        command = self._command.identity
        return {
            "command_pid": None if command is None else command.pid,
            "command_process": command,
            "shipper_process": self._shipper.identity,
            "receiver_process": self._receiver.identity,
            "fetcher_process": self._fetcher.identity,
        }

    def _run_entry_of(self, plan: Plan, status: LeaseStatus, seen: Observation) -> dict[str, object]:
        record = None if status.view is None else status.view.record
        if status.grant is not None:
            record = status.grant.record
        return {
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
            "restarts": len(plan.state.crashes),
            "waiting_for": plan.note,
            "peers": list(self._workload.peers),
            "listen": self._workload.listen,
            "power": None if seen.power is None else str(seen.power.power),
            "power_reason": None if seen.power is None else seen.power.reason.partition(" for ")[0],
            "outage": None if plan.state.outage is None else plan.state.outage.outcome,
            **self._processes(),
        }

    def _write_run_file(self, entry: dict[str, object]) -> None:
        if entry != self._run_entry:
            self._run_entry = entry
            try:
                runfile.write(self._custodian.path, entry)
            except OSError as error:
                self._journal.tell(f"{runfile.path_of(self._custodian.path)} cannot be written: {error}")

    def _end(self) -> None:
        """After the last step, and when the supervisor itself has failed: nothing of it may be left."""
        self._door.close()
        for child in (self._command, self._shipper, self._receiver, self._fetcher):
            while child.view().running:
                child.stop(self._clock.boottime_ns())
                self._bell.wait(self._clock.boottime_ns() + 50_000_000, self._clock)
        if self._power is not None:
            self._power.set_ready(True)
            self._power.stop(2.0)
        if not self._worker.stop(2.0):
            self._journal.tell("the lease store does not answer; leaving all the same")
        self._lease.close()
        status, busy = self._worker.status()
        plan = Plan((), self._state, 0, 0, "" if self._exit is None else self._exit.reason)
        self._write_run_file(self._run_entry_of(plan, status, self._observe(status, busy)))
        self._custodian.close()
        self._bell.close()
        self._journal.close()


__all__ = ["Role", "Supervisor", "Workload"]
