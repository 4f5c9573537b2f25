"""`sustain run` on a real etcd that is killed, stopped, cut off, or loses one of three members.

The oracle is outside, as in `test_run`: what the command wrote down after each commit that was confirmed.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sustain.clock import SystemClock
from sustain.errors import LeaseError
from sustain.failover.lease import LeaseState, open_lease
from tests.failover import etcd as real
from tests.failover.conftest import Cluster, Host, until
from tests.failover.etcd import Etcd, Link
from tests.failover.test_run import begin, commits_in, nothing_acknowledged_is_lost, one_primary_at_a_time
from tests.powerfail import hosts as namespaces

pytestmark = pytest.mark.skipif(not real.available(), reason="no etcd (Debian: etcd-server)")

Clusters = Callable[..., Cluster]


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Etcd]:
    with real.running(tmp_path / "etcd") as found:
        yield found


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Etcd]:
    with real.running(tmp_path / "etcd", 3) as found:
        yield found


def record_of(etcd: Etcd) -> dict[str, Any]:
    """Of the default workload, as it lies there."""
    from sustain.failover.lease.etcd.client import decoded, encoded

    for each in etcd.members:
        kvs = real.ask(each.address, "/v3/kv/range", {"key": encoded("sustain/default/lease")}).get("kvs")
        if kvs:
            found: dict[str, Any] = json.loads(decoded(kvs[0]["value"]).split(b"\n")[0])
            return found
    return {}


def fenced_in_time(a: Host, b: Host) -> None:
    """a has ended its command, which ignores SIGTERM, by its deadline; b has not begun."""
    until(lambda: a.state()["command_pid"] is None, f"the command is killed\n{a.output()}")
    assert [event for event in a.events() if event["event"] == "role" and event["role"] == "fenced"]
    assert not b.said("start")


def somebody_goes_on(cluster: Cluster) -> None:
    last = cluster.all_said("commit")[-1]["ns"]
    until(lambda: [each for each in cluster.all_said("commit") if each["ns"] > last], "somebody goes on")
    one_primary_at_a_time(cluster)


def test_without_etcd_there_is_no_primary_and_with_it_there_is_one_again(
    single: Etcd, clusters: Clusters
) -> None:
    pair = clusters(2, single.url)
    a, b = begin(pair, "--stubborn")
    single.members[0].stop()
    fenced_in_time(a, b)
    assert "connection refused" in a.output()
    assert "Traceback" not in a.output() + b.output()
    single.restart(single.members[0])
    somebody_goes_on(pair)


def test_a_host_that_starts_before_its_etcd_waits_for_it(single: Etcd, clusters: Clusters) -> None:
    single.members[0].stop()
    pair = clusters(2, single.url)
    a, b = pair.hosts
    for host in pair.hosts:
        host.start("--wait", options=("--create",) if host is a else ())
    for host in pair.hosts:
        until(lambda host=host: "it is tried again, for 60 s at most" in host.output(), host.output)
        assert "connection refused" in host.output()
    single.restart(single.members[0])
    until(lambda: pair.all_said("acked"), lambda: f"a and b go on\n{a.output()}\n{b.output()}")
    one_primary_at_a_time(pair)


def test_an_etcd_that_stands_still_for_longer_than_the_lease(single: Etcd, clusters: Clusters) -> None:
    pair = clusters(2, single.url)
    a, b = begin(pair, "--stubborn")
    single.members[0].pause()
    fenced_in_time(a, b)
    assert "does not answer" in a.output()
    single.members[0].resume()
    somebody_goes_on(pair)


def test_of_three_members_the_leader_may_die(three: Etcd, clusters: Clusters) -> None:
    pair = clusters(2, three.url)
    # Time enough for etcd to choose another leader on a busy machine.
    a, b = begin(pair, "--wait", options=("--ttl", "8s"))
    three.leader.stop()
    before = record_of(three)["counter"]
    until(
        lambda: record_of(three).get("counter", 0) > before + 5,
        "the lease is renewed for longer than it lasts",
    )
    assert a.state()["role"] == "primary"
    assert not b.said("start"), f"a takeover for nothing\n{a.output()}\n{b.output()}"
    # And with one member less the lease still changes hands.
    a.signal_all(9)
    until(lambda: commits_in(b, 3), f"b commits\n{b.output()}")
    one_primary_at_a_time(pair)
    nothing_acknowledged_is_lost(pair)


def test_a_primary_that_is_cut_off_from_etcd_stops_before_the_other_starts(
    single: Etcd, clusters: Clusters
) -> None:
    link = Link(single.members[0].address)
    pair = clusters(2, single.url)
    pair[0].lease_url = f"etcd://{link.address}"
    try:
        a, b = begin(pair, "--stubborn")
        link.set("hold")
        until(lambda: commits_in(b, 3), f"b commits\n{b.output()}")
        one_primary_at_a_time(pair)
        assert a.state()["command_pid"] is None, "two commands at once"
        # What was held on the way arrives now, late: it takes nothing back.
        link.let_go()
        a.becomes("standby")
        pair.replicated(b, a)
        assert b.state()["role"] == "primary"
        one_primary_at_a_time(pair)
    finally:
        link.close()


def status(*words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sustain.cli", "status", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_status_shows_the_workload_from_any_host(single: Etcd, clusters: Clusters) -> None:
    url = f"{single.url}/{uuid.uuid4().hex}"
    pair = clusters(2, url)
    a, b = begin(pair)

    def members() -> dict[str, Any]:
        code, out, _ = status("--json", url)
        assert code == 0
        found = json.loads(out)
        return {each["name"]: each for each in found["members"]} | {"all": found}

    def complete() -> bool:
        found = members()
        if found.keys() != {"a", "b", "all"} or found["a"]["role"] != "primary":
            return False
        return bool(found["b"]["can_take_over"] and found["b"]["epoch"] == 2)

    until(complete, "both members say where they are")
    found = members()
    assert (found["all"]["state"], found["all"]["holder"], found["all"]["epoch"]) == ("held", "a", 2)
    assert (found["b"]["role"], found["b"]["can_take_over"], found["b"]["epoch"]) == ("standby", True, 2)
    assert found["a"]["position"] > 0
    assert found["b"]["position"] > 0
    assert found["b"]["said_s_ago"] is not None
    for host in (a, b):
        code, out, _ = status(str(host.store))
        assert code == 0
        assert "MEMBER" in out
        assert "a: held, epoch 2" in out
    single.members[0].stop()
    code, out, _ = status(str(b.store))
    assert (code, "connection refused" in out) == (0, True)
    code, out, said = status(url)
    assert (code, out) == (1, "")
    assert said.startswith("error: ")
    assert "hint: " in said
    assert "Traceback" not in said


@pytest.mark.skipif(not namespaces.allowed(), reason="needs root, for network namespaces")
def test_members_that_are_cut_off(tmp_path: Path) -> None:
    """Three members, each a host of its own; the links of one, then of two are down."""
    network = namespaces.Network()
    etcd = Etcd(tmp_path, 3)
    links = []
    try:
        for member in etcd.members:
            space, link, member.host = network.add(member.name)
            member.prefix = ("ip", "netns", "exec", space)
            links.append(link)
        etcd.start()
        lease = open_lease(etcd.url, "a1", SystemClock(), 10.0)
        grant = lease.acquire(lease.read(), "a", 10.0, 1)
        assert grant is not None
        led = etcd.members.index(etcd.leader)
        cut(links[led], "down")
        renewed = lease.renew(grant)
        assert renewed is not None, "the two others are enough"
        cut(links[(led + 1) % 3], "down")
        with pytest.raises(LeaseError):
            lease.renew(renewed)
        for link in links:
            cut(link, "up")

        def again() -> bool:
            try:
                return lease.renew(renewed) is not None
            except LeaseError:
                return False

        until(again, "the members find each other again")
        assert lease.release(renewed, LeaseState.RELEASED, 0, "") or lease.read().record.state.left
        lease.close()
    finally:
        etcd.end()
        network.close()


def cut(link: str, how: str) -> None:
    subprocess.run(["ip", "link", "set", link, how], check=True, timeout=60, env=os.environ)
