"""The journal: what was noted survives any end of its process, and only what is still ours is put back."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sustain.errors import JournalBusy, JournalError
from sustain.schedulers import journal as journals
from sustain.schedulers.journal import Entry, Journal, Outcome, Undo, Value, put_back

GUEST: dict[str, Value] = {"guest": "a", "life": "1:1"}


def undo_of(values: dict[str, Value]) -> Undo:
    """Puts back plain values that lie in a dict."""

    def undo(entry: Entry) -> Outcome:
        return put_back(entry, lambda: values.get(entry.key), lambda value: values.update({entry.key: value}))

    return undo


def outcomes(journal: Journal, values: dict[str, Value]) -> dict[str, str]:
    report = journal.restore({"value": undo_of(values)})
    return {each.entry.key: each.outcome for each in report.undone}


def test_the_first_prior_value_is_what_is_put_back(tmp_path: Path) -> None:
    values: dict[str, Value] = {"a": 10}
    with Journal(tmp_path / "j") as journal:
        for new in (9, 8, 7):
            journal.note("a", "value", GUEST, values["a"], new)
            values["a"] = new
    with Journal(tmp_path / "j") as journal:
        assert outcomes(journal, values) == {"a": "restored"}
        assert journal.entries() == ()
    assert values == {"a": 10}


def test_what_somebody_else_has_set_since_is_left_alone(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.note("a", "value", GUEST, 10, 9)
        journal.note("gone", "value", GUEST, 10, 9)
        values: dict[str, Value] = {"a": 5}
        assert outcomes(journal, values) == {"a": "changed", "gone": "gone"}
        assert values == {"a": 5}
        assert journal.entries() == ()


@pytest.mark.parametrize("reached", [10, 8, 7])
def test_death_between_noting_and_setting(tmp_path: Path, reached: int) -> None:
    """7 was noted; the value may still be the one set before, or the very first."""
    with Journal(tmp_path / "j") as journal:
        journal.note("a", "value", GUEST, 10, 8)
        journal.note("a", "value", GUEST, 8, 7)
    values: dict[str, Value] = {"a": reached}
    with Journal(tmp_path / "j") as journal:
        assert outcomes(journal, values) == {"a": "restored"}
    assert values == {"a": 10}


def test_another_life_of_a_guest_has_another_prior_value(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.note("a", "value", GUEST, 10, 8)
        journal.note("a", "value", {**GUEST, "life": "2:2"}, 20, 15)
        (entry,) = journal.entries()
        assert (entry.prior, entry.sets, entry.target["life"]) == (20, (15,), "2:2")


def test_who_lost_its_key_to_another_that_lives_is_kept_aside_until_it_has_it_again(tmp_path: Path) -> None:
    def aside(entry: Entry) -> str:
        return f"{entry.key}@{entry.target['life']}"

    other = {**GUEST, "life": "2:2"}
    with Journal(tmp_path / "j") as journal:
        journal.note("a", "value", GUEST, 10, 8, aside)
        journal.note("a", "value", other, 20, 15, aside)
        journal.note("a", "value", other, 15, 14, aside)
    with Journal(tmp_path / "j") as journal:
        found = {entry.key: (entry.prior, entry.sets, entry.target["life"]) for entry in journal.entries()}
        assert found == {"a@1:1": (10, (8,), "1:1"), "a": (20, (14, 15), "2:2")}
        journal.note("a", "value", GUEST, 8, 7, aside)
    with Journal(tmp_path / "j") as journal:
        found = {entry.key: (entry.prior, entry.sets, entry.target["life"]) for entry in journal.entries()}
        assert found == {"a": (10, (7, 8), "1:1"), "a@2:2": (20, (14, 15), "2:2")}


def test_what_cannot_be_put_back_stays_for_the_next_time(tmp_path: Path) -> None:
    def broken(entry: Entry) -> Outcome:
        raise OSError("nobody answers") if entry.key == "a" else ZeroDivisionError("defect")

    with Journal(tmp_path / "j") as journal:
        journal.note("a", "value", GUEST, 10, 9)
        journal.note("b", "unheard-of", GUEST, 10, 9)
        journal.note("c", "value", GUEST, 10, 9)
        report = journal.restore({"value": broken})
        assert [each.problem for each in report.failed] == [
            "nobody answers",
            "nothing here puts back a unheard-of",
            "unexpected ZeroDivisionError: defect",
        ]
    with Journal(tmp_path / "j") as journal:
        assert [entry.key for entry in journal.entries()] == ["a", "b", "c"]


@pytest.mark.parametrize("again", [9, 7])
def test_what_is_noted_while_it_is_put_back_is_kept(tmp_path: Path, again: int) -> None:
    values: dict[str, Value] = {"a": 9, "b": 9}
    b_is_forgotten = threading.Event()

    class Watched(Journal):
        def forget(self, key: str, entry: Entry | None = None) -> None:
            super().forget(key, entry)
            if key == "b":
                b_is_forgotten.set()

    def undo(entry: Entry) -> Outcome:
        outcome = undo_of(values)(entry)
        if entry.key == "a":
            assert b_is_forgotten.wait(30)  # each at once, not when all are done
            journal.note("a", "value", GUEST, 10, again)
            values["a"] = again
        return outcome

    with Watched(tmp_path / "j") as journal:
        for key in "ab":
            journal.note(key, "value", GUEST, 10, 9)
        assert [each.outcome for each in journal.restore({"value": undo}).undone] == ["restored"] * 2
    with Journal(tmp_path / "j") as journal:
        assert [entry.key for entry in journal.entries()] == ["a"]
        assert outcomes(journal, values) == {"a": "restored"}
    assert values == {"a": 10, "b": 10}


def test_what_cannot_be_forgotten_is_said_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    values: dict[str, Value] = {"a": 9}
    with Journal(tmp_path / "j") as journal:
        journal.note("a", "value", GUEST, 10, 9)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            (failed,) = journal.restore({"value": undo_of(values)}).failed
        assert "restored, and cannot be forgotten" in failed.problem
        assert outcomes(journal, values) == {"a": "restored"}
    assert values == {"a": 10}


def test_one_that_hangs_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    others, done = threading.Barrier(4, timeout=30), []

    def undo(entry: Entry) -> Outcome:
        others.wait()  # all four at once, or nobody comes back
        done.append(entry.key)
        return "restored"

    with Journal(tmp_path / "j") as journal:
        for key in "abcd":
            journal.note(key, "value", GUEST, 10, 9)
        journal.restore({"value": undo})
    assert sorted(done) == list("abcd")


operations = st.lists(
    st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 5))), min_size=1, max_size=12
)


@settings(max_examples=50)
@given(operations)
def test_cut_off_anywhere_it_is_what_it_was_at_some_line(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int | None]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    seen = {}
    with Journal(path) as journal:
        boot = journal._boot_id
        seen[path.stat().st_size] = {entry.key: entry for entry in journal.entries()}
        for key, new in steps:
            if new is None:
                journal.forget(key)
            else:
                journal.note(key, "value", GUEST, 10, new)
            seen[path.stat().st_size] = {entry.key: entry for entry in journal.entries()}
    data = path.read_bytes()
    for end in range(min(seen), len(data) + 1):
        path.write_bytes(data[:end])
        assert journals.read(path, boot) == seen[max(size for size in seen if size <= end)]


def test_a_journal_of_another_boot_is_void(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.note("a", "value", GUEST, 10, 9)
    other = tmp_path / "proc/sys/kernel/random"
    other.mkdir(parents=True)
    (other / "boot_id").write_text("another\n")
    with Journal(tmp_path / "j", root=str(tmp_path)) as journal:
        assert journal.entries() == ()
    assert b'"a"' not in (tmp_path / "j").read_bytes()


def test_damage_before_the_end_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.note("a", "value", GUEST, 10, 9)
        journal.note("b", "value", GUEST, 10, 9)
    lines = (tmp_path / "j").read_bytes().split(b"\n")
    lines[1] = lines[1][:-4]
    damaged = b"\n".join(lines)
    (tmp_path / "j").write_bytes(damaged)
    with pytest.raises(JournalError, match="line 2"):
        Journal(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == damaged


@pytest.mark.parametrize("text", ['{"x": 1}\n', "{}\n", '{"journal": 99, "boot_id": ""}\n', "hello\n"])
def test_what_is_not_a_journal_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "j").write_text(text)
    with pytest.raises(JournalError) as caught:
        Journal(tmp_path / "j")
    assert caught.value.hint
    assert (tmp_path / "j").read_text() == text


def test_one_process_at_a_time(tmp_path: Path) -> None:
    holder = (
        "import sys; from sustain.schedulers.journal import Journal\n"
        "j = Journal(sys.argv[1]); j.note('a', 'value', {}, 10, 9); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "j")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(JournalBusy):
            Journal(tmp_path / "j")
        process.kill()
    with Journal(tmp_path / "j") as journal:
        assert [entry.key for entry in journal.entries()] == ["a"]


def test_a_disk_that_is_full_is_an_error_before_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.note("a", "value", GUEST, 10, 9)

        def full(fd: int, data: memoryview, at: int) -> int:
            real(fd, data[:5], at)
            raise OSError(28, "No space left on device")

        real = os.pwrite
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(JournalError, match="No space") as caught:
                journal.note("b", "value", GUEST, 10, 9)
        assert caught.value.hint
        journal.note("c", "value", GUEST, 10, 9)
    with Journal(tmp_path / "j") as journal:
        assert [entry.key for entry in journal.entries()] == ["a", "c"]


def test_a_long_life_does_not_make_a_long_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for new in range(6000):
            journal.note("a", "value", GUEST, 10, new)
        assert (tmp_path / "j").stat().st_size < 300 << 10
    with Journal(tmp_path / "j") as journal:
        (entry,) = journal.entries()
        assert (entry.prior, entry.sets) == (10, (5999, 5998))
