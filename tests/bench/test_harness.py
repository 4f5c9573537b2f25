"""The harness: who runs when, and what counts as met."""

import subprocess
import sys
from pathlib import Path

from bench.harness import Answer, interleave, medians, memory_dir, percentile
from bench.report import render


def answer(ours: float = 2.0, *, quick: bool = False) -> Answer:
    return Answer("q", "µs", ours, {"peer": 4.0, "absent": None}, {"limit": 1.0}, runs=3, quick=quick)


def test_every_contender_runs_once_a_round_and_the_first_changes() -> None:
    ran: list[str] = []

    def contender(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    figures = interleave(3, {name: lambda name=name: contender(name) for name in "abc"})
    assert ran == list("abc" + "bca" + "cab")
    assert figures["a"] == [1.0, 6.0, 8.0]
    assert medians(figures)["a"] == 6.0


def test_ratio_is_ours_divided_by_each_that_was_measured() -> None:
    assert answer().ratio == {"peer": 0.5, "limit": 2.0}


def test_met_only_when_all_of_the_reach_is() -> None:
    asked = answer()
    asked.ask("half", asked.ratio["peer"], lambda ratio: ratio <= 0.5)
    assert asked.met is True
    asked.ask("unknown", None, lambda ratio: True)
    assert asked.met is None
    asked.ask("a tenth", asked.ratio["peer"], lambda ratio: ratio <= 0.1)
    assert asked.met is False


def test_a_smoke_run_judges_nothing() -> None:
    asked = answer(quick=True)
    asked.ask("a tenth", 1.0, lambda ratio: ratio <= 0.1)
    assert asked.met is None


def test_nearest_rank_percentiles() -> None:
    values = list(range(1, 101))
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile([7], 99) == 7


def test_text_names_what_is_not_met_and_what_is_missing() -> None:
    asked = answer()
    asked.missing["absent"] = "not installed"
    asked.ask("a tenth", 0.5, lambda ratio: ratio <= 0.1)
    text = render("name", asked)
    assert "NOT MET" in text
    assert "missing: absent: not installed" in text
    assert "unknown" in text


def test_what_a_killed_run_has_left_in_memory_goes_with_the_next() -> None:
    code = "from bench.harness import memory_dir\nwith memory_dir() as path: print(path, flush=True); input()"
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        left = Path(run.stdout.readline().strip())
        with memory_dir():
            assert left.is_dir()  # its run goes on
        run.kill()
    assert left.is_dir()
    with memory_dir() as path:
        assert not left.exists()
        assert path.is_dir()
    assert not path.exists()
