"""Lags of destinations: pure arithmetic, unknown stays unknown."""

from typing import TYPE_CHECKING, Any

import pytest

from sustain.store.status import destination_status, store_status

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
    }
    return base | changes  # type: ignore[return-value]


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
    words: Any = {"committed": 990, "commit_time_ns": 103 * SECOND_NS, "poisoned": True}
    status = store_status(words, [_destination()], committed=1000)
    assert (status.committed, status.durable, status.poisoned) == (1000, 990, True)
    assert [each.lag_bytes for each in status.destinations] == [200]
