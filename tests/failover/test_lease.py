"""The lease's rules, on the fake, a real directory and a real etcd alike; then what only a directory can do wrong.

What only etcd can do wrong: `test_etcd`.
"""

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sustain.clock import SystemClock
from sustain.errors import ConfigError, LeaseError
from sustain.failover.lease import (
    Candidate,
    HandoverRequest,
    Lease,
    LeaseState,
    Rank,
    RequestState,
    open_lease,
)
from sustain.failover.lease.etcd import EtcdLease, parse_etcd_url
from sustain.failover.lease.etcd.client import Limits
from sustain.failover.lease.file import FileLease
from sustain.failover.lease.request import Gave, Took
from sustain.testing import FakeClock, MemoryLease, MemoryLeaseStore

TTL_S = 3.0
PATIENT = Limits(call_s=30.0, hedge_s=5.0)  # the clocks are not real, and the machine may be busy
Hosts = Callable[[str, FakeClock], Lease]


@pytest.fixture(params=["memory", "file", "etcd"])
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hosts]:
    """Makes the access of one more host to the same lease."""
    shared = MemoryLeaseStore()
    made: list[Lease] = []
    url = f"{request.getfixturevalue('etcd').url}/{uuid.uuid4().hex}" if request.param == "etcd" else ""

    def make(instance: str, clock: FakeClock) -> Lease:
        if request.param == "memory":
            made.append(MemoryLease(shared, instance, clock, TTL_S))
        elif request.param == "file":
            made.append(FileLease(str(tmp_path), instance, clock, TTL_S))
        else:
            made.append(EtcdLease(parse_etcd_url(url), instance, clock, TTL_S, limits=PATIENT))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_first_take_opens_an_epoch_above_the_stores(hosts: Hosts) -> None:
    lease = hosts("a1", FakeClock())
    view = lease.read()
    assert view.record.state is LeaseState.ABSENT
    grant = lease.acquire(view, "a", TTL_S, at_least_epoch=7)
    assert grant is not None
    assert grant.epoch == 8
    assert lease.read().record.holder == "a"


def test_a_held_lease_is_free_only_after_it_was_seen_unchanged_for_longer_than_its_ttl(hosts: Hosts) -> None:
    clock_a, clock_b = FakeClock(50.0), FakeClock(9000.0)
    a, b = hosts("a1", clock_a), hosts("b1", clock_b)
    grant = a.acquire(a.read(), "a", TTL_S, 1)
    assert grant is not None
    view = b.read()
    clock_b.advance(TTL_S)
    assert b.acquire(b.read(), "b", TTL_S, 1) is None, "the margin for clock rates is missing"
    clock_b.advance(TTL_S * 0.02)
    assert view.takeable_at_ns is not None
    assert b.read().takeable_at_ns == view.takeable_at_ns <= clock_b.boottime_ns()
    taken = b.acquire(b.read(), "b", TTL_S, 1)
    assert taken is not None
    assert taken.epoch == grant.epoch + 1
    assert a.renew(grant) is None, "the old holder renews what is another's"
    assert not a.release(grant, LeaseState.RELEASED, 5, "")


def test_every_renewal_starts_the_contenders_wait_anew(hosts: Hosts) -> None:
    clock = FakeClock()
    a, b = hosts("a1", clock), hosts("b1", clock)
    grant = a.acquire(a.read(), "a", TTL_S, 1)
    for _ in range(5):
        assert grant is not None
        b.read()
        clock.advance(TTL_S * 0.9)
        grant = a.renew(grant)
    assert b.acquire(b.read(), "b", TTL_S, 1) is None


def test_a_holders_deadline_counts_from_before_its_write_and_leaves_a_margin(hosts: Hosts) -> None:
    clock = FakeClock()
    a = hosts("a1", clock)
    began_ns = clock.boottime_ns()
    grant = a.acquire(a.read(), "a", TTL_S, 1)
    assert grant is not None
    assert grant.renewed_ns == began_ns
    assert grant.deadline_ns < began_ns + TTL_S * 1e9


def test_a_released_lease_is_free_at_once_and_says_where_it_ended(hosts: Hosts) -> None:
    clock = FakeClock()
    a, b = hosts("a1", clock), hosts("b1", clock)
    grant = a.acquire(a.read(), "a", TTL_S, 1)
    assert grant is not None
    assert a.release(grant, LeaseState.RELEASED, 1234, "asked to stop")
    view = b.read()
    assert (view.record.position, view.record.position_epoch) == (1234, grant.epoch)
    taken = b.acquire(view, "b", TTL_S, 1)
    assert taken is not None
    # b fails before it opens the store: what a said is still what counts.
    assert b.release(taken, LeaseState.RELEASED, None, "cannot open the store")
    again = a.read().record
    assert (again.position, again.position_epoch) == (1234, grant.epoch)


def test_a_view_that_has_been_overtaken_takes_nothing(hosts: Hosts) -> None:
    clock = FakeClock()
    a, b = hosts("a1", clock), hosts("b1", clock)
    old = b.read()
    grant = a.acquire(a.read(), "a", TTL_S, 1)
    assert b.acquire(old, "b", TTL_S, 1) is None
    assert grant is not None
    stale = b.read()
    for _ in range(30):  # more versions than are kept
        assert grant is not None
        grant = a.renew(grant)
    clock.advance(100)
    assert b.acquire(stale, "b", TTL_S, 1) is None
    assert grant is not None
    assert a.renew(grant) is not None, "the late attempt has harmed the record"


def test_a_renewal_whose_answer_was_lost_is_recognised(hosts: Hosts) -> None:
    a = hosts("a1", FakeClock())
    grant = a.acquire(a.read(), "a", TTL_S, 1)
    assert grant is not None
    assert a.renew(grant) is not None
    again = a.renew(grant)  # with the old version: as after a lost answer
    assert again is not None
    assert again.record.counter == grant.record.counter + 2


def test_another_run_of_the_same_host_is_another_holder(hosts: Hosts) -> None:
    clock = FakeClock()
    before, after = hosts("a1", clock), hosts("a2", clock)
    grant = before.acquire(before.read(), "a", TTL_S, 1)
    assert grant is not None
    assert after.renew(grant) is None


def test_the_store_is_noted_and_kept_over_takeovers(hosts: Hosts) -> None:
    clock = FakeClock()
    a, b = hosts("a1", clock), hosts("b1", clock)
    grant = a.acquire(a.read(), "a", TTL_S, 1)
    assert grant is not None
    grant = a.renew(grant, "the-store")
    assert grant is not None
    assert a.release(grant, LeaseState.DONE, 1, "")
    taken = b.acquire(b.read(), "b", TTL_S, 1)
    assert taken is not None
    assert taken.record.store_uuid == "the-store"


def test_announcements_are_seen_with_the_time_of_their_last_change(hosts: Hosts) -> None:
    clock = FakeClock()
    a, b = hosts("a1", clock), hosts("b1", clock)
    note = Candidate("a", "a1", Rank(2, 100), True, 0, 1)
    a.announce(note)
    first_ns = clock.boottime_ns()
    assert [(each.candidate, each.changed_ns) for each in b.candidates()] == [(note, first_ns)]
    clock.advance(1)
    assert b.candidates()[0].changed_ns == first_ns
    a.announce(Candidate("a", "a1", Rank(2, 100), True, 0, 2))
    assert b.candidates()[0].changed_ns == clock.boottime_ns()
    a.withdraw("a")
    a.withdraw("a")
    assert b.candidates() == []


def test_many_hosts_race_and_each_epoch_has_one_winner(hosts: Hosts) -> None:
    """Real threads: released and taken again many times."""
    clock, rounds, count = FakeClock(), 25, 6
    wins: list[tuple[int, str]] = []
    barrier = threading.Barrier(count)
    leases = {name: hosts(name, clock) for name in (f"h{at}" for at in range(count))}

    def contend(name: str) -> None:
        lease = leases[name]
        for _ in range(rounds):
            barrier.wait()
            grant = lease.acquire(lease.read(), name, TTL_S, 1)
            barrier.wait()
            if grant is not None:
                wins.append((grant.epoch, name))
                assert lease.release(grant, LeaseState.RELEASED, 0, "")

    threads = [threading.Thread(target=contend, args=(name,)) for name in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    epochs = [epoch for epoch, _ in wins]
    assert len(set(epochs)) == len(epochs), f"an epoch was given out twice: {sorted(wins)}"
    assert len(epochs) >= rounds // 2


# what only a directory does


def _held(directory: Path) -> FileLease:
    lease = FileLease(str(directory), "a1", FakeClock(), TTL_S)
    assert lease.acquire(lease.read(), "a", TTL_S, 1) is not None
    return lease


def test_a_directory_that_is_missing_is_never_made(tmp_path: Path) -> None:
    lease = open_lease(f"file://{tmp_path}/none", "a1", SystemClock(), TTL_S)
    with pytest.raises(LeaseError, match="none") as caught:
        lease.read()
    assert "mounted" in caught.value.hint
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "url", ["file://host/dir", "file:relative", "zk://x", "/dir", "", "etcd://[", "file://["]
)
def test_urls_that_name_no_lease(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_lease(url, "a1", SystemClock(), TTL_S)
    assert caught.value.hint


def test_a_damaged_record_is_an_error_at_every_byte(tmp_path: Path) -> None:
    """Truncated anywhere, or with any one byte changed: never another record, never a free lease."""
    lease = _held(tmp_path)
    (path,) = tmp_path.glob("lease.*")
    whole, record = path.read_bytes(), lease.read().record
    wrong = [whole[:cut] for cut in range(len(whole))]
    wrong += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for content in wrong:
        path.write_bytes(content)
        with pytest.raises(LeaseError):
            lease.read()
    path.write_bytes(whole)
    assert lease.read().record == record


def test_a_record_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    import json
    import zlib

    lease = _held(tmp_path)
    (path,) = tmp_path.glob("lease.*")
    body = json.dumps({**json.loads(path.read_text().split("\n")[0]), "format": 2})
    path.write_text(f"{body}\n{zlib.crc32(body.encode()):08x}\n")
    with pytest.raises(LeaseError, match="another version"):
        lease.read()


def test_old_versions_and_drafts_are_cleared_away(tmp_path: Path) -> None:
    lease = _held(tmp_path)
    grant = lease.renew(_grant_of(lease))
    for _ in range(40):
        assert grant is not None
        grant = lease.renew(grant)
    names = os.listdir(tmp_path)
    assert len(names) <= 10
    assert not [name for name in names if name.startswith(".")]


def _grant_of(lease: FileLease):  # type: ignore[no-untyped-def]
    return lease._granted(lease.read().record, 0)


def test_a_stopped_process_in_the_middle_of_a_change_keeps_nobody_out(tmp_path: Path) -> None:
    """Its draft lies there and nothing is locked: others go on."""
    clock = FakeClock()
    a, b = (FileLease(str(tmp_path), name, clock, TTL_S) for name in ("a1", "b1"))
    view = a.read()
    (tmp_path / ".draft-a1").write_text("half a rec")
    assert b.acquire(b.read(), "b", TTL_S, 1) is not None
    assert a.acquire(view, "a", TTL_S, 1) is None


# requests for handovers


def test_a_request_is_asked_answered_and_replaced_by_swap(hosts: Hosts) -> None:
    clock = FakeClock()
    a, operator = hosts("a1", clock), hosts("op", clock)
    assert a.request() is None
    first, second = (HandoverRequest(each, 2, "a", "b", 30.0) for each in ("first", "second"))
    assert operator.ask(first, None)
    assert not operator.ask(second, None), "over one that is there"
    assert a.request() == first
    accepted = a.amend("first", lambda held: replace(held, state=RequestState.ACCEPTED, successor="b"))
    assert accepted == replace(first, state=RequestState.ACCEPTED, successor="b")
    assert a.amend("second", lambda held: replace(held, state=RequestState.REFUSED)) == accepted
    assert not operator.ask(second, first), "what it was meant to replace has changed"
    assert operator.ask(second, accepted)
    gave, took = Gave(0.1, 0.2, 0.3, 0.4), Took(0.5, 0.6, 0.7, 0.8)
    a.amend("second", lambda held: replace(held, gave=gave))
    held = operator.amend("second", lambda held: replace(held, took=took))
    assert held == a.look()[2] == replace(second, gave=gave, took=took)
    assert held is not None
    assert held.pause_s == pytest.approx(3.6)
    assert replace(held, took=replace(took, first_commit_s=None)).pause_s is None
    # The record of the lease is another thing.
    assert a.read().record.state is LeaseState.ABSENT


def test_a_lease_that_is_given_to_one_host_says_so_until_it_is_taken(hosts: Hosts) -> None:
    clock = FakeClock()
    a, b = hosts("a1", clock), hosts("b1", clock)
    grant = a.acquire(a.read(), "a", TTL_S, 1)
    assert grant is not None
    b.read()
    clock.advance(1.0)
    began_ns = clock.boottime_ns()
    assert b.read().since_ns < began_ns
    clock.advance(1.0)
    assert a.release(grant, LeaseState.RELEASED, 500, "as asked", "b")
    view = b.read()
    assert (view.record.successor, view.record.position) == ("b", 500)
    assert (view.since_ns, view.before_ns) == (clock.boottime_ns(), began_ns)
    clock.advance(1.0)
    assert b.read().since_ns == view.since_ns
    taken = b.acquire(b.read(), "b", TTL_S, 1)
    assert taken is not None
    assert taken.record.successor == ""
    assert b.renew(taken) is not None


def test_a_damaged_request_is_nobodys_and_is_replaced(tmp_path: Path) -> None:
    lease = FileLease(str(tmp_path), "a1", FakeClock(), TTL_S)
    request = HandoverRequest("one", 2, "a", "b", 30.0)
    assert lease.ask(request, None)
    (path,) = tmp_path.glob("handover.*")
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert lease.request() is None
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert lease.request() is None
    assert lease.ask(replace(request, id="two"), None)
    assert lease.request() == replace(request, id="two")


def test_a_record_without_a_successor_is_written_as_before_there_were_handovers(tmp_path: Path) -> None:
    lease = _held(tmp_path)
    (path,) = tmp_path.glob("lease.*")
    assert b"successor" not in path.read_bytes()
    assert lease.read().record.successor == ""
