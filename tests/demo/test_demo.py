"""`sustain demo` as a person calls it, small: two hosts, a kill, a takeover, a recount."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def demo(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sustain.cli", "demo", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.crash
def test_nothing_acknowledged_is_lost_and_every_word_is_right(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    made = demo("--json", "--max-files", "300", "--ttl", "1s", "--keep", str(kept))
    assert made.returncode == 0, made.stdout + made.stderr
    found: dict[str, Any] = json.loads(made.stdout)
    print(f"seed {found['seed']}")
    assert found["good"] is True
    assert found["files"] == found["lengths_compared"] == 300
    assert found["words_compared"] == found["distinct_words"] > 1000
    assert 0 < found["resumed_at_file"] < 300
    assert found["acknowledged_position"] <= found["epoch_start"]
    assert found["commits_taken_over"] <= found["primary_commits"]
    assert found["kill_to_first_commit_s"] > found["lease_wait_s"] > 0
    assert "took over" in found["takeover_report"]
    assert found["differences"] == []
    assert {"a", "b", "lease"} <= {path.name for path in kept.iterdir()}


@pytest.mark.crash
def test_an_outage_leaves_nothing_to_be_done_again() -> None:
    made = demo("--json", "--max-files", "300", "--ttl", "1s", "--how", "outage")
    assert made.returncode == 0, made.stdout + made.stderr
    found: dict[str, Any] = json.loads(made.stdout)
    print(f"seed {found['seed']}")
    assert found["good"] is True
    assert found["how"] == "outage"
    assert found["primary_position"] == found["standby_position"] == found["acknowledged_position"]
    assert found["unreplicated_commits"] == 0
    assert found["differences"] == []


def test_it_does_not_write_over_a_directory(tmp_path: Path) -> None:
    made = demo("--keep", str(tmp_path))
    assert made.returncode == 2
    assert made.stderr.startswith("error: ")
    assert "hint: " in made.stderr
