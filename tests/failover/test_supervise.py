"""What a supervisor sees of parts that change while it looks."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import sustain
from sustain.clock import SystemClock
from sustain.failover.custodian.store import NewStore, StoreCustodian
from sustain.failover.lease import open_lease
from sustain.failover.supervise import Supervisor, Workload
from sustain.failover.types import DestinationView, Policy, StoreView
from sustain.replication.credentials import NO_FILES
from sustain.units import to_ns
from tests.replication.conftest import until

POLICY = Policy(name="a", instance="a1", ttl_ns=to_ns(3), peers=1)


class Meanwhile(StoreCustodian):
    """Something happens when the store has been looked at."""

    then: Callable[[], object] = staticmethod(lambda: None)

    def look(self) -> tuple[StoreView | None, tuple[DestinationView, ...]]:
        found = super().look()
        self.then()
        return found


def test_what_has_ended_is_seen_with_all_that_it_did(tmp_path: Path) -> None:
    """Else a store that was just promoted would look as if it still had to be, and one whose command has ended as if
    its last commit had never been."""
    path, clock = str(tmp_path / "app.sus"), SystemClock()
    sustain.create(path, size="2MiB", log_size="2MiB", durability="memory").close()
    custodian = Meanwhile(
        path,
        "a",
        clock,
        new=NewStore(2 << 20, 2 << 20, "memory"),
        listen=None,
        peers=(),
        files=NO_FILES,
    )
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
