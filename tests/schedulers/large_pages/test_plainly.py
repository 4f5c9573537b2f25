"""What is done with whole columns of blocks, against the same said plainly of one block at a time: everything that a
block can be, at random, with ties and unknowns."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sustain.schedulers.large_pages import columns
from sustain.schedulers.large_pages.choose import choose
from sustain.schedulers.large_pages.judge import judge
from sustain.schedulers.large_pages.model import BLOCK_BYTES, Blocks, HostView, Observation, Target
from sustain.schedulers.large_pages.plan import Finding
from sustain.schedulers.large_pages.policy import Policy, TargetPolicy
from sustain.schedulers.large_pages.state import Memory, TargetMemory, counted, slices

_NOW_S = 10_000.0
_COUNT = 300
_NEVER, _NAN = -np.inf, np.nan
seeds = st.integers(0, 1 << 32)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there are several, and the last is not full."""
    monkeypatch.setattr(columns, "PIECE", 128)


def blocks_of(any_: np.random.Generator, targets: int) -> tuple[Blocks, Memory]:
    """Blocks in every state. A piece in which all are alike in something is as likely as one with few or many."""

    def some(*values: float) -> Any:
        usual = any_.choice([0.0, 0.02, 0.5, 1.0])
        return np.where(any_.random(_COUNT) < usual, any_.choice(values, _COUNT), values[0])

    def column(kind: type, *values: float) -> Any:
        return some(*values).astype(kind)

    ages = (5.0, 30.0, 119.0, 121.0)
    blocks = Blocks(
        target=np.sort(any_.integers(0, targets, _COUNT)).astype(np.int32),
        address=(np.arange(_COUNT, dtype=np.uint64) + np.uint64(1)) * np.uint64(BLOCK_BYTES),
        touched=column(np.float32, 100, 0, 1, 64, 300.5, 512, _NAN),
        error=column(np.float32, 0, 10, 40, _NAN),
        age_s=column(np.float32, *ages, _NAN),
        populated=column(np.int16, 512, 0, 100, 511, -1),
        large=column(np.bool_, 0, 1),
        whole=column(np.bool_, 0, 1),
        eligible=column(np.bool_, 1, 0),
        guest_large=column(np.int8, -1, 0, 1),
    )
    times = tuple(_NOW_S - age for age in (*ages, 600.0))
    counted_s = column(np.float64, *times, _NEVER)
    memory = Memory(
        estimate=column(np.float32, 64, 0, 23.9, 24, 32, 63.9, 200, 410, 511, 512, _NAN),
        error=column(np.float32, 0, 8, 40),
        counted_s=counted_s,
        fine_s=np.minimum(counted_s, column(np.float64, *times, _NEVER)),
        counts=column(np.uint8, 9, 0, 2, 3, 255),
        large=blocks.large.copy(),
        changed_s=column(np.float64, _NEVER, *times),
        base=column(np.int16, -1, 0, 100, 512),
        retry_s=column(np.float64, _NEVER, _NOW_S - 1, _NOW_S, _NOW_S + 1),
        failures=np.zeros(_COUNT, np.uint8),
        recount_s=column(np.float64, _NEVER, *times),
    )
    return blocks, memory


@settings(max_examples=15, deadline=None)
@given(seed=seeds, weight=st.sampled_from([0.4, 1.0]))
def test_what_a_count_teaches(seed: int, weight: float) -> None:
    blocks, before = blocks_of(np.random.default_rng(seed), 1)
    seen = Observation(now_s=_NOW_S, blocks=blocks, targets=(Target(name="a", pid=1, started=1),))
    policy = Policy(weight=weight)
    after = counted(before, seen, policy)
    plain = [_taught(before, blocks, row, policy) for row in range(_COUNT)]
    for name in plain[0]:
        wanted = [each[name] for each in plain]
        np.testing.assert_allclose(getattr(after, name), wanted, rtol=1e-5, atol=1e-4, err_msg=name)


def _taught(memory: Memory, blocks: Blocks, row: int, policy: Policy) -> dict[str, float]:
    old = {name: float(getattr(memory, name)[row]) for name in ("estimate", "error", "counted_s", "fine_s")}
    touched, whole = float(blocks.touched[row]), bool(blocks.whole[row])
    ended_s = _NOW_S - float(blocks.age_s[row])
    news = ended_s > old["counted_s"] + 0.05 and touched >= 0 and (whole or blocks.error[row] >= 0)
    if not news:
        return old | {"counts": memory.counts[row]}
    new = old | {"counted_s": ended_s, "counts": min(255, int(memory.counts[row]) + 1)}
    if not whole:
        new["fine_s"] = max(old["fine_s"], ended_s)
    if whole and touched > 0:
        return new
    since_s = ended_s - (old["counted_s"] if whole else old["fine_s"])
    kept = 0.0
    if not np.isnan(old["estimate"]) and policy.weight < 1:
        kept = (1 - policy.weight) ** (since_s / policy.weight_period_s)
    error = 0.0 if whole else float(blocks.error[row])
    before = (0.0, 0.0) if np.isnan(old["estimate"]) else (old["estimate"], old["error"])
    new["estimate"] = kept * before[0] + (1 - kept) * touched
    new["error"] = float(np.hypot(kept * before[1], (1 - kept) * error))
    return new


@settings(max_examples=25, deadline=None)
@given(
    seed=seeds,
    scarce=st.booleans(),
    free=st.sampled_from([None, 0, 7]),
    spare_share=st.sampled_from([0.0, 0.22]),
    certainty=st.sampled_from([0.0, 1.0]),
)
def test_what_is_found_of_a_block(
    seed: int, scarce: bool, free: int | None, spare_share: float, certainty: float
) -> None:
    any_ = np.random.default_rng(seed)
    blocks, memory = blocks_of(any_, 3)
    policy = Policy(
        spare_share=spare_share,
        certainty=certainty,
        targets={"t2": TargetPolicy(counted_only=bool(any_.random() < 0.5))},
    )
    targets = tuple(Target(name=f"t{at}", pid=at + 1, started=1, window_s=10.0) for at in range(3))
    remembered = {
        each.life: TargetMemory(
            0.0, counts=int(any_.choice([0, 9])), retry_s=any_.choice([_NEVER, _NOW_S + 1])
        )
        for each in targets
    }
    seen = Observation(now_s=_NOW_S, blocks=blocks, targets=targets, host=HostView(free_large_pages=free))
    it = judge(seen, memory, remembered, policy, _NOW_S, scarce)
    plain = []
    for row in range(_COUNT):
        mine = remembered[targets[blocks.target[row]].life]
        only = policy.of(targets[blocks.target[row]]).counted_only or mine.counts < policy.least_counts
        plain.append(_Plain(blocks, memory, row, policy, scarce, free == 0, only, mine.retry_s > _NOW_S))
    assert [Finding(each).name for each in it.finding] == [each.finding.name for each in plain]
    np.testing.assert_allclose(it.score, [each.score for each in plain], rtol=1e-6)
    np.testing.assert_allclose(it.fill, [each.fill for each in plain], rtol=1e-6)
    for name in ("may", "stays", "spare", "countable", "known"):
        assert getattr(it, name).tolist() == [getattr(each, name) for each in plain], name
    for rows, which in (
        (it.cold, [each.cold for each in plain]),
        (it.begun, [each.begun for each in plain]),
        (it.pending, [each.recount == "pending" for each in plain]),
        (it.counted, [each.recount == "again" and not scarce for each in plain]),
    ):
        assert rows.tolist() == np.flatnonzero(which).tolist()
    assert it.most_fill == max(0.0, *(each.fill for each in plain if each.fill == each.fill))


class _Plain:
    """One block, judged by the words of `judge`."""

    def __init__(
        self,
        blocks: Blocks,
        memory: Memory,
        row: int,
        policy: Policy,
        scarce: bool,
        none_free: bool,
        only: bool,
        waits: bool,
    ) -> None:
        b = {name: getattr(blocks, name)[row].item() for name in Blocks.__struct_fields__}
        m = {each.name: getattr(memory, each.name)[row].item() for each in fields(Memory)}
        estimate, doubt, large = m["estimate"], policy.certainty * m["error"], b["large"]
        hot, enough = estimate - doubt >= policy.high, estimate - doubt >= policy.spare
        chilly = estimate + doubt < policy.low
        self.begun = m["recount_s"] > _NEVER
        small, recounting = not large and not self.begun, not large and self.begun
        settled = m["changed_s"] <= _NOW_S - policy.residence_s
        self.fill = max(512 - b["populated"], 0) if b["populated"] >= 0 else 512 - estimate
        filled = not hot and m["base"] >= 0
        worth = estimate if small else max(min(estimate * (1 + policy.margin), 511), estimate + 0.5)
        more = policy.prefer if b["guest_large"] == 1 else 0.0
        worth *= 1 if small else 1 + more
        if small or filled:
            worth -= policy.fill * (512 - m["base"] if filled else self.fill)
        worth -= policy.compaction if small and none_free else 0
        worth += abs(worth) * more if small else 0
        poor = small and hot and not worth > 0
        may_spare = not scarce and not none_free and policy.spare_share > 0
        spare = may_spare and small and enough and (poor or not hot)
        poor = poor and not spare
        wanted = (small and hot) or spare
        late = m["retry_s"] > _NOW_S
        unknown, stale = np.isnan(estimate), m["counted_s"] < _NOW_S - policy.fresh_s
        few = m["counts"] < policy.least_counts
        free = not (late or only or waits)
        self.known = free and not (unknown or stale or few)
        self.may = bool(wanted and not poor and settled and b["eligible"] and self.known and not scarce)
        held = large and settled and self.known
        self.stays, self.cold = held and not chilly, held and chilly
        self.spare, self.countable = (self.may and spare) or (large and filled), large and settled and free
        self.score = worth if self.may or self.stays else _NAN
        self.finding = next(
            kind
            for kind, applies in (
                (Finding.BUDGET, self.may),
                (Finding.COUNTED_ONLY, only),
                (Finding.TARGET_WAITS, waits),
                (Finding.UNKNOWN, unknown),
                (Finding.STALE, stale),
                (Finding.FEW_COUNTS, few),
                (Finding.WAITS, late and (wanted or large or recounting)),
                (Finding.NOT_ELIGIBLE, not large and not b["eligible"]),
                (Finding.SETTLING, (wanted or (large and chilly)) and not settled),
                (Finding.NOT_WORTH, poor),
                (Finding.SCARCE, scarce and small and hot),
                (Finding.KEPT, large),
                (Finding.LOW, True),
            )
            if applies
        )
        self.recount = ""
        if recounting and free:
            counted_since = m["fine_s"] - 10.0 >= m["recount_s"]
            overdue = m["recount_s"] < _NOW_S - policy.fresh_s
            if counted_since:
                self.recount = "again" if estimate + doubt >= policy.low else ""
            elif not overdue:
                self.recount, self.finding = "pending", Finding.RECOUNT


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    places=st.one_of(st.none(), st.integers(-3, 80)),
    targets=st.integers(1, 4),
    limited=st.booleans(),
    levels=st.sampled_from([1, 3, 1000]),
)
def test_the_best_are_chosen(seed: int, places: int | None, targets: int, limited: bool, levels: int) -> None:
    any_ = np.random.default_rng(seed)
    count = int(any_.integers(1, 90))
    target = np.sort(any_.integers(0, targets, count)).astype(np.int32)
    score = any_.integers(-levels, levels + 1, count).astype(np.float32)
    score[any_.random(count) < 0.3] = _NAN
    pool = ~np.isnan(score)
    outside = np.flatnonzero(pool & (any_.random(count) < 0.1))
    pool[outside] = False
    own, most = any_.integers(0, 20, targets), any_.integers(0, 20, targets)
    if places is not None:  # guaranteed() is asked when they do not fit, and has its own test
        own = np.minimum(own, max(0, places) // targets)
    caps, shares = (most if limited else None), np.ones(targets)
    before = score.copy()
    found = choose(score, pool, outside, slices(target, targets), places, own, caps, shares)

    rows = sorted(np.flatnonzero(pool).tolist(), key=lambda row: (-score[row], row))
    of = [[row for row in rows if target[row] == each] for each in range(targets)]
    if limited:
        of = [each[:limit] for each, limit in zip(of, most.tolist(), strict=True)]
    allowed = [row for row in rows if row in of[target[row]]]
    if places is None or places >= len(allowed):
        mine, wanted = [], allowed
    else:
        mine = [row for each, number in zip(of, own.tolist(), strict=True) for row in each[:number]]
        others = [row for row in allowed if row not in mine]
        wanted = mine + others[: max(0, places) - len(mine)]
    assert np.flatnonzero(found.mask).tolist() == sorted(wanted)
    assert np.flatnonzero(found.own).tolist() == sorted(mine)
    assert score.tobytes() == before.tobytes()
