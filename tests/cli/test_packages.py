"""`sustain packages` on this host, which has what it has, and `record` and `replay` of made-up ones."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from sustain.schedulers.packages.model import Observation
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.recording import Header, Recorder, Recording
from tests.cli.conftest import Ran
from tests.schedulers.packages.machine import Group, Machine

Sus = Callable[..., Ran]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A made-up host of two packages, seen for 20 minutes; its groups were never moved."""
    made = Machine(groups={"web": Group(use=0.5), "db": Group(use=1.0)})
    return recording(made, tmp_path / "seen.jsonl", 120)


def recording(made: Machine, path: Path, looks: int) -> Path:
    header = Header(
        scheduler="packages",
        sustain="0.1.0",
        host="made up",
        kernel="6.12",
        started="2026-01-31T12:00:00+00:00",
        period_s=10,
        policy=msgspec.to_builtins(Policy()),
    )
    with Recorder(path, header) as recorder:
        for _ in range(looks):
            made.run(10.0)
            recorder.write(made.look())
    return path


def test_what_is_recorded_is_what_was_seen(recorded: Path) -> None:
    made = Machine(groups={"web": Group(use=0.5), "db": Group(use=1.0)})
    for found in Recording(recorded, Observation, "packages"):
        made.run(10.0)
        seen = made.look()
        assert (found.now_s, found.packages, found.findings) == (seen.now_s, seen.packages, seen.findings)
        assert found.places == seen.places
        assert found.groups.name == seen.groups.name
        for name in ("used_s", "threads", "place", "memory_bytes"):
            assert getattr(found.groups, name).tolist() == getattr(seen.groups, name).tolist()
        for name in ("number", "package", "busy_s", "idle_s"):
            assert getattr(found.cpus, name).tolist() == getattr(seen.cpus, name).tolist()


def test_a_recording_is_replayed_with_another_policy(sus: Sus, recorded: Path, tmp_path: Path) -> None:
    ran = sus("replay", recorded)
    assert ran.status == 0, ran.err
    assert "120 observations; packages that would have been emptied: " in ran.out
    assert "emptied: none" not in ran.out
    config = tmp_path / "agent.toml"
    config.write_text('[packages]\n[packages.policy]\npack_after = "1h"\n')
    slow = sus("replay", recorded, "--config", config)
    assert "would have been emptied: none" in slow.out
    assert "it is worth emptying, and is emptied when" in slow.out


def test_replay_explains_a_package_or_a_group(sus: Sus, recorded: Path) -> None:
    text = sus("replay", recorded, "--guest", "1").out
    assert text.count("package         1: processors 8-15") == 120
    assert "group           db: a cgroup" in sus("replay", recorded, "--guest", "db").out
    ran = sus("replay", recorded, "--guest", "nobody")
    assert ran.status == 1
    assert "nobody: no such package or group" in ran.err


def test_a_replay_in_json_is_a_plan_for_each_observation(sus: Sus, recorded: Path) -> None:
    lines = [json.loads(line) for line in sus("replay", recorded, "--json").out.splitlines()]
    assert [each["after_s"] for each in lines] == [10.0 * number for number in range(120)]
    assert all("not saving because" in each["verdict"] for each in lines[:30])
    assert {action["type"] for each in lines for action in each["actions"]} == {"place"}
    (first,) = {each["trial"]["package"] for each in lines if each["trial"]}
    assert first in (0, 1)


def test_a_coordinated_host_says_why_nothing_is_done(sus: Sus, tmp_path: Path) -> None:
    made = Machine(groups={"web": Group(use=0.5)}, independence="coordinated", coordinated=True)
    text = sus("replay", recording(made, tmp_path / "seen.jsonl", 100)).out
    assert "coordinated here" in text
    assert "would have been emptied: none" in text
