"""What a takeover's report says was lost, against what the application had really committed.

The oracle is the old primary's own store, copied before it comes back and opened apart, and what its command wrote
down. The tail is made by stopping the shipper alone: the application goes on committing, nothing more gets away.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sustain
from sustain._native import Control
from sustain.failover.completion import Completion
from sustain.failover.report import Takeover
from sustain.replication.tails import find
from sustain.testing.clock import FakeClock
from tests.failover.conftest import Cluster, Host, until
from tests.failover.test_run import begin, commits_in
from tests.replication.test_processes import stands_still

ALONE = 40  # commits that nobody else gets


@dataclass(frozen=True)
class Oracle:
    """What a store really held when its host died."""

    commits: int  # as the application counts them
    position: int


def commit_alone(host: Host) -> None:
    """Its shipper stands still, and its command goes on; then all of it dies at once."""
    (shipper,) = host.pids("shipper")
    os.kill(shipper, signal.SIGSTOP)
    before = len(host.said("commit"))
    until(lambda: len(host.said("commit")) >= before + ALONE, f"commits that stay here\n{host.output()}")
    host.signal_all(signal.SIGKILL)


def really_held(host: Host) -> Oracle:
    copy = host.dir / "copy.sus"
    shutil.copy(host.store, copy)
    with sustain.open(str(copy)) as store:
        held = Oracle(int(store.map("counts")[b"n"]), store.position)
    copy.unlink()
    said = [entry["n"] for entry in host.said("commit")]
    assert max(said) in (held.commits, held.commits - 1)  # it may have died before it wrote that down
    return held


def report_of(host: Host, epoch: int) -> dict[str, Any]:
    path = host.dir / f"takeover-{epoch}-{host.name}.json"
    if not path.exists():
        return {}
    data = json.loads(path.read_text())
    assert isinstance(data, dict)
    return data


def completed(host: Host, epoch: int) -> dict[str, Any]:
    found = until(
        lambda: (data := report_of(host, epoch)).get("state") == "complete" and data,
        f"the report of epoch {epoch} on {host.name} is complete\n{host.output()}",
    )
    assert isinstance(found, dict)
    return found


def exactly(report: dict[str, Any], oracle: Oracle, began_with: int) -> None:
    lost = report["lost"]
    assert lost["start"] == report["start_position"]
    assert lost["end"] == oracle.position
    assert lost["bytes"] == report["missing_bytes"] == oracle.position - report["start_position"]
    assert lost["commits"] == oracle.commits - began_with
    assert report["uncertain"] == []


def test_what_was_lost_is_known_exactly_when_the_old_primary_returns(pair: Cluster) -> None:
    a, b = begin(pair)
    commit_alone(a)
    until(lambda: commits_in(b, 3), f"b commits\n{b.output()}")
    before = report_of(b, 3)
    assert before["state"] == "open"
    assert before["lost"]["bytes"] is before["lost"]["commits"] is before["missing_bytes"] is None
    assert before["uncertain"]
    oracle = really_held(a)

    a.start().becomes("standby")
    report = completed(b, 3)
    exactly(report, oracle, b.said("start")[0]["n"])
    assert report["lost"]["commits"] >= ALONE
    assert report["complete"] is False
    assert report["lost"]["kept_bytes"] == report["lost"]["bytes"]
    text = (b.dir / "takeover-3-b.txt").read_text()
    assert f"{report['lost']['commits']} commits" in text
    assert "not certain" not in text
    until(lambda: any(event["event"] == "takeover-report" for event in b.events()), "it is told")
    (tail,) = find(str(a.store))
    assert (tail.whole, len(tail.commits), tail.end) == (True, report["lost"]["commits"], oracle.position)
    kept = tail.as_dict()
    assert kept["seconds"] == report["lost"]["seconds"]
    assert 0 < kept["seconds"] < 60

    # And back: everything had been shipped, which is unknown until b says so, and never called zero before.
    pair.replicated(b, a)
    stop_between_commits(b)
    until(lambda: holds_all(b, a), "a holds all that b has")
    b.signal_all(signal.SIGKILL)
    until(lambda: commits_in(a, 4), f"a commits\n{a.output()}")
    epoch = max(entry["epoch"] for entry in a.said("commit"))
    assert report_of(a, epoch)["missing_bytes"] is None
    assert report_of(a, epoch)["complete"] is None
    b.start().becomes("standby")
    report = completed(a, epoch)
    lost = report["lost"]
    assert (lost["bytes"], lost["commits"], lost["seconds"], report["complete"]) == (0, 0, 0.0, True)
    assert find(str(b.store)) == []


def stop_between_commits(host: Host) -> None:
    """Its command stands still, and its log holds nothing behind what is committed: not even a commit that has not
    returned yet, which recovery would find."""
    command = host.state()["command_pid"]
    while True:
        os.kill(command, signal.SIGSTOP)
        until(lambda: stands_still(command), "it commits nothing more")
        control = Control(str(host.store))
        words = control.words()
        control.close()
        if words is not None and really_held(host).position == words["committed"]:
            return
        os.kill(command, signal.SIGCONT)


def holds_all(primary: Host, standby: Host) -> bool:
    control = Control(str(primary.store))
    try:
        words = control.words()
        acked = [each["acked"] for each in control.destinations() if each["url"].endswith(f":{standby.port}")]
    finally:
        control.close()
    return words is not None and acked == [words["committed"]]


def test_a_third_host_passes_on_what_it_hears(clusters: Callable[..., Cluster]) -> None:
    """a dies with a tail, b takes over and dies with another, c takes over; then a returns, and then b."""
    cluster = clusters(3)
    a = cluster[0].start(options=("--create",)).becomes("primary")
    b, c = cluster[1].start(), cluster[2]
    cluster.replicated(a, b)
    commit_alone(a)
    until(lambda: commits_in(b, 3), f"b commits\n{b.output()}")
    of_a = really_held(a)
    c.start()
    cluster.replicated(b, c)
    commit_alone(b)
    until(lambda: commits_in(c, 4), f"c commits\n{c.output()}")
    of_b = really_held(b)
    a.start().becomes("standby")
    cluster.replicated(c, a)
    assert report_of(b, 3)["state"] == "open"  # who has the report is away
    b.start().becomes("standby")
    exactly(completed(b, 3), of_a, b.said("start")[0]["n"])
    exactly(completed(c, 4), of_b, c.said("start")[0]["n"])


def test_a_report_that_a_crash_left_open_is_completed_at_the_next_start(tmp_path: Path) -> None:
    """And one that is damaged is named, and left."""
    from tests.failover.test_losses import account, takeover

    store, clock = tmp_path / "app.sus", FakeClock()
    from sustain.failover import report
    from sustain.replication.accounts import Book

    report.save(takeover(), str(tmp_path))
    Book(str(store)).add([account()])
    (tmp_path / "takeover-9-x.json").write_text("{")
    (tmp_path / "takeover-8-x.json").write_text(json.dumps(takeover().as_dict() | {"old_epoch": "two"}))
    said: list[str] = []
    completion = Completion(str(store), str(tmp_path), clock, said.append)
    ((found, path),) = completion.look()
    assert (found.state, found.lost.commits) == ("complete", 3)
    assert path == str(tmp_path / "takeover-3-b.txt")
    assert len(said) == 2
    assert Takeover.from_dict(json.loads((tmp_path / "takeover-3-b.json").read_text())) == found
    assert completion.look() == []
    assert Completion(str(store), str(tmp_path), clock, said.append).look() == []
