"""`sustain run` with real processes: takeovers, and everything that must not do harm.

The oracle is outside: the command writes down, after the fact, each commit that was confirmed and each that a
standby was said to hold.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sustain
from sustain._native import Control
from sustain.host.processes import start_ticks
from tests.failover.conftest import LEASES, Cluster, Host, until
from tests.replication.certificates import Authority


def begin(pair: Cluster, *app: str, options: tuple[str, ...] = ()) -> tuple[Host, Host]:
    """a is the primary, b holds what it commits."""
    a = pair[0].start(*app, options=("--create", *options)).becomes("primary")
    b = pair[1].start(*app, options=options)
    pair.replicated(a, b)
    return a, b


def begin_work(pair: Cluster, commits: int) -> tuple[Host, Host]:
    """a works on what it will finish. Each commit waits for its copy, so that b has the store before that."""
    words = ("--until", str(commits), "--wait")
    return pair[0].start(*words, options=("--create",)).becomes("primary"), pair[1].start(*words)


def one_primary_at_a_time(cluster: Cluster) -> None:
    """No commit of an older epoch was confirmed after one of a newer epoch."""
    newest = 0
    for entry in cluster.all_said("commit"):
        assert entry["epoch"] >= newest, f"{entry} after epoch {newest}"
        newest = entry["epoch"]


def nothing_acknowledged_is_lost(cluster: Cluster) -> None:
    """Every command that started found all that a standby had been said to hold before."""
    for start in cluster.all_said("start"):
        acked = [entry["n"] for entry in cluster.all_said("acked") if entry["ns"] < start["ns"]]
        assert start["n"] >= max(acked, default=0), f"{start} lost acknowledged commits"


def commits_in(host: Host, epoch: int) -> bool:
    """Or in a later one: a host that stands still for longer than its lease begins one more."""
    return any(entry["epoch"] >= epoch for entry in host.said("commit"))


@LEASES
def test_the_standby_takes_over_when_everything_of_the_primary_is_killed(pair: Cluster) -> None:
    a, b = begin(pair, "--wait")
    until(lambda: a.said("acked"), "a commit is acknowledged")
    a.signal_all(signal.SIGKILL)
    until(lambda: commits_in(b, 3), f"b commits\n{b.output()}")
    one_primary_at_a_time(pair)
    nothing_acknowledged_is_lost(pair)
    report = json.loads((b.dir / "takeover-3-b.json").read_text())
    assert (report["old_holder"], report["old_epoch"], report["new_epoch"]) == ("a", 2, 3)
    assert report["start_position"] == report["held_position"]
    assert report["lost"]["at_least_bytes"] is not None
    assert report["command_started_boottime_ns"] >= report["promoted_boottime_ns"]
    text = (b.dir / "takeover-3-b.txt").read_text()
    assert "a" in text
    assert "epoch" in text
    # a returns: a standby, with b's history.
    a.start("--wait")
    a.becomes("standby")
    pair.replicated(b, a)
    assert b.stop() == 0
    until(lambda: commits_in(a, 4), f"a commits again\n{a.output()}")
    one_primary_at_a_time(pair)
    nothing_acknowledged_is_lost(pair)
    assert a.stop() == 0


def test_hosts_with_certificates(pair: Cluster, tmp_path: Path) -> None:
    """The supervisors' children have them, too: what is shipped, received, and answered at the primary's door."""
    authority = Authority.made(tmp_path / "ca")
    files = {host.name: tuple(authority.host(host.name).words()) for host in pair.hosts}
    a = pair[0].start("--wait", options=("--create", *files["a"])).becomes("primary")
    b = pair[1].start("--wait", options=files["b"])
    until(lambda: a.said("acked"), f"a commit is acknowledged\n{a.output()}")
    assert a.stop() == 0
    until(lambda: commits_in(b, 3), f"b commits\n{b.output()}")
    a.start("--wait", options=files["a"]).becomes("standby")
    pair.replicated(b, a)
    nothing_acknowledged_is_lost(pair)
    for host in (a, b):
        assert host.stop() == 0
        assert "Traceback" not in host.output()


def test_a_primary_tells_a_former_one_that_its_time_is_over(pair: Cluster) -> None:
    a, b = begin(pair)
    a.signal_all(signal.SIGKILL)
    until(lambda: commits_in(b, 3), f"b commits\n{b.output()}")
    former = [sys.executable, "-m", "sustain.cli", "ship", "--store", str(a.store)]
    former += ["--peer", f"tcp://127.0.0.1:{b.port}"]
    told = subprocess.run(former, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode != 0
    assert "epoch 2 is over" in told.stderr
    assert b.stop() == 0


@LEASES
def test_a_primary_that_was_stopped_past_its_lease_does_no_harm(pair: Cluster) -> None:
    a, b = begin(pair, "--stubborn")
    a.signal_all(signal.SIGSTOP)
    until(lambda: commits_in(b, 3), f"b commits\n{b.output()}")
    before = len(a.said("commit"))
    a.signal_all(signal.SIGCONT)
    a.becomes("standby")
    # It may have been stopped between its commit and writing that down: one line, no more.
    assert len(a.said("commit")) <= before + 1
    pair.replicated(b, a)
    assert b.state()["role"] == "primary"
    late = [entry for entry in a.said("commit") if entry["ns"] > b.said("start")[0]["ns"]]
    assert len(late) <= 1


@LEASES
def test_a_command_whose_supervisor_alone_was_killed_commits_nothing_past_the_lease(pair: Cluster) -> None:
    a, b = begin(pair, "--stubborn")
    command = a.state()["command_pid"]
    a.kill_supervisor()
    until(lambda: commits_in(b, 3), f"b commits\n{b.output()}")
    until(lambda: a.said("refused"), "the orphan is refused")
    assert start_ticks(command) is not None  # it lives, and tries all the time
    one_primary_at_a_time(pair)
    # A new supervisor on a ends the orphan and stands by.
    a.start("--stubborn")
    a.becomes("standby")
    pair.replicated(b, a)
    assert start_ticks(command) is None, "the orphan still runs"
    assert b.state()["role"] == "primary"


def test_finished_work_is_not_started_again(pair: Cluster) -> None:
    a, b = begin_work(pair, 400)
    assert a.ends() == 0, a.output()
    assert b.ends() == 0, b.output()
    assert not b.said("start")
    assert a.said("commit")[-1]["n"] == 400
    ends = []
    for host in (a, b):
        control = Control(str(host.store))
        ends.append(control.words()["committed"])  # type: ignore[index]
        control.close()
    assert ends[0] == ends[1], "the standby lacks the end of the work"
    b.start("--until", "400")
    assert b.ends() == 0
    assert not b.said("start")
    assert "finished by a" in b.output()


def test_a_command_that_fails_is_restarted_here_and_then_elsewhere(pair: Cluster) -> None:
    a, b = begin(pair, "--fail-at", "120", options=("--restarts", "2"))
    until(lambda: b.said("start"), f"b tries\n{a.output()}\n{b.output()}")
    # Once and twice again; more only while b, on a busy machine, had not been heard of lately.
    assert len([entry for entry in a.said("start") if entry["epoch"] == 2]) >= 3
    # In good order: b has all that a had committed.
    assert b.said("start")[0]["n"] == a.said("commit")[-1]["n"]
    one_primary_at_a_time(pair)


def test_a_command_that_fails_without_a_standby_goes_on_being_restarted(pair: Cluster) -> None:
    a = pair[0].start("--fail-at", "5", options=("--create", "--restarts", "1"))
    until(lambda: len(a.said("start")) >= 4, f"restarts\n{a.output()}")
    assert {entry["epoch"] for entry in a.said("start")} == {2}
    assert a.stop() == 0


@LEASES
def test_stopping_the_primary_hands_over_at_once_and_loses_nothing(pair: Cluster) -> None:
    a, b = begin(pair)
    assert a.stop() == 0
    until(lambda: b.said("start"), f"b starts\n{b.output()}")
    # SIGTERM may end the command when it has committed, but not written that down.
    promised = a.said("commit")[-1]["n"]
    assert b.said("start")[0]["n"] in (promised, promised + 1)
    report = json.loads((b.dir / "takeover-3-b.json").read_text())
    assert report["complete"] is True
    assert report["missing_bytes"] == 0
    assert b.stop() == 0


def test_a_lease_that_vanishes_fences_the_primary_in_time(pair: Cluster) -> None:
    a, b = begin(pair, "--stubborn")
    aside = pair.dir / "aside"
    pair.lease.rename(aside)
    until(lambda: a.state()["role"] == "fenced" or a.state()["command_pid"] is None, a.output())
    until(lambda: a.state()["command_pid"] is None, f"the command is killed\n{a.output()}")
    fences = [event for event in a.events() if event["event"] == "role" and event["role"] == "fenced"]
    assert fences
    failures = [event for event in a.events() if event["event"] == "lease-error" and event["text"]]
    assert len(failures) == 1, "said more than once"
    assert "No such file" in failures[0]["text"]
    assert not b.said("start")
    last = a.said("commit")[-1]["ns"]
    aside.rename(pair.lease)
    until(lambda: [each for each in pair.all_said("commit") if each["ns"] > last], "somebody goes on")
    one_primary_at_a_time(pair)


def test_children_that_die_are_started_again(pair: Cluster) -> None:
    a, b = begin(pair)
    (shipper,) = a.pids("shipper")
    os.kill(shipper, signal.SIGKILL)
    until(lambda: a.pids("shipper") not in ([], [shipper]), f"a new shipper\n{a.output()}")
    (receiver,) = b.pids("receiver")
    os.kill(receiver, signal.SIGKILL)
    until(lambda: b.pids("receiver") not in ([], [receiver]), f"a new receiver\n{b.output()}")
    pair.replicated(a, b)
    assert len(a.said("start")) == 1, "the command was touched"


@pytest.mark.parametrize("kind", ["file", "etcd"])
def test_three_hosts_the_one_that_holds_most_takes_over(
    clusters: Callable[..., Cluster], request: pytest.FixtureRequest, kind: str
) -> None:
    cluster = clusters(3, request.getfixturevalue("etcd").url if kind == "etcd" else "")
    a = cluster[0].start("--wait", options=("--create",)).becomes("primary")
    b, c = cluster[1].start("--wait"), cluster[2].start("--wait")
    cluster.replicated(a, b)
    cluster.replicated(a, c)
    # c falls behind: its receiver is stopped, so only b acknowledges what comes now.
    (receiver,) = c.pids("receiver")
    os.kill(receiver, signal.SIGSTOP)
    behind = len(a.said("acked"))
    until(lambda: len(a.said("acked")) > behind + 20, "b acknowledges")
    a.signal_all(signal.SIGKILL)
    os.kill(receiver, signal.SIGCONT)
    until(lambda: cluster.all_said("start")[-1]["host"] != "a", f"a takeover\n{b.output()}\n{c.output()}")
    nothing_acknowledged_is_lost(cluster)
    one_primary_at_a_time(cluster)


# wrong use


def _run(*words: str) -> tuple[int, str]:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "sustain.cli", "run", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--lease", "file:///nowhere-at-all", "--", "true"), 1, "cannot read the lease"),
        (("--lease", "zk://x", "--", "true"), 2, "unknown kind"),
        (("--lease", "etcd://127.0.0.1:1", "--lease-wait", "0s", "--", "true"), 1, "connection refused"),
        (("--lease", "etcd://127.0.0.1:1", "--lease-wait", "300ms", "--", "true"), 1, "it is tried again"),
        (("--lease", "etcd://127.0.0.1?nonsense=1", "--", "true"), 2, "nonsense"),
        (("--lease", "etcd://127.0.0.1?ca=/nowhere-at-all", "--", "true"), 1, "nowhere-at-all"),
        (
            (
                "--lease",
                "LEASE",
            ),
            2,
            "no command",
        ),
        (("--lease", "LEASE", "--", "no-such-program-here"), 2, "not found"),
        (("--lease", "LEASE", "--name", "a/b", "--", "true"), 2, "cannot be a name"),
        (("--lease", "LEASE", "--ttl", "1ms", "--", "true"), 2, "out of range"),
        (("--lease", "LEASE", "--restarts", "-1", "--", "true"), 2, "negative"),
        (("--lease", "LEASE", "--peer", "nonsense", "--", "true"), 2, "nonsense"),
        (("--lease", "LEASE", "--listen", "nonsense", "--", "true"), 2, "nonsense"),
        (("--lease", "LEASE", "--event-log", "/nowhere-at-all/x", "--", "true"), 2, "event-log"),
    ],
)
def test_wrong_use_is_one_error_with_a_hint(
    tmp_path: Path, words: tuple[str, ...], status: int, said: str
) -> None:
    (tmp_path / "lease").mkdir()
    lease = f"file://{tmp_path}/lease"
    given = [lease if word == "LEASE" else word for word in words]
    code, err = _run("--store", str(tmp_path / "s"), "--name", "a", *given)
    assert (code, said in err) == (status, True), err
    assert "\nhint: " in err
    assert "Traceback" not in err


def test_a_second_supervisor_of_the_same_store_is_refused(pair: Cluster) -> None:
    a = pair[0].start(options=("--create",)).becomes("primary")
    code, err = _run("--store", str(a.store), "--name", "x", "--lease", f"file://{pair.lease}", "--", "true")
    assert code == 1
    assert "another `sustain run`" in err


def test_a_store_that_a_stranger_has_open_is_left_alone(tmp_path: Path) -> None:
    import sustain

    (tmp_path / "lease").mkdir()
    store = sustain.create(str(tmp_path / "s"), size="16MiB", log_size="4MiB")
    try:
        code, err = _run(
            "--store", str(tmp_path / "s"), "--name", "a", "--lease", f"file://{tmp_path}/lease", "--", "true"
        )
        assert code == 1
        assert f"open in process {os.getpid()}" in err
        store.commit()
    finally:
        store.close()


def test_a_store_of_another_workload_is_refused(pair: Cluster, tmp_path: Path) -> None:
    import sustain

    a = pair[0].start("--until", "3", options=("--create",))
    assert a.ends() == 0
    b = pair[1]
    other = sustain.create(str(b.store), size="16MiB", log_size="4MiB")
    other.map("mine")[b"k"] = b"v"
    other.commit()
    other.close()
    b.start(options=("--rerun",))
    assert b.ends() == 1
    assert "not of this lease's workload" in b.output()
    assert "hint: " in b.output()


def test_a_lost_lease_record_is_not_taken_for_a_first_start(pair: Cluster) -> None:
    a = pair[0].start("--until", "3", options=("--create",))
    assert a.ends() == 0
    for each in pair.lease.iterdir():
        each.unlink()
    a.start("--until", "6")
    until(lambda: "there is no lease record" in a.state().get("waiting_for", ""), a.output())
    assert len(a.said("start")) == 1
    a.stop()
    a.start("--until", "6", options=("--new-lease",))
    assert a.ends() == 0, a.output()
    assert a.said("commit")[-1]["n"] == 6


def test_a_standby_that_lacks_what_was_left_in_good_order_waits(pair: Cluster) -> None:
    a, b = begin(pair)
    b.signal_all(signal.SIGKILL)
    until(lambda: len(a.said("commit")) > 50, "a goes on")
    n = len(a.said("commit"))
    until(lambda: len(a.said("commit")) > n + 20, "a goes on")
    assert a.stop() == 0
    b.start()
    until(lambda: "left in good order" in b.state().get("waiting_for", ""), b.output())
    assert not b.said("start")
    a.start()
    until(lambda: commits_in(a, 3), f"a goes on\n{a.output()}")
    pair.replicated(a, b)


def test_a_full_report_directory_does_not_stop_a_takeover(pair: Cluster) -> None:
    a, b = begin(pair, options=("--report-dir", "/proc/no-such-place"))
    assert a.stop() == 0
    until(lambda: b.said("start"), f"b starts\n{b.output()}")
    assert "report cannot be written" in b.output()


def test_nothing_is_left_in_the_hosts_directories(pair: Cluster) -> None:
    a, b = begin_work(pair, 200)
    assert (a.ends(), b.ends()) == (0, 0)
    for host in (a, b):
        assert {path.name for path in host.dir.iterdir() if not path.name.startswith("takeover")} == {
            "app.sus",
            "app.sus.run.json",
            "app.sus.run.lock",
            "events.jsonl",
            "output.txt",
            *(["app.log"] if host is a else []),
        }
    shutil.rmtree(pair.lease)


def test_an_archive_beside_a_standby_lives_through_a_takeover(pair: Cluster) -> None:
    """Both hosts ship to it while they are primary; what it acknowledged is in it, under whichever epoch."""
    from sustain.replication.archive.contents import read_manifests
    from sustain.replication.archive.place import open_place
    from sustain.replication.archive.restore import Restore, Wish
    from sustain.replication.urls import parse_archive

    url = f"file://{pair.dir}/arch"
    place = open_place(parse_archive(url))
    a, b = begin(pair, options=("--peer", f"{url}?every=20ms"))

    def acked(epoch: int) -> bool:
        manifest = read_manifests(place)[0].get(epoch)
        # Where the epoch began: a primary goes on with what its predecessor brought.
        return manifest is not None and bool(manifest.snapshot) and manifest.acked > manifest.history[-1][1]

    until(lambda: acked(2), f"the archive has a snapshot\n{a.output()}")
    a.signal_all(signal.SIGKILL)
    until(lambda: acked(3), f"the archive follows b\n{b.output()}")
    b.signal_all(signal.SIGKILL)
    target = pair.dir / "restored.sus"
    restored = Restore([place], lambda text: None).run(str(target), Wish(), "memory")
    assert restored.epoch == 3
    assert not restored.damaged
    with sustain.open(target) as store:
        store.verify()
        n = int(store.map("counts")[b"n"])
    assert n >= max(entry["n"] for entry in b.said("start")), "all that b began with"
    assert n <= max(entry["n"] for entry in b.said("commit")) + 1
