"""A SQLite application under `sustain run`: killed with its host, taken over, and back again."""

import signal
from functools import partial
from pathlib import Path

from tests.crash.processes import rounds
from tests.failover.conftest import Cluster, Host, until
from tests.failover.test_run import nothing_acknowledged_is_lost, one_primary_at_a_time

APP = Path(__file__).with_name("sqlite_app.py")


def has_said(host: Host, what: str, times: int, epoch: int) -> bool:
    """Whether its application has said that so often, in that epoch or a later one."""
    return sum(1 for entry in host.said(what) if entry["epoch"] >= epoch) >= times


def test_an_application_goes_from_host_to_host(pair: Cluster) -> None:
    primary = pair[0].start(options=("--create",), program=APP).becomes("primary")
    standby = pair[1].start(program=APP)
    pair.replicated(primary, standby)
    epoch = 2
    for _ in range(rounds(2)):
        until(
            partial(has_said, primary, "acked", 20, epoch), f"copies\n{primary.output()}\n{standby.output()}"
        )
        primary.signal_all(signal.SIGKILL)
        until(
            partial(has_said, standby, "commit", 1, epoch + 1),
            lambda standby=standby: f"it goes on\n{standby.output()}",
        )
        one_primary_at_a_time(pair)
        nothing_acknowledged_is_lost(pair)
        primary.start(program=APP)
        pair.replicated(standby, primary)
        epoch = standby.said("commit")[-1]["epoch"]
        primary, standby = standby, primary
    assert primary.stop() == 0
