"""What was lost, reckoned: exact or unknown, never zero for unknown."""

import json
from dataclasses import replace
from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sustain.failover.losses import Held, at_least, by_account, span_s
from sustain.failover.report import Takeover
from sustain.replication.wire import Account

STORE = UUID(int=7)
S = 10**9


def account(**but: object) -> Account:
    """a wrote epoch 2 up to 1300; others have it up to 1000."""
    said = Account(
        store=STORE.bytes,
        replica=b"a" * 16,
        host="a",
        epoch=2,
        writer=True,
        newer_epoch=3,
        common=1000,
        end=1300,
        end_seq=13,
        opened=0,
        kept_from=1000,
        before_time_ns=100 * S,
        first_time_ns=101 * S,
        last_time_ns=104 * S,
        noted_ns=900 * S,
    )
    return msgspec.structs.replace(said, **but)


def takeover(**but: object) -> Takeover:
    """b had all up to 1000, in 10 commits, and last heard of 1200."""
    found = Takeover(
        name="b",
        store="/app.sus",
        store_uuid=str(STORE),
        old_epoch=2,
        old_holder="a",
        old_state="held",
        old_reason="",
        new_epoch=3,
        held_position=1000,
        start_position=1000,
        commits_held=10,
        primary_committed=1200,
        primary_heard_boottime_ns=5 * S,
        released_position=None,
        lease_free_boottime_ns=9 * S,
        acquired_boottime_ns=10 * S,
        promoted_boottime_ns=11 * S,
        command_started_boottime_ns=12 * S,
        finished_realtime_ns=200 * S,
        held_epoch=2,
        held_commit_time_ns=100 * S,
        primary_commit_time_ns=103 * S,
    )
    return replace(found, **but)  # type: ignore[arg-type]


def test_until_it_is_known_there_are_bounds_and_no_numbers() -> None:
    found = takeover()
    assert (found.state, found.complete) == ("open", False)
    lost = found.lost
    assert (lost.bytes, lost.commits, lost.seconds, found.missing_bytes) == (None, None, None, None)
    assert (lost.at_least_bytes, lost.at_least_s) == (200, 3.0)
    assert "at least 200 B, 3 s; unknown how many commits" in found.text()


def test_nothing_heard_is_unknown_and_not_zero() -> None:
    for found in (takeover(primary_committed=None), takeover(primary_committed=1000)):
        assert (found.state, found.complete, found.missing_bytes) == ("open", None, None)
        assert found.missing() == "unknown"
        assert found.uncertain()


def test_the_old_primary_says_what_its_tail_held() -> None:
    found = takeover().with_accounts([account()], 300 * S)
    assert (found.state, found.complete, found.uncertain()) == ("complete", False, [])
    lost = found.lost
    assert (lost.bytes, lost.commits, lost.seconds, lost.kept_bytes) == (300, 3, 4.0, 300)
    assert (lost.first_commit_time_ns, lost.last_commit_time_ns) == (101 * S, 104 * S)
    assert "300 B, 3 commits, 4 s; positions 1000 to 1300" in found.text()
    assert "complete, since 1970-01-01 00:05:00 UTC" in found.text()
    assert Takeover.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_the_old_primary_had_nothing_more() -> None:
    nothing = account(end=1000, end_seq=10, kept_from=1000, first_time_ns=None, last_time_ns=None)
    found = takeover(primary_committed=None).with_accounts([nothing], 300 * S)
    assert (found.state, found.complete, found.missing_bytes) == ("complete", True, 0)
    assert (found.lost.commits, found.lost.seconds, found.missing()) == (0, 0.0, "nothing")


def test_what_the_log_had_forgotten_is_named_and_the_commits_are_still_counted() -> None:
    found = takeover().with_accounts([account(kept_from=1200, before_time_ns=None)], 300 * S)
    lost = found.lost
    assert (lost.bytes, lost.commits, lost.seconds, lost.kept_bytes) == (300, 3, 4.0, 100)
    assert lost.first_commit_time_ns is None
    assert any("200 B" in line for line in found.uncertain())


def test_commits_that_only_opened_an_epoch_are_no_application_s() -> None:
    alone = account(end=1136, end_seq=11, opened=1, first_time_ns=None, last_time_ns=None)
    found = takeover(primary_committed=None).with_accounts([alone], 300 * S)
    assert (found.lost.bytes, found.lost.commits, found.lost.seconds) == (136, 0, 0.0)
    assert found.uncertain() == []


def test_another_standby_that_holds_more_is_a_bound() -> None:
    other = account(writer=False, host="c", replica=b"c" * 16, end=1250, end_seq=12)
    found = takeover().with_accounts([other], 300 * S)
    assert (found.state, found.completed_realtime_ns) == ("open", None)
    assert (found.lost.bytes, found.lost.at_least_bytes) == (None, 250)
    whole = found.with_accounts([other, account()], 301 * S)
    assert (whole.state, whole.lost.bytes, whole.completed_realtime_ns) == ("complete", 300, 301 * S)


def test_accounts_of_other_epochs_and_of_older_copies_change_nothing() -> None:
    found = takeover()
    older = account(common=700, end=700, end_seq=7)  # b had more of its log than that
    for other in (account(epoch=1), account(epoch=3), account(epoch=3, writer=False), older):
        assert found.with_accounts([other], 300 * S) is found


def test_a_copy_made_by_hand_is_not_the_old_primary() -> None:
    found = takeover().with_accounts([account(host="x", end=1100, end_seq=11)], 300 * S)
    assert (found.state, found.lost.bytes, found.lost.at_least_bytes) == ("open", None, 200)
    found = takeover(own=True, old_holder="a", primary_committed=None)
    assert (found.state, found.complete) == ("open", None)


def test_histories_that_part_before_the_takeover_are_not_called_certain() -> None:
    found = takeover().with_accounts([account(common=800, kept_from=800)], 300 * S)
    assert (found.lost.start, found.lost.bytes, found.lost.commits) == (800, 500, None)
    assert len(found.uncertain()) == 2


def test_who_left_in_good_order_and_who_starts_again_lost_nothing() -> None:
    left = takeover(old_state="released", released_position=1000)
    assert (left.state, left.complete, left.missing_bytes, left.lost.commits) == ("complete", True, 0, 0)
    short = takeover(old_state="released", released_position=1100)
    assert (short.state, short.complete, short.missing_bytes, short.lost.commits) == (
        "open",
        False,
        100,
        None,
    )
    same = takeover(own=True, old_holder="b", primary_committed=None)
    assert (same.state, same.complete, same.uncertain()) == ("complete", True, [])
    # Somebody had the lease in between, who may have written.
    between = takeover(own=True, old_epoch=3, new_epoch=4, primary_committed=None)
    assert (between.state, between.complete) == ("open", None)


def test_a_report_of_an_older_version_can_be_completed() -> None:
    new = ("held_epoch", "held_commit_time_ns", "primary_commit_time_ns", "own", "accounts", "state", "lost")
    old = {name: value for name, value in takeover().as_dict().items() if name not in new}
    found = Takeover.from_dict(old).with_accounts([account()], 300 * S)
    assert (found.state, found.lost.bytes, found.lost.commits, found.lost.seconds) == (
        "complete",
        300,
        3,
        4.0,
    )


@given(
    held=st.integers(0, 5000),
    end=st.integers(0, 9000),
    common=st.integers(0, 5000),
    kept=st.integers(0, 9000),
    commits=st.none() | st.integers(0, 50),
)
def test_an_exact_number_is_what_lies_between(
    held: int, end: int, common: int, kept: int, commits: int | None
) -> None:
    common = min(common, end)
    said = account(common=common, end=end, kept_from=min(max(kept, common), end), end_seq=60)
    lost = by_account(Held(held, held, commits, 1), said)
    assert lost.bytes is not None
    assert lost.start is not None
    assert lost.bytes == max(0, end - (common if common < min(held, end) else held))
    assert lost.kept_bytes is None or 0 <= lost.kept_bytes <= lost.bytes
    assert lost.seconds is None or lost.seconds >= 0


def test_a_clock_that_went_back_gives_no_seconds() -> None:
    assert span_s(5, 4) is None
    assert at_least(Held(None, 0, None, None), 5, 5, []).at_least_bytes is None
