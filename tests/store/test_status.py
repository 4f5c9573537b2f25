"""Lags of destinations: pure arithmetic, unknown stays unknown."""

from typing import TYPE_CHECKING, Any

import pytest

from sustain.store.status import destination_status, power_status, store_status

if TYPE_CHECKING:
    from sustain._native import Destination

SECOND_NS = 1_000_000_000


def _destination(**changes: Any) -> "Destination":
    base: dict[str, Any] = {
        "slot": 0,
        "url": "tcp://10.0.0.2:7411",
        "state": "streaming",
        "required": True,
        "sent": 900,
        "acked": 800,
        "acked_boottime_ns": 5,
        "acked_commit_time_ns": 100 * SECOND_NS,
        "snapshot_done_bytes": 0,
        "snapshot_total_bytes": 0,
        "bytes_sent": 900,
        "connections": 1,
        "bandwidth_bytes_per_s": None,
        "budget_bytes": None,
        "left_alone_until_ns": None,
        "left_alone_why": None,
    }
    return base | changes  # type: ignore[return-value]


def _words(**changes: Any) -> Any:
    base = {
        "committed": 1000,
        "commit_time_ns": 103 * SECOND_NS,
        "poisoned": False,
        "power_at_ns": 0,
        "power_state": 0,
        "usable_ns": None,
        "limit_lsn": 0,
        "delay_lsn": 0,
        "budget_bytes": 0,
        "waiting_since_ns": 0,
    }
    return base | changes


@pytest.mark.parametrize(
    ("changes", "lag_bytes", "lag_s"),
    [
        ({}, 200, 3.0),
        ({"acked": 1000}, 0, 0.0),
        ({"acked": 1200}, 0, 0.0),  # acknowledged after the words were read
        ({"acked": None}, None, None),
        ({"acked_commit_time_ns": 0}, 200, None),
        ({"acked_commit_time_ns": 104 * SECOND_NS}, 200, 0.0),
    ],
)
def test_lags(changes: dict[str, Any], lag_bytes: int | None, lag_s: float | None) -> None:
    status = destination_status(_destination(**changes), committed=1000, commit_time_ns=103 * SECOND_NS)
    assert status.lag_bytes == lag_bytes
    assert status.lag_s == lag_s


def test_store_status_is_made_of_the_words() -> None:
    words: Any = _words(committed=990, poisoned=True)
    status = store_status(words, [_destination()], committed=1000, now_ns=0)
    assert status.power is None
    assert (status.committed, status.durable, status.poisoned) == (1000, 990, True)
    assert [each.lag_bytes for each in status.destinations] == [200]


@pytest.mark.parametrize(
    ("acked", "bandwidth", "drain_s"),
    [(800, 100, 2.0), (800, None, None), (None, 100, None), (1000, None, 0.0)],
)
def test_drain_time(acked: int | None, bandwidth: int | None, drain_s: float | None) -> None:
    shown = destination_status(
        _destination(acked=acked, bandwidth_bytes_per_s=bandwidth), committed=1000, commit_time_ns=0
    )
    assert shown.drain_s == drain_s


def _drain(*destinations: tuple[bool, float | None]) -> float | None:
    shown = [
        destination_status(
            _destination(required=required, bandwidth_bytes_per_s=None if drain_s is None else 200 / drain_s),
            committed=1000,
            commit_time_ns=0,
        )
        for required, drain_s in destinations
    ]
    status = power_status(_words(power_at_ns=1), shown, 0)
    assert status is not None
    return status.drain_s


def test_a_drain_ends_at_all_required_destinations_or_at_the_first_of_the_others() -> None:
    assert _drain() is None
    assert _drain((False, 5.0), (False, 2.0), (False, None)) == 2.0
    assert _drain((True, 5.0), (True, 2.0), (False, 1.0)) == 5.0
    assert _drain((True, 5.0), (True, None)) is None


@pytest.mark.parametrize(
    ("changes", "commits", "budget_bytes"),
    [
        ({}, "free", None),
        ({"limit_lsn": 5000, "delay_lsn": 2000, "budget_bytes": 4000}, "free", 4000),
        ({"limit_lsn": 5000, "delay_lsn": 999, "budget_bytes": 4000}, "delayed", 4000),
        ({"limit_lsn": 1000, "delay_lsn": 999, "budget_bytes": 0}, "waiting", 0),
        ({"limit_lsn": 1, "delay_lsn": 1}, "waiting", None),  # no credit anywhere
    ],
)
def test_what_the_battery_does_to_commits(
    changes: dict[str, Any], commits: str, budget_bytes: int | None
) -> None:
    status = power_status(_words(power_at_ns=1, usable_ns=SECOND_NS, power_state=1, **changes), [], 0)
    assert status is not None
    assert (status.state, status.usable_s) == ("on AC", 1.0)
    assert (status.commits, status.budget_bytes, status.waiting_s) == (commits, budget_bytes, None)


def test_a_commit_that_waits_and_a_battery_that_runs_down() -> None:
    words = _words(
        power_at_ns=SECOND_NS,
        usable_ns=10 * SECOND_NS,
        power_state=3,
        limit_lsn=1200,
        delay_lsn=1100,
        waiting_since_ns=2 * SECOND_NS,
    )
    status = power_status(words, [], 4 * SECOND_NS)
    assert status is not None
    assert (status.state, status.usable_s) == ("on battery", 7.0)
    assert (status.commits, status.waiting_s) == ("waiting", 2.0)
    unknown = power_status(_words(power_at_ns=1, power_state=99), [], 0)
    assert unknown is not None
    assert (unknown.state, unknown.usable_s) == ("unknown", None)


@pytest.mark.parametrize(
    ("until_ns", "shipper_alive", "expected"),
    [
        (12 * SECOND_NS, True, (2.0, "refused")),
        (0, True, (0.0, None)),  # it is not
        (9 * SECOND_NS, True, (0.0, None)),  # it is tried just now
        (None, True, (None, None)),  # by a shipper that does not say
        (12 * SECOND_NS, False, (None, None)),  # by one that was killed: nobody will try
    ],
)
def test_for_how_long_one_is_left_alone(
    until_ns: int | None, shipper_alive: bool, expected: tuple[float | None, str | None]
) -> None:
    shown = destination_status(
        _destination(left_alone_until_ns=until_ns, left_alone_why="refused"),
        committed=1000,
        commit_time_ns=0,
        now_ns=10 * SECOND_NS,
        shipper_alive=shipper_alive,
    )
    assert (shown.left_alone_s, shown.left_alone_why) == expected
