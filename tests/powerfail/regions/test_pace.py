"""How the program is held back: never for nothing, and always before the budget is used up."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sustain.powerfail.regions.pace import Need, Pace, PacePolicy, decide_pace, interval_s, phase_of

POLICY = PacePolicy()
sizes = st.integers(0, 1 << 40)
needs = st.builds(Need, sizes, st.none() | sizes)


@given(st.lists(needs))
def test_without_a_budget_nothing_is_held_back(found: list[Need]) -> None:
    pace = decide_pace([Need(need.behind_bytes, None) for need in found], POLICY)
    assert pace == Pace(hurry=False, still=0.0, load=None)


@given(sizes, sizes, sizes)
def test_more_behind_never_means_less_holding_back(one: int, more: int, budget: int) -> None:
    first = decide_pace([Need(one, budget)], POLICY)
    second = decide_pace([Need(one + more, budget)], POLICY)
    assert second.still >= first.still
    assert second.hurry >= first.hurry


@given(sizes, st.integers(1, 1 << 40))
def test_the_thresholds(behind: int, budget: int) -> None:
    pace = decide_pace([Need(behind, budget)], POLICY)
    assert pace.hurry == (behind / budget > POLICY.first_threshold)
    assert (pace.still > 0) == (behind / budget > POLICY.second_threshold)
    assert (pace.still == 1) == (behind >= budget)
    assert 0 <= pace.still <= 1


def test_with_no_seconds_left_anything_behind_stops_the_program() -> None:
    assert decide_pace([Need(4096, 0)], POLICY).still == 1
    assert decide_pace([Need(0, 0)], POLICY).still == 0


@given(st.lists(needs, min_size=1))
def test_the_destination_that_is_best_off_counts(found: list[Need]) -> None:
    together = decide_pace(found, POLICY)
    alone = [decide_pace([need], POLICY) for need in found if need.budget_bytes is not None]
    assert together.still == min((pace.still for pace in alone), default=0)


@given(st.floats(0, 1e6), st.integers(1, 1 << 30), st.integers(1, 1 << 30))
def test_a_program_that_writes_faster_than_the_link_is_kept_within_the_budget(
    writes: float, link: int, budget: int
) -> None:
    """The bound holds whatever the program does: in each slice it runs for the share that is left to it."""
    slice_s, behind = 0.1, 0.0
    per_slice = (
        min(writes * link, 0.05 * budget / slice_s) * slice_s
    )  # what one slice can add; peeked at after it
    for _ in range(300):
        pace = decide_pace([Need(int(behind), budget)], POLICY)
        behind = max(0.0, behind + (1 - pace.still) * per_slice - link * slice_s)
        assert behind <= budget + per_slice


@given(st.integers(0, 1 << 28))
def test_faults_take_no_more_than_their_share(pages: int) -> None:
    calm, hurried = Pace(False, 0.0, None), Pace(True, 0.0, 0.6)
    wait_s = interval_s(pages, calm, POLICY, faults=True)
    assert wait_s >= POLICY.interval_s
    assert pages * POLICY.fault_s <= POLICY.fault_share * wait_s * 1.000001
    assert interval_s(pages, calm, POLICY, faults=False) == POLICY.interval_s
    assert interval_s(pages, hurried, POLICY, faults=True) == POLICY.hurried_interval_s


def test_the_phase_of_every_combination() -> None:
    states = ("connecting", "streaming", "sealed", "failed", "refused")
    for one, other in itertools.product(states, repeat=2):
        both = phase_of([(one, True), (other, True)])
        assert (both == "sealed") == (one == other == "sealed")
        either = phase_of([(one, False), (other, False)])
        assert (either == "sealed") == ("sealed" in (one, other))
        assert phase_of([(one, True), (other, False)]) == phase_of([(one, False)]), "the required one counts"
        busy = {one, other} & {"connecting", "streaming"}
        for found in (both, either):
            assert found == "sealed" or (found == "final") == bool(busy)
    assert phase_of([]) == "failed"
