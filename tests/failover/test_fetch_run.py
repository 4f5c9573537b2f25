"""A host without a copy takes a workload over, and its command runs while the pages are still with another host."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain._native import Control, arrival_of
from tests.failover.conftest import Cluster, Host, free_ports, until


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[tuple[Host, Host, int]]:
    """A host, a later one that has nothing, and the port of a keeper that only receives."""
    cluster = Cluster(tmp_path, 0)
    first, later, port = free_ports(3)
    a, c = Host(cluster, "a", first), Host(cluster, "c", later)
    cluster.hosts = [a]
    words = [sys.executable, "-m", "sustain.cli", "receive", "--store", str(tmp_path / "kept.sus")]
    with (tmp_path / "keeper.txt").open("ab") as output:
        keeper = subprocess.Popen(
            [*words, "--listen", f"127.0.0.1:{port}"], stdout=output, stderr=output, start_new_session=True
        )
    yield a, c, port
    cluster.hosts = [a, c]
    cluster.end()
    keeper.kill()
    keeper.wait()


def begin(a: Host, port: int, *app: str) -> None:
    a.start(*app, options=("--create", "--peer", f"tcp://127.0.0.1:{port}")).becomes("primary")
    until(lambda: a.said("acked") or len(a.said("commit")) > 50, f"it works\n{a.output()}")


def wholly_here(host: Host) -> bool:
    return arrival_of(str(host.store)) is None


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_it_takes_over_at_once_and_has_everything_in_the_end(parts: tuple[Host, Host, int], how: str) -> None:
    a, c, port = parts
    begin(a, port, "--wait")
    if how == "stopped":
        assert a.stop() == 0
    else:
        a.signal_all(signal.SIGKILL)
    acked = max(entry["n"] for entry in a.said("acked"))
    c.start(options=("--fetch-from", f"tcp://127.0.0.1:{port}"))
    until(lambda: c.said("commit"), f"c commits\n{c.output()}")
    started = c.said("start")[0]
    assert started["n"] >= acked, "what was acknowledged is missing"
    assert c.said("commit")[0]["epoch"] == 3
    until(lambda: wholly_here(c), f"every page arrives\n{c.output()}")
    control = Control(str(c.store))
    try:
        assert not control.superblock()["arriving"]
        assert control.superblock()["history"][-1][0] == 3
    finally:
        control.close()
    # Killed and started again, it is an ordinary store.
    c.signal_all(signal.SIGKILL)
    c.start(options=("--fetch-from", f"tcp://127.0.0.1:{port}"))
    until(lambda: len(c.said("start")) == 2, f"it starts again\n{c.output()}")
    assert c.said("start")[1]["n"] >= c.said("start")[0]["n"]
    assert c.stop() == 0


def test_a_source_that_is_not_there_is_an_error_and_the_lease_is_given_back(
    parts: tuple[Host, Host, int],
) -> None:
    a, c, port = parts
    begin(a, port)
    assert a.stop() == 0
    (closed,) = free_ports(1)
    c.start(options=("--fetch-from", f"tcp://127.0.0.1:{closed}", "--arrival-timeout", "500ms"))
    until(lambda: "cannot be reached" in c.output(), f"it says so\n{c.output()}")
    until(lambda: c.state().get("lease_state") == "released", "the lease is free again")
    assert not c.store.exists()
    assert not c.said("start")
