"""The example application: what it finds, and that killed at any moment it counts everything once."""

import gzip
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sustain
from sustain._native import Control
from sustain.demo.play import example_path, load_example
from sustain.demo.recount import compare, recount

example = load_example(example_path())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "doc"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("The cat, the hat. Größe\n")
    (root / "b.gz").write_bytes(gzip.compress(b"the end"))
    (root / "c").write_bytes(b"ELF\0\0binary words")
    (root / "d.gz").write_bytes(gzip.compress(b"cut off " * 999)[:40])
    (root / "e-link.txt").symlink_to("a.txt")
    (root / "f-hard.txt").hardlink_to(root / "a.txt")
    (root / "g-nowhere").symlink_to("missing")
    (root / "h.png").write_text("never looked at")
    (root / "i-dir").symlink_to("sub")
    (root / "j-long").write_text("x" * 65 + " short")
    (root / "sub" / "k").write_text("hat")
    (root / "sub" / "l-empty").write_text("")
    return root


def index(store: Path, root: Path, *more: str) -> int:
    return int(example.main([str(store), "--root", str(root), "--size", "8MiB", "--quiet", *more]))


def test_each_file_once_in_order_whatever_leads_to_it(folder: Path) -> None:
    plan = example.plan_files([folder], 100, 1 << 20)
    assert [Path(path).name for path in plan] == ["a.txt", "b.gz", "c", "d.gz", "j-long", "k"]


def test_bounds(folder: Path) -> None:
    assert len(example.plan_files([folder], 2, 1 << 20)) == 2
    assert [Path(path).name for path in example.plan_files([folder], 100, 30)] == ["a.txt", "k"]


def test_counts_words_skips_what_is_no_text_and_says_so(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "docs.sus"
    assert index(store, folder) == 0
    with sustain.open(store, readonly=True) as opened:
        counts = {word: int.from_bytes(count, "little") for word, count in opened.map("words").items()}
        assert counts == {
            b"the": 3, b"cat": 1, b"hat": 2, "größe".encode(): 1, b"end": 1, b"short": 1
        }  # fmt: skip
        assert opened.array("lengths").tolist() == [5, 2, 0, 0, 1, 1]
        summary = example.Index(opened).summary()
    assert (summary["indexed"], summary["binary"], summary["unreadable"]) == (4, 1, 1)


def test_a_second_run_counts_nothing_again(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "docs.sus"
    index(store, folder)
    index(store, folder)
    with sustain.open(store, readonly=True) as opened:
        assert opened.map("words")[b"the"] == (3).to_bytes(8, "little")
        assert len(opened.map("starts")) == 2


def test_without_a_store_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUSTAIN_STORE", raising=False)
    with pytest.raises(SystemExit) as stop:
        example.main([])
    assert stop.value.code == 2


def test_a_file_that_is_not_a_store_is_one_error_with_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "no-store"
    path.write_text("hello")
    assert example.main([str(path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.crash
def test_killed_at_random_moments_it_counts_each_file_exactly_once(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    root = tmp_path / "doc"
    root.mkdir()
    vocabulary = [f"w{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10]}" for n in range(100)]
    for number in range(400):
        text = " ".join(source.choices(vocabulary, k=source.randrange(1, 400)))
        (root / f"{number:04}").write_text(text)
    store = tmp_path / "docs.sus"
    words = [
        sys.executable,
        str(example_path()),
        str(store),
        "--root",
        str(root),
        "--size",
        "8MiB",
        "--quiet",
    ]
    kills = 0
    for _ in range(100):
        # SIGKILL some commits after those that the last one left, wherever that is in the work.
        wanted = _commits(store) + source.randrange(1, 80)
        process = subprocess.Popen(words)
        deadline = time.monotonic() + 60
        while process.poll() is None and _commits(store) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.0002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        else:
            assert process.returncode == 0
            break
    assert kills >= 3
    truth = recount(example.plan_files([root], 2000, 32 << 20), lambda done: None)
    with sustain.open(store, readonly=True) as opened:
        verdict = compare(dict(opened.map("words").items()), opened.array("lengths").tolist(), truth)
    assert verdict.same, verdict.differences


def _commits(store: Path) -> int:
    try:
        control = Control(str(store))
    except sustain.SustainError:
        return 0
    words = control.words()
    control.close()
    return 0 if words is None else words["commit_seq"]
