"""When a counter that stands still is none."""

import pytest

from sustain.host.standstill import Standstill

S = 1_000_000_000


def test_on_a_real_host_idle_counters_may_stand_still() -> None:
    still = Standstill(virtual=False, must_move=False)
    assert [still.doubt(0, (0, 0), now * S) for now in (0, 1, 100)] == ["", "", ""]


def test_energy_may_not() -> None:
    still = Standstill(virtual=False, must_move=True)
    assert still.doubt(0, (7,), 0) == ""
    assert still.doubt(0, (7,), S // 2) == ""
    assert (
        still.doubt(0, (7,), 3 * S) == "its counters have stood still for 3 s, though energy is always used"
    )
    assert still.doubt(0, (8,), 4 * S) == ""
    assert still.doubt(1, (8,), 40 * S) == ""  # another package, that was never looked at


def test_in_a_virtual_machine_what_was_never_seen_to_move_is_absent() -> None:
    still = Standstill(virtual=True, must_move=False)
    assert "when they have been seen to move" in still.doubt(0, (5, 0), 0)
    assert "stood still for 2 s" in still.doubt(0, (5, 0), 2 * S)
    assert "cannot be told from having none" in still.doubt(0, (5, 0), 3 * S)
    assert still.doubt(0, (5, 1), 4 * S) == ""  # any of them
    assert still.doubt(0, (5, 1), 4 * S + S // 2) == ""
    assert "stood still for 6 s" in still.doubt(0, (5, 1), 10 * S)


@pytest.mark.parametrize("virtual", [True, False])
def test_what_is_forgotten_is_new(virtual: bool) -> None:
    still = Standstill(virtual=virtual, must_move=True)
    still.doubt(0, (5,), 0)
    assert "stood still" in still.doubt(0, (5,), 2 * S)
    still.forget(0)
    assert "stood still" not in still.doubt(0, (5,), 2 * S)
