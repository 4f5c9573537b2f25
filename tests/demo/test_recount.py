"""The judge of the demo: it must see every kind of difference, or its verdict means nothing."""

import gzip
from pathlib import Path

import pytest

from sustain.demo.recount import Recount, compare, recount


@pytest.fixture
def truth(tmp_path: Path) -> Recount:
    plain, packed, binary = tmp_path / "plain", tmp_path / "packed.gz", tmp_path / "binary"
    plain.write_text("One two, TWO; größe's x9y\n" + "z" * 65)
    packed.write_bytes(gzip.compress(b"two three"))
    binary.write_bytes(b"\0two")
    return recount([str(path) for path in (plain, packed, binary, tmp_path / "missing")], lambda done: None)


def stored(truth: Recount) -> dict[bytes, bytes]:
    return {word: count.to_bytes(8, "little") for word, count in truth.words.items()}


def test_counts_by_the_definition_of_a_word(truth: Recount) -> None:
    assert dict(truth.words) == {
        b"one": 1, b"two": 3, "größe".encode(): 1, b"s": 1, b"x": 1, b"y": 1, b"three": 1
    }  # fmt: skip
    assert truth.lengths == [7, 2, 0, 0]
    assert truth.skipped == 2


def test_the_same_is_the_same(truth: Recount) -> None:
    verdict = compare(stored(truth), truth.lengths, truth)
    assert verdict.same
    assert (verdict.words_compared, verdict.lengths_compared) == (7, 4)


def test_a_word_counted_twice_is_seen(truth: Recount) -> None:
    words = stored(truth) | {b"two": (4).to_bytes(8, "little")}
    assert compare(words, truth.lengths, truth).differences == (
        "word b'two': 4 in the store, 3 in the files",
    )


def test_a_word_that_is_missing_or_made_up_is_seen(truth: Recount) -> None:
    words = stored(truth)
    del words[b"three"]
    words[b"four"] = (1).to_bytes(8, "little")
    assert len(compare(words, truth.lengths, truth).differences) == 2


def test_a_wrong_or_missing_length_is_seen(truth: Recount) -> None:
    assert not compare(stored(truth), [7, 2, 1, 0], truth).same
    assert not compare(stored(truth), [7, 2, 0], truth).same


def test_many_differences_are_cut_short(truth: Recount) -> None:
    words = {b"extra%d" % number: bytes(7) + b"\1" for number in range(50)}
    assert len(compare(words, truth.lengths, truth).differences) == 21
