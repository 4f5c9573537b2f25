"""What a supervisor sees of parts that change while it looks."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import sustain
from sustain.clock import SystemClock
from sustain.failover import runfile
from sustain.failover.custodian.store import NewStore, StoreCustodian
from sustain.failover.lease import open_lease
from sustain.failover.lease.worker import LeaseStatus
from sustain.failover.supervise import Supervisor, Workload
from sustain.failover.types import DestinationView, Policy, StoreView
from sustain.replication.credentials import NO_FILES
from sustain.units import to_ns
from tests.replication.conftest import until

Kind = TypeVar("Kind", bound=StoreCustodian)
POLICY = Policy(name="a", instance="a1", ttl_ns=to_ns(3), peers=1)


class Meanwhile(StoreCustodian):
    """Something happens when the store has been looked at."""

    then: Callable[[], object] = staticmethod(lambda: None)

    def look(self) -> tuple[StoreView | None, tuple[DestinationView, ...]]:
        found = super().look()
        self.then()
        return found


def kept(kind: type[Kind], path: str, clock: SystemClock) -> Kind:
    """The custodian of a new store at `path`."""
    sustain.create(path, size="2MiB", log_size="2MiB", durability="memory").close()
    new = NewStore(2 << 20, 2 << 20, "memory")
    return kind(path, "a", clock, new=new, listen="127.0.0.1:0", peers=(), files=NO_FILES)


def test_what_has_ended_is_seen_with_all_that_it_did(tmp_path: Path) -> None:
    """Else a store that was just promoted would look as if it still had to be, and one whose command has ended as if
    its last commit had never been."""
    path, clock = str(tmp_path / "app.sus"), SystemClock()
    custodian = kept(Meanwhile, path, clock)
    url = f"file://{tmp_path}/lease"
    workload = Workload(("true",), url, None, ())
    supervisor = Supervisor(workload, POLICY, custodian, open_lease(url, "a1", clock, 3.0), clock)
    promoted = threading.Event()

    def wait() -> None:
        promoted.wait()

    preparation, command = supervisor._preparation, supervisor._command
    preparation.start(wait)
    command.start(["sleep", "600"], os.environ)

    def both_end() -> None:
        promoted.set()
        command.stop(kill_at_ns=0)
        until(lambda: not preparation.running and not command.view().running, "both end")

    try:
        custodian.then = both_end
        seen = supervisor._observe(*supervisor._worker.status())
        assert seen.preparing
        assert seen.command.running
        custodian.then = lambda: None
        seen = supervisor._observe(*supervisor._worker.status())
        assert not seen.preparing
        assert not seen.command.running
    finally:
        both_end()
        custodian.close()


class Reporting(Supervisor):
    """What the next supervisor would read while this one writes its report, which may take long."""

    then_noted: dict[str, Any] | None = None

    def _report(self, epoch: int, status: LeaseStatus) -> None:
        self.then_noted = runfile.read(self._custodian.path)
        super()._report(epoch, status)


def test_who_was_started_is_known_before_anything_slow_is_done(tmp_path: Path) -> None:
    """Else a supervisor that is killed then leaves a command behind which the next one does not dare to end."""
    path, clock = str(tmp_path / "app.sus"), SystemClock()
    custodian = kept(StoreCustodian, path, clock)
    (tmp_path / "lease").mkdir()
    url = f"file://{tmp_path}/lease"
    policy = Policy(name="a", instance="a1", ttl_ns=to_ns(3), peers=0)
    supervisor = Reporting(
        Workload(("sleep", "1"), url, "127.0.0.1:0", ()),
        policy,
        custodian,
        open_lease(url, "a1", clock, 3.0),
        clock,
    )
    try:
        assert supervisor.run() == 0
    finally:
        custodian.close()
    noted = supervisor.then_noted
    assert noted is not None
    pid, start_ticks = noted["command_process"]
    assert pid == noted["command_pid"]
    assert start_ticks > 0
    assert noted["role"] == "primary"
