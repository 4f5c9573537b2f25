"""What is noted of changed blocks, and what each should be again."""

from functools import partial
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages import ours
from sustain.schedulers.large_pages.model import BLOCK_BYTES
from sustain.schedulers.large_pages.ours import Ours, Span
from sustain.schedulers.large_pages.undo import undo, wanted

START = 0x7F00_4000_0000
EMPTY = Span("db", 7, 99, 0x7FFD_0000, START)


def at(number: int) -> int:
    return START + number * BLOCK_BYTES


def test_a_block_made_large_is_small_again_at_the_end() -> None:
    span = EMPTY.about_to(at(3), found_large=False, large=True, briefly=False)
    assert wanted(span, keep=False) == [(at(3), False)]
    assert span.seen(at(3), large=True) == span
    assert wanted(span, keep=True) == []
    # What did not come off is not ours.
    assert span.seen(at(3), large=False) == EMPTY


def test_a_block_that_was_found_large_and_made_small_is_large_again() -> None:
    span = EMPTY.about_to(at(511), found_large=True, large=False, briefly=False).seen(at(511), large=False)
    assert wanted(span, keep=False) == [(at(511), True)]
    assert wanted(span, keep=True) == []


def test_a_recount_is_put_back_in_any_case() -> None:
    found = EMPTY.about_to(at(0), found_large=True, large=False, briefly=True).seen(at(0), large=False)
    assert wanted(found, keep=False) == wanted(found, keep=True) == [(at(0), True)]
    assert (
        found.about_to(at(0), found_large=False, large=True, briefly=False).seen(at(0), large=True) == EMPTY
    )
    # One that we made large ourselves: small at the end, large when things are kept.
    mine = EMPTY.about_to(at(0), found_large=False, large=True, briefly=False)
    mine = mine.about_to(at(0), found_large=True, large=False, briefly=True).seen(at(0), large=False)
    assert wanted(mine, keep=False) == [(at(0), False)]
    assert wanted(mine, keep=True) == [(at(0), True)]
    again = mine.about_to(at(0), found_large=False, large=True, briefly=False).seen(at(0), large=True)
    assert wanted(again, keep=True) == []
    assert wanted(again, keep=False) == [(at(0), False)]


Steps = st.lists(
    st.tuples(st.integers(0, 5), st.booleans(), st.booleans(), st.booleans(), st.booleans()), max_size=30
)


@given(Steps, st.sets(st.integers(0, 5)))
def test_whatever_is_done_everything_becomes_what_it_was(
    steps: list[tuple[int, bool, bool, bool, bool]], large_at_first: set[int]
) -> None:
    """Also when it ends between the note and the deed, and when deeds fail."""
    large = [number in large_at_first for number in range(6)]
    before = list(large)
    span = EMPTY
    for number, wants, briefly, comes_off, dies in steps:
        if large[number] != wants:
            span = span.about_to(at(number), found_large=large[number], large=wants, briefly=briefly)
            if comes_off:
                large[number] = wants
        if dies:
            break
        span = span.seen(at(number), large=large[number])
    for address, want in wanted(span, keep=False):
        large[(address - START) // BLOCK_BYTES] = want
    assert large == before


def test_what_is_seen_to_have_become_something_else_is_let_go() -> None:
    span = EMPTY
    for number in range(4):
        span = span.about_to(at(number), found_large=False, large=True, briefly=False)
    span = span.about_to(at(4), found_large=True, large=False, briefly=True)
    span = span.about_to(at(5), found_large=True, large=False, briefly=True)
    everything = 0b111111
    assert span.looked_at(there=everything, large=0b001111, recounting=0b110000) == span
    # 1 was split by others, 2 is not mapped any more; the recount of 4 has ended.
    seen = span.looked_at(there=0b111011, large=0b001001, recounting=0b100000)
    assert wanted(seen, keep=False) == [(at(4), True), (at(5), True), (at(0), False), (at(3), False)]
    assert wanted(seen, keep=True) == [(at(5), True)]
    # 4 has become large again by itself, as it was.
    assert wanted(seen.looked_at(there=everything, large=0b011001, recounting=0b100000), keep=False) == [
        (at(5), True),
        (at(0), False),
        (at(3), False),
    ]


def test_in_the_journal_and_out_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        mine = Ours(journal)
        spans = mine.of("db", 7, 99, 1, (at(0), at(511), at(512)))
        assert sorted(spans) == [START, START + (1 << 30)]
        span = spans[START].about_to(at(5), found_large=False, large=True, briefly=False)
        mine.keep(span)
        mine.keep(spans[START + (1 << 30)])  # nothing is changed in it
        assert mine.spans() == [span]
    with Journal(tmp_path / "j") as journal:
        mine = Ours(journal)
        (entry,) = journal.entries()
        assert (entry.kind, ours.parse(entry)) == (ours.KIND, span)
        assert mine.of("db", 7, 99, 1, (at(5),))[START] == span
        assert mine.of("db", 7, 99, 2, (at(5),))[START].changed == 0  # another image
        mine.keep(span.seen(at(5), large=False))
        assert journal.entries() == ()


def test_what_may_not_be_looked_at_is_not_forgotten(tmp_path: Path) -> None:
    """Without CAP_SYS_PTRACE the kernel says of the program nothing but 0."""
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    fields = ["S", *map(str, range(4, 22)), "99", "4096", "24", "25", "26", "27", "0", "29"]
    (folder / "stat").write_text(f"7 (db) {' '.join(fields)}\n")
    with Journal(tmp_path / "j") as journal:
        Ours(journal).keep(EMPTY.about_to(at(3), found_large=False, large=True, briefly=False))
        (undone,) = journal.restore({ours.KIND: partial(undo, root=tmp_path)}).undone
        assert (undone.outcome, "may not be looked at" in undone.problem) == ("failed", True), undone
        assert len(journal.entries()) == 1
        (folder / "stat").write_text(f"7 (db) {' '.join(['Z', *fields[1:]])}\n")
        (undone,) = journal.restore({ours.KIND: partial(undo, root=tmp_path)}).undone
        assert (undone.outcome, journal.entries()) == ("gone", ())
