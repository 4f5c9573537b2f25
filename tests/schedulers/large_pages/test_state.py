"""What is remembered of blocks, found again where memory and processes have come and gone."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim.large_pages.world import Load, World

from sustain.schedulers.large_pages import state
from sustain.schedulers.large_pages.decide import decide
from sustain.schedulers.large_pages.model import Observation
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.state import remembered

_PROCESSES, _BLOCKS = 3, 200


def _whole() -> Observation:
    """A look, after which the estimate of each block of a process is another one."""
    pages = np.arange(_PROCESSES * _BLOCKS).reshape(_PROCESSES, _BLOCKS) % 509 + 1
    world = World([Load(f"p{number}", each, lambda _, each=each: each) for number, each in enumerate(pages)])
    return world.seen()


def _part(seen: Observation, rows: Any, order: list[int]) -> Observation:
    """Those rows, with the processes in another order; of those that are left out nothing is there."""
    places = np.full(len(seen.targets), -1, np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    rows = rows[places[seen.blocks.target[rows]] >= 0]
    blocks = seen.blocks.rows(rows[np.argsort(places[seen.blocks.target[rows]], kind="stable")])
    return msgspec.structs.replace(
        seen,
        targets=tuple(seen.targets[each] for each in order),
        blocks=msgspec.structs.replace(blocks, target=places[blocks.target]),
    )


def _unlooked(seen: Observation, number: int) -> Observation:
    """The same, where that process could not be looked at."""
    targets = tuple(msgspec.structs.replace(each, looked=each.name != f"p{number}") for each in seen.targets)
    hidden = [place for place, each in enumerate(targets) if not each.looked]
    return msgspec.structs.replace(
        seen, targets=targets, blocks=seen.blocks.rows(~np.isin(seen.blocks.target, hidden))
    )


def _estimates(seen: Observation, columns: Any) -> dict[tuple[str, int], float]:
    """By process and address."""
    lives = [seen.targets[each].life for each in seen.blocks.target]
    return dict(zip(zip(lives, seen.blocks.address.tolist(), strict=True), columns.tolist(), strict=True))


_parts = st.tuples(
    st.sets(st.integers(0, _PROCESSES * _BLOCKS - 1), max_size=40),  # that are not there
    st.booleans(),  # but for these nothing is there
    st.permutations(range(_PROCESSES)),
    st.integers(1, _PROCESSES),
)


@pytest.mark.parametrize("runs", [0, 64])  # 0: each row is looked up as soon as two places differ
@given(_parts, _parts, st.none() | st.integers(0, _PROCESSES - 1))
@settings(max_examples=200)
def test_each_block_that_was_there_is_found_again(
    runs: int, before: Any, after: Any, away: int | None
) -> None:
    whole = _whole()

    def seen(which: Any) -> Observation:
        some, only, order, count = which
        gone = np.zeros(len(whole.blocks), np.bool_)
        gone[list(some)] = True
        return _part(whole, np.flatnonzero(gone if only else ~gone), list(order)[:count])

    first, second = seen(before), seen(after)
    held = decide(first, None, Policy(), first.now_s).state
    if away is not None:  # it cannot be looked at for once, which is no reason to forget it
        less = _unlooked(first, away)
        held = decide(less, held, Policy(), less.now_s).state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "_RUNS", runs)
        found = remembered(second, held)
    known = _estimates(first, decide(first, None, Policy(), first.now_s).state.memory.estimate)
    expected = {key: known.get(key, float("nan")) for key in _estimates(second, second.blocks.address)}
    assert _estimates(second, found.estimate) == pytest.approx(expected, nan_ok=True)
    assert [len(getattr(found, name)) for name in state._COLUMNS] == [len(second.blocks)] * len(
        state._COLUMNS
    )
    new = np.isnan(found.estimate)
    assert found.counts.tolist() == np.where(new, 0, 1).tolist()
    assert found.large.dtype == np.bool_
    assert np.isinf(found.counted_s[new]).all()


def test_what_lies_beside_each_other_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of many has gone, another has come."""
    monkeypatch.setattr(state, "_looked_up", lambda *_: pytest.fail("each row was looked up"))
    whole = _whole()
    rows = np.arange(len(whole.blocks))
    first, second = (_part(whole, np.delete(rows, gone), [0, 1, 2]) for gone in (7, 300))
    held = decide(first, None, Policy(), first.now_s).state
    found = remembered(second, held)
    assert np.flatnonzero(np.isnan(found.estimate)).tolist() == [7]
