"""A lease in a real etcd, and everything that may go wrong between: answers lost, late, from elsewhere, or never.

The rules that hold for every lease: `test_lease`. Whole workloads: `test_etcd_run`.
"""

import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sustain.errors import LeaseError, LeaseUnavailable
from sustain.failover.lease import Candidate, LeaseGrant, LeaseState, Rank
from sustain.failover.lease.etcd import EtcdLease, parse_etcd_url
from sustain.failover.lease.etcd.client import Limits
from sustain.testing import FakeClock
from tests.failover import etcd as real
from tests.failover.conftest import until
from tests.failover.etcd import Etcd, Link

TTL_S = 3.0
PATIENT = Limits(
    call_s=20.0, hedge_s=0.1
)  # where an answer must come in the end, however busy the machine is
SHORT = Limits(call_s=0.5, hedge_s=0.05)  # where none comes
Open = Callable[..., EtcdLease]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Makes a host's access: open(url, instance, clock, limits)."""
    made: list[EtcdLease] = []

    def make(
        url: str, instance: str = "a1", clock: FakeClock | None = None, limits: Limits = PATIENT
    ) -> EtcdLease:
        made.append(EtcdLease(parse_etcd_url(url), instance, clock or FakeClock(), TTL_S, limits=limits))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def link(etcd: Etcd) -> Iterator[Link]:
    made = Link(etcd.members[0].address)
    yield made
    made.close()


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


def taken(lease: EtcdLease, holder: str = "a") -> LeaseGrant:
    grant = lease.acquire(lease.read(), holder, TTL_S, 1)
    assert grant is not None
    return grant


# answers that are lost, or late


def test_a_swap_whose_answer_was_lost_is_recognised_by_another_member(
    etcd: Etcd, link: Link, name: str, opened: Open
) -> None:
    lease = opened(f"etcd://{link.address},{etcd.members[0].address}/{name}")
    grant = taken(lease)
    link.set("lose", only="/txn")
    renewed = lease.renew(grant)
    assert link.count >= 1, "nothing was lost"
    assert renewed is not None
    assert renewed.record.version == grant.record.version + 1, "carried out twice"
    assert lease.read().record == renewed.record


def test_after_a_swap_without_any_answer_the_next_counts_from_its_own_beginning(
    etcd: Etcd, link: Link, name: str, opened: Open
) -> None:
    """What was written by a call that failed may be as old as that call: it renews nothing."""
    clock = FakeClock()
    lease = opened(f"etcd://{link.address}/{name}", clock=clock, limits=SHORT)
    grant = taken(lease)
    link.set("lose", only="/txn")
    with pytest.raises(LeaseError, match="closes the connection"):
        lease.renew(grant)
    link.let_go()
    clock.advance(TTL_S * 0.9)
    written = lease.read().record
    assert written.version == grant.record.version + 1, "it was carried out"
    renewed = lease.renew(grant)
    assert renewed is not None
    assert renewed.record.version == written.version + 1, "the old write was taken for a new one"
    assert renewed.renewed_ns == clock.boottime_ns()


def test_a_swap_that_is_carried_out_late_harms_nobody(
    etcd: Etcd, link: Link, name: str, opened: Open
) -> None:
    clock = FakeClock()
    lease = opened(f"etcd://{link.address}/{name}", clock=clock, limits=SHORT)
    near = opened(f"{etcd.url}/{name}", "near")
    grant = taken(lease)
    link.set("hold", only="/txn")
    with pytest.raises(LeaseError, match="does not answer"):
        lease.renew(grant)
    assert near.read().record == grant.record
    clock.advance(TTL_S * 0.9)
    link.let_go()
    until(lambda: near.read().record != grant.record, "the late swap is carried out")
    renewed = lease.renew(grant)
    assert renewed is not None
    assert renewed.record.version == grant.record.version + 2
    assert renewed.renewed_ns == clock.boottime_ns()


def test_a_late_swap_of_a_former_holder_changes_nothing(
    etcd: Etcd, link: Link, name: str, opened: Open
) -> None:
    clock = FakeClock()
    a = opened(f"etcd://{link.address}/{name}", "a1", clock, SHORT)
    b = opened(f"{etcd.url}/{name}", "b1", clock)
    grant = taken(a)
    b.read()
    link.set("hold", only="/txn")
    with pytest.raises(LeaseError):
        a.renew(grant)
    clock.advance(TTL_S * 1.1)
    took = taken(b, "b")
    link.let_go()
    assert a.renew(grant) is None
    assert b.read().record == took.record
    assert a.read().record.holder == "b"


def test_what_is_lost_in_silence_is_asked_again_within_the_call(
    etcd: Etcd, link: Link, name: str, opened: Open
) -> None:
    """As a change that was on its way to a leader that is gone: etcd forgets it and says nothing."""
    lease = opened(f"etcd://{link.address}/{name}")
    grant = taken(lease)
    link.set("silent", only="/txn", times=1)
    renewed = lease.renew(grant)
    assert link.count == 1
    assert renewed is not None
    assert renewed.record.version == grant.record.version + 1, "carried out twice"


def test_a_release_whose_answer_was_lost_frees_the_lease(
    etcd: Etcd, link: Link, name: str, opened: Open
) -> None:
    a = opened(f"etcd://{link.address}/{name}", limits=SHORT)
    b = opened(f"{etcd.url}/{name}", "b1")
    grant = taken(a)
    link.set("lose", only="/txn")
    with pytest.raises(LeaseError):
        a.release(grant, LeaseState.RELEASED, 77, "asked to stop")
    link.let_go()
    assert not a.release(
        grant, LeaseState.RELEASED, 77, "asked to stop"
    )  # it is not ours to release any more
    record = b.read().record
    assert (record.state, record.position) == (LeaseState.RELEASED, 77)
    assert taken(b, "b").epoch == grant.epoch + 1


class Hazard:
    """Two hosts with one lease each behind a link that fails at random, under one clock; who may write, and when."""

    def __init__(self, etcd: Etcd, opened: Open, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = FakeClock()
        self.links = [Link(etcd.members[0].address) for _ in range(2)]
        name = uuid.uuid4().hex
        limits = Limits(call_s=0.03, hedge_s=0.01)
        self.leases = [
            opened(f"etcd://{link.address}/{name}", f"host{at}", self.clock, limits)
            for at, link in enumerate(self.links)
        ]
        self.grants: list[LeaseGrant | None] = [None, None]
        self.taken = self.failed = 0

    def step(self) -> None:
        at = self.random.randrange(2)
        link, lease = self.links[at], self.leases[at]
        if self.random.random() < 0.5:
            link.let_go()
        else:
            link.set(self.random.choice(["lose", "hold", "silent"]), only=self.random.choice(["", "/txn"]))
        self.clock.advance(self.random.choice([0.0, 0.1, TTL_S / 4, TTL_S * 0.9, TTL_S * 1.1]))
        grant = self.grants[at]
        try:
            if grant is not None and self.random.random() < 0.1:
                self.grants[at] = None  # the epoch is closed first
                lease.release(grant, LeaseState.RELEASED, 0, "")
            elif grant is not None:
                self.grants[at] = lease.renew(grant)
            else:
                self.grants[at] = lease.acquire(lease.read(), f"host{at}", TTL_S, 1)
                self.taken += self.grants[at] is not None
        except LeaseError:
            self.failed += 1
            if grant is not None and grant.deadline_ns <= self.clock.boottime_ns():
                self.grants[at] = None  # as `decide` does when the deadline has passed

    def writers(self) -> list[int]:
        now_ns = self.clock.boottime_ns()
        return [
            at for at, grant in enumerate(self.grants) if grant is not None and now_ns < grant.deadline_ns
        ]

    def close(self) -> None:
        for each in self.links:
            each.close()


@pytest.mark.parametrize("seed", range(3))
def test_two_hosts_never_may_write_at_once_whatever_is_lost_or_late(
    etcd: Etcd, opened: Open, seed: int
) -> None:
    hazard = Hazard(etcd, opened, seed)
    try:
        for count in range(250):
            hazard.step()
            writers = hazard.writers()
            assert len(writers) < 2, f"seed {seed}, step {count}: both hosts may write"
    finally:
        hazard.close()
    assert hazard.taken >= 5, "hardly anything was taken"
    assert hazard.failed >= 20, "hardly anything failed"


def test_a_holder_whose_clock_stood_still_learns_it_at_its_first_renewal(
    etcd: Etcd, name: str, opened: Open
) -> None:
    """A virtual machine that was paused with its clock: by that, there is time left. Its epoch is over all the same."""
    stood, ran = FakeClock(), FakeClock()
    a, b = opened(f"{etcd.url}/{name}", "a1", stood), opened(f"{etcd.url}/{name}", "b1", ran)
    grant = taken(a)
    b.read()
    ran.advance(TTL_S * 1.1)
    took = taken(b, "b")
    assert grant.deadline_ns > stood.boottime_ns()
    assert took.epoch > grant.epoch
    assert a.renew(grant) is None


# members that do not answer, or should not be believed


@pytest.mark.parametrize("fault", ["silent", "drip", "garbage", "html", "lose"])
def test_a_member_that_fails_costs_a_little_once_and_then_nothing(
    etcd: Etcd, link: Link, name: str, opened: Open, fault: str
) -> None:
    link.set(fault)
    lease = opened(f"etcd://{link.address},{etcd.members[0].address}/{name}", limits=Limits(5.0, 0.05))
    grant = taken(lease)
    asked = link.count
    for _ in range(20):
        renewed = lease.renew(grant)
        assert renewed is not None
        grant = renewed
    assert link.count < asked + 10, "the member that fails is asked first again"


@pytest.mark.parametrize(
    ("fault", "said", "kind"),
    [
        ("silent", "does not answer", LeaseUnavailable),
        ("drip", "does not answer", LeaseUnavailable),
        ("garbage", "is no etcd", LeaseError),
        ("html", "is no etcd", LeaseError),
        ("lose", "closes the connection", LeaseUnavailable),
    ],
)
def test_without_any_answer_the_error_comes_in_time_and_says_why(
    link: Link, name: str, opened: Open, fault: str, said: str, kind: type[LeaseError]
) -> None:
    link.set(fault)
    lease = opened(f"etcd://{link.address}/{name}", limits=SHORT)
    began_s = time.monotonic()
    with pytest.raises(LeaseError, match=said) as caught:
        lease.read()
    assert time.monotonic() - began_s < 20 * SHORT.call_s
    assert type(caught.value) is kind
    assert link.address in str(caught.value)
    assert caught.value.hint
    # What failed is over when the cause is: nothing is stuck.
    link.let_go()
    until(lambda: _answers(lease), "it answers again")


def _answers(lease: EtcdLease) -> bool:
    try:
        lease.read()
    except LeaseError:
        return False
    return True


def test_nobody_there_is_said_at_once(name: str, opened: Open) -> None:
    (port,) = real.free_ports(1)
    lease = opened(f"etcd://127.0.0.1:{port}/{name}")
    began_s = time.monotonic()
    with pytest.raises(LeaseUnavailable, match="connection refused") as caught:
        lease.read()
    assert time.monotonic() - began_s < PATIENT.call_s / 2
    assert "doctor" in caught.value.hint


def test_a_name_that_nobody_knows_is_said(name: str, opened: Open) -> None:
    lease = opened(f"etcd://etcd.invalid/{name}")
    with pytest.raises(LeaseError, match="its name is not known"):
        lease.read()


def test_two_clusters_in_one_url_are_refused_before_either_is_used(
    etcd: Etcd, name: str, opened: Open, tmp_path: Path
) -> None:
    with real.running(tmp_path) as other:
        lease = opened(f"{etcd.url},{other.members[0].address}/{name}")
        with pytest.raises(LeaseError, match="2 different etcd clusters"):
            lease.read()


def test_a_member_of_another_cluster_that_appears_later_is_not_believed(
    etcd: Etcd, name: str, opened: Open, tmp_path: Path
) -> None:
    """One that was down when the hosts of the URL were compared."""
    other = Etcd(tmp_path)
    own = Link(etcd.members[0].address)
    lease = opened(f"etcd://{own.address},{other.members[0].address}/{name}", limits=Limits(5.0, 0.05))
    try:
        grant = taken(lease)
        other.start()
        own.set("lose")
        with pytest.raises(LeaseError, match="is of another etcd cluster"):
            lease.renew(grant)
        own.let_go()
        assert lease.renew(grant) is not None
    finally:
        own.close()
        other.end()


# what lies in etcd


def put(etcd: Etcd, key: str, value: bytes) -> None:
    from sustain.failover.lease.etcd.client import encoded

    said = real.ask(etcd.members[0].address, "/v3/kv/put", {"key": encoded(key), "value": encoded(value)})
    assert said["header"]


def test_a_damaged_record_is_never_a_free_lease(etcd: Etcd, name: str, opened: Open) -> None:
    from sustain.failover.lease.codec import render

    lease, other = opened(f"{etcd.url}/{name}"), opened(f"{etcd.url}/{name}", "b1")
    grant = taken(lease)
    whole = render(grant.record)
    for value in (b"", b"{}", whole[:-2], whole.replace(b'"epoch": 2', b'"epoch": 9'), b"\xff\x00"):
        put(etcd, f"sustain/{name}/lease", value)
        with pytest.raises(LeaseError, match="damaged") as caught:
            other.read()
        assert f"etcdctl del sustain/{name}/lease" in caught.value.hint
        with pytest.raises(LeaseError, match="damaged"):
            lease.renew(grant)
    put(etcd, f"sustain/{name}/lease", whole)
    assert lease.renew(grant) is not None


def test_a_strangers_note_is_passed_over(etcd: Etcd, name: str, opened: Open) -> None:
    lease = opened(f"{etcd.url}/{name}")
    note = Candidate("a", "a1", Rank(2, 100), True, 0, 1, "standby", 5)
    lease.announce(note)
    put(etcd, f"sustain/{name}/member/x", b"not a note")
    put(etcd, f"sustain/{name}/member/y", b'{"rank": 3}')
    view, members, _ = lease.look()
    assert view.record.state is LeaseState.ABSENT
    assert [each.candidate for each in members] == [note]


def test_workloads_with_names_that_begin_alike_are_apart(etcd: Etcd, name: str, opened: Open) -> None:
    one, other = opened(f"{etcd.url}/{name}"), opened(f"{etcd.url}/{name}-2", "b1")
    taken(one)
    one.announce(Candidate("a", "a1", Rank(2, 100), True))
    view, members, _ = other.look()
    assert (view.record.state, members) == (LeaseState.ABSENT, [])


def test_a_note_whose_etcd_lease_has_run_out_is_written_again(etcd: Etcd, name: str, opened: Open) -> None:
    """As after a day without a word: etcd has deleted the note, and knows the lease no more."""
    address = etcd.members[0].address
    lease = opened(f"{etcd.url}/{name}")
    lease.announce(Candidate("a", "a1", Rank(2, 100), True, 0, 1))
    assert lease._kept is not None
    real.ask(address, "/v3/lease/revoke", {"ID": lease._kept[0]})
    assert lease.candidates() == []
    lease.announce(Candidate("a", "a1", Rank(2, 100), True, 0, 2))
    assert [each.candidate.beat for each in lease.candidates()] == [2]


def test_doctor_asks_each_member_and_says_what_is_wrong(etcd: Etcd, name: str) -> None:
    from sustain.cli.doctor_lease import lease_findings

    (port,) = real.free_ports(1)
    lease, there, gone = lease_findings(f"{etcd.url},127.0.0.1:{port}/{name}")
    assert (lease.state, there.state, gone.state) == ("reduced", "ok", "reduced")
    assert "three" in lease.means
    assert "leads" in there.found
    assert gone.found == "connection refused"
    (nothing,) = lease_findings(f"etcd://127.0.0.1:{port}/{name}")
    assert nothing.state == "missing"
    assert "connection refused" in nothing.found
    for url in ("etcd://h?nonsense=1", "zk://h"):
        (wrong,) = lease_findings(url)
        assert wrong.state == "missing"
