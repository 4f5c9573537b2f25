"""`sustain handover` with real processes: it moves the workload, loses and refuses nothing, and leaves things as they
are when it cannot be done. Everything of either side is killed at each step.

The oracle is outside, as in `test_run`: what the command wrote down after each commit that was confirmed.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sustain.clock import SystemClock
from sustain.failover.lease import HandoverRequest, LeaseState, RequestState, open_lease
from tests.failover.conftest import LEASES, Cluster, Host, until
from tests.failover.test_run import begin, commits_in, nothing_acknowledged_is_lost, one_primary_at_a_time


def handover(*words: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "sustain.cli", "handover", *words]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=90)
    assert "Traceback" not in err
    return process.returncode, out, err


def moved(*words: str) -> dict[str, Any]:
    status, out, err = ended(handover("--json", *words))
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def looked_at(cluster: Cluster) -> tuple[LeaseState, HandoverRequest | None]:
    lease = open_lease(cluster.lease_url, "test", SystemClock(), 3.0)
    try:
        view, _, request = lease.look()
        return view.record.state, request
    finally:
        lease.close()


def nothing_was_lost_or_refused(cluster: Cluster) -> None:
    """Each command began with all that the one before had committed, and none was refused a commit."""
    last = 0
    for entry in sorted(
        (*cluster.all_said("start"), *cluster.all_said("commit")), key=lambda each: each["ns"]
    ):
        if entry["what"] == "start":
            # SIGTERM may come between a commit and the line that says so.
            assert last <= entry["n"] <= last + 1, f"{entry} after {last}"
        last = entry["n"]
    assert not cluster.all_said("refused")
    one_primary_at_a_time(cluster)


@LEASES
def test_it_moves_a_workload_and_back_and_loses_and_refuses_nothing(pair: Cluster) -> None:
    a, b = begin(pair)
    found = moved(pair.lease_url, "--to", "b")
    assert (found["from"], found["to"], found["old_epoch"], found["epoch"]) == ("a", "b", 2, 3)
    last, first = a.said("commit")[-1], b.said("commit")[0]
    assert found["pause_s"] >= (first["ns"] - last["ns"]) / 1e9 - 0.02, "it says less than it was"
    assert found["pause_s"] == pytest.approx(sum(found["parts"].values()))
    assert all(part >= 0 for part in found["parts"].values())
    report = json.loads((b.dir / "takeover-3-b.json").read_text())
    assert (report["complete"], report["held_position"]) == (True, found["position"])
    assert report["old_reason"] == "handed over to b as asked"
    # And back, from a host by its store; whoever holds most.
    a.becomes("standby")
    pair.replicated(b, a)
    status, out, err = ended(handover(str(b.store)))
    assert status == 0, err
    assert "to a, epoch 4, from b, epoch 3" in out
    assert "the command's end" in out
    nothing_was_lost_or_refused(pair)
    assert looked_at(pair)[1].state is RequestState.DONE  # type: ignore[union-attr]
    for host in (a, b):
        assert host.stop() == 0
        assert "Traceback" not in host.output()


def test_of_three_hosts_the_named_one_has_it(clusters: Any) -> None:
    cluster = clusters(3)
    a = cluster[0].start(options=("--create",)).becomes("primary")
    b, c = cluster[1].start(), cluster[2].start()
    for host in (b, c):
        cluster.replicated(a, host)
    assert moved(cluster.lease_url, "--to", "c")["to"] == "c"
    assert not b.said("start")
    nothing_was_lost_or_refused(cluster)


def test_where_it_cannot_be_done_it_says_why_and_changes_nothing(pair: Cluster) -> None:
    a = pair[0].start(options=("--create",)).becomes("primary")
    for words, said in (
        ((pair.lease_url,), "no standby has been heard of"),
        ((pair.lease_url, "--to", "nobody"), "no standby has been heard of"),
        ((pair.lease_url, "--to", "a"), "a has the workload already"),
    ):
        status, out, err = ended(handover(*words))
        assert (status, out, said in err) == (1, "", True), err
        assert "\nhint: " in err
    # One that does not receive is behind, more and more.
    b = pair[1].start()
    pair.replicated(a, b)
    (receiver,) = b.pids("receiver")
    os.kill(receiver, signal.SIGSTOP)
    number = len(a.said("commit"))
    (shipper,) = a.pids("shipper")
    os.kill(shipper, signal.SIGSTOP)
    until(lambda: len(a.said("commit")) > number + 5, "a goes on")
    os.kill(shipper, signal.SIGKILL)  # its successor finds nobody who answers
    until(lambda: a.pids("shipper") not in ([], [shipper]), f"a new shipper\n{a.output()}")
    status, _, err = ended(handover(pair.lease_url, "--to", "b", "--limit", "1s"))
    assert status == 1
    assert any(why in err for why in ("b lacks", "not known how much b lacks", "b acknowledges nothing")), err
    os.kill(receiver, signal.SIGCONT)
    assert len({entry["pid"] for entry in a.said("commit")}) == 1, "the command was touched"
    assert a.state()["role"] == "primary"
    assert looked_at(pair)[1].state in (RequestState.REFUSED, RequestState.CALLED_OFF)  # type: ignore[union-attr]


def test_a_primary_that_does_not_answer_has_the_request_withdrawn(pair: Cluster) -> None:
    # The lease lasts long enough for the signal to come first, also on a busy machine.
    a = pair[0].start(options=("--create", "--ttl", "12s")).becomes("primary")
    a.signal_all(signal.SIGKILL)
    impatient = handover(pair.lease_url)
    until(lambda: looked_at(pair)[1] is not None, "it is asked")
    impatient.send_signal(signal.SIGINT)
    status, _, err = ended(impatient)
    assert status == 130, err
    assert looked_at(pair)[1].state is RequestState.WITHDRAWN  # type: ignore[union-attr]
    status, _, err = ended(handover(pair.lease_url, "--limit", "60s"))
    assert status == 1
    assert "a does not answer" in err
    assert "does not renew its lease" in err
    assert looked_at(pair)[1].state is RequestState.WITHDRAWN  # type: ignore[union-attr]
    # It returns, in a new epoch, and nothing is asked of it.
    a.start().becomes("primary")
    until(lambda: commits_in(a, 3), "a commits")


def test_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    for words, status, said in (
        ((f"file://{tmp_path}/lease",), 1, "no such workload"),
        ((f"file://{tmp_path}/none",), 1, "cannot read the lease"),
        ((str(tmp_path / "store"),), 1, "no `sustain run` has it"),
        (("zk://host",), 1, "no such workload"),
        (("etcd://127.0.0.1:1/x",), 1, "connection refused"),
        ((f"file://{tmp_path}/lease", "--limit", "0s"), 2, "--limit"),
    ):
        found, out, err = ended(handover(*words))
        assert (found, out, said in err) == (status, "", True), err
        assert "\nhint: " in err


# killed at each step


def _released(pair: Cluster) -> bool:
    return looked_at(pair)[0] in (LeaseState.RELEASED, LeaseState.CLAIMED)


def _stopping(pair: Cluster) -> bool:
    return pair[0].state()["role"] == "stopping"


STEPS = {"stopping": _stopping, "released": _released}


# Before that release the old primary's end is as any other.
@pytest.mark.parametrize(("victim", "step"), [("old", "released"), ("new", "stopping"), ("new", "released")])
def test_killed_at_each_step_nothing_is_lost_and_there_is_one_primary(
    pair: Cluster, victim: str, step: str
) -> None:
    a, b = begin(pair, "--wait")
    until(lambda: a.said("acked"), "a commit is acknowledged")
    request = handover(pair.lease_url, "--to", "b")
    until(lambda: STEPS[step](pair) or request.poll() is not None, f"{step}\n{a.output()}")
    (a if victim == "old" else b).signal_all(signal.SIGKILL)
    survivor: Host = b if victim == "old" else a
    killed_ns = pair.all_said("commit")[-1]["ns"]
    until(
        lambda: any(entry["ns"] > killed_ns for entry in survivor.said("commit")),
        f"{survivor.name} commits\n{a.output()}\n{b.output()}",
    )
    status, _, err = ended(request)
    if victim == "new" and not (status == 0 and b.said("commit")):  # unless it had it before it was killed
        assert status == 1
        assert "a has it again" in err or "a keeps the workload" in err, err
    nothing_acknowledged_is_lost(pair)
    one_primary_at_a_time(pair)
