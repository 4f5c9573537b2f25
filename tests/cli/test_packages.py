"""`sustain packages` on this host, which has what it has, and `record` and `replay` of made-up ones."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sustain.agent.http import get
from sustain.cli import packages_text
from sustain.clock import SystemClock
from sustain.host import firmware, topology
from sustain.schedulers.loop import Tick
from sustain.schedulers.packages import active
from sustain.schedulers.packages.findings import Findings
from sustain.schedulers.packages.model import Finding, Observation
from sustain.schedulers.packages.plan import Plan
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.scheduler import Packages
from sustain.schedulers.packages.sense import Host
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


# On this host, whatever it has. The agent is nowhere.


@pytest.fixture
def config(tmp_path: Path, held: int) -> Path:
    """A process is a group."""
    path = tmp_path / "agent.toml"
    path.write_text(
        f"""
[agent]
listen = ""
state_dir = "{tmp_path}/state"

[packages]
period = "1s"

[[packages.groups]]
name = "held"
pid = {held}

[packages.policy]
pack_after = "1s"
spread_after = "500ms"
average = "1s"
"""
    )
    return path


@pytest.fixture
def held() -> Iterator[int]:
    """A process that waits, and may use all processors."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_status_says_what_is_measurable_here_and_why_not(sus: Sus, config: Path) -> None:
    ran = sus("packages", "status", "--config", config, "--interval", "1s", "--json")
    assert ran.status == 0, ran.err
    found = ran.json
    assert (found["from"], found["acts"]) == ("here", False)
    assert found["plan"]["verdict"].startswith("not saving because")
    assert len(found["plan"]["packages"]) == len(found["host"]["packages"]) >= 1
    text = sus("packages", "status", "--config", config, "--interval", "1s").out
    assert found["plan"]["verdict"].split(":")[0] in text
    for each in found["host"]["packages"]:
        if each["source"] == "none":
            assert any("idle states: not measurable here, because" in said for said in each["problems"])
        if each["power_source"] == "none":
            assert any("watts: not measurable here, because" in said for said in each["problems"])
            assert f"package {each['number']}: its watts: not measurable here" in text
            assert found["plan"]["totals"]["power_w"] is None
    assert "nothing that was measured" in text


def test_a_plan_of_this_host_has_its_reasons(sus: Sus, config: Path) -> None:
    ran = sus("packages", "plan", "--config", config, "--interval", "1s")
    assert ran.status == 0, ran.err
    assert "nothing is to be moved" in ran.out
    assert "package 0: " in ran.out
    assert "from here: nothing is moved" in ran.out


def test_a_package_and_a_group_are_explained(sus: Sus, config: Path) -> None:
    words = ("--config", config, "--interval", "1s")
    assert "package         0: processors" in sus("packages", "explain", "0", *words).out
    text = sus("packages", "explain", "held", *words).out
    assert "group           held: a process, 1 threads" in text
    sus("packages", "explain", "nobody", *words).failed_with("nobody: no such package or group")
    sus("packages", "explain", "99", *words).failed_with("package 99: there is none")


def test_groups_can_be_named_on_the_command_line(sus: Sus, config: Path, held: int) -> None:
    words = ("--config", config, "--interval", "1s")
    ran = sus("packages", "status", "--pid", held, *words, "--json")
    assert ran.json["plan"]["totals"]["groups"] == 1
    assert f"group           {held}: a process" in sus("packages", "explain", held, "--pid", held, *words).out


def test_what_cannot_be_meant_is_one_line(sus: Sus, config: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    sus("packages", "run", "--config", empty).failed_with("no group is named", status=2)
    sus("packages", "status", "--config", tmp_path / "none").failed_with("No such file", status=2)
    sus("packages", "status", "--cgroup", "/", "--config", empty).failed_with("root cgroup", status=2)
    sus("packages", "run", "--period", "1ms", "--config", config).failed_with("less than a second", status=2)
    sus("packages", "what").failed_with("invalid choice", status=2)
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(config.read_text().replace("average", "averige"))
    sus("packages", "plan", "--config", wrong).failed_with("packages.policy.averige: no such key", status=2)


def test_a_run_says_what_it_came_to(sus: Sus, config: Path) -> None:
    ran = sus("packages", "run", "--config", config, "--for", "2500ms", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["ticks"] >= 2
    assert ran.json["totals"]["groups"] == 1
    assert ran.json["left"] == []


def test_what_is_recorded_here_can_be_replayed(sus: Sus, config: Path, tmp_path: Path) -> None:
    file = tmp_path / "here.jsonl"
    words = ("--config", config, "--scheduler", "packages", "--for", "2500ms")
    ran = sus("record", file, *words, "--json")
    assert ran.status == 0, ran.err
    assert (ran.json["scheduler"], ran.json["period_s"]) == ("packages", 1)
    observations = list(Recording(file, Observation, "packages"))
    assert len(observations) == ran.json["observations"] >= 2
    assert all(each.groups.name == ("held",) for each in observations)
    assert "Nothing reacted" in sus("replay", file).out


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it takes two processors")
def test_a_run_that_is_ended_puts_everything_back(sus: Sus, config: Path, held: int, tmp_path: Path) -> None:
    """SIGTERM while a group is kept on one of two packages (made up: two processors of this machine)."""
    before = os.sched_getaffinity(held)
    with here("run", "--config", str(config)) as process:
        wait_until(lambda: os.sched_getaffinity(held) != before, process)
        assert len(os.sched_getaffinity(held)) == 1
        # What runs puts back itself: that is an error only where it is named.
        sus("agent", "restore", "--config", config).failed_with("packages.journal")
        assert sus("agent", "restore", "--config", bare(tmp_path)).out == "nothing to put back\n"
        assert len(os.sched_getaffinity(held)) == 1
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert os.sched_getaffinity(held) == before
    assert "put back 1 of 1 changes: the scheduler stops" in error
    assert "of which 0 did not come off" in out


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it takes two processors")
def test_what_a_killed_run_has_left_is_put_back(sus: Sus, config: Path, held: int, tmp_path: Path) -> None:
    before = os.sched_getaffinity(held)
    with here("run", "--config", str(config)) as process:
        wait_until(lambda: os.sched_getaffinity(held) != before, process)
        process.kill()
    assert os.sched_getaffinity(held) != before
    ran = sus("agent", "restore", "--config", bare(tmp_path), "--json")  # there is the journal
    assert ran.status == 0, ran.err
    assert [each["outcome"] for each in ran.json["undone"]] == ["restored"]
    assert os.sched_getaffinity(held) == before


def test_check_names_the_groups(sus: Sus, config: Path) -> None:
    ran = sus("agent", "check", "--config", config, "--json")
    assert ran.json["schedulers"] == [{"name": "packages", "period_s": 1, "groups": ["held"]}]
    assert "every 1 s: held" in sus("agent", "check", "--config", config).out


def test_a_running_agent_is_asked_and_measured(sus: Sus, config: Path, tmp_path: Path) -> None:
    socket = tmp_path / "agent"
    config.write_text(config.read_text().replace('listen = ""', f'listen = "unix:{socket}"'))
    command = [sys.executable, "-m", "sustain.cli", "agent", "--dry-run", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as agent:

        def asked(*words: object) -> Ran | None:
            ran = sus("packages", *words, "--config", config, "--interval", "100ms", "--json")
            return ran if ran.status == 0 and ran.json["from"] == "agent" else None

        wait_until(lambda: asked("status") is not None, agent)
        ran = asked("status")
        assert ran is not None
        assert ran.json["acts"] is False
        assert ran.json["plan"]["verdict"].startswith("not saving because")
        text = sus("packages", "status", "--config", config).out
        assert text.startswith("from the agent (dry run), ")
        explained = asked("explain", "held")
        assert explained is not None
        assert "group           held" in explained.json["text"]
        nobody = sus("packages", "explain", "nobody", "--config", config)
        nobody.failed_with("nobody: no such package or group")
        page = get(str(socket), "/metrics").body.decode()
        assert "sustain_packages_groups 1.0" in page
        assert 'sustain_package_capacity_processors{package="0"}' in page
        agent.send_signal(signal.SIGTERM)
        _, error = agent.communicate(timeout=60)
    assert agent.returncode == 0, error


def test_doctor_says_what_this_host_offers(sus: Sus) -> None:
    found = {each["name"]: each for each in sus("packages", "doctor", "--json").json["findings"]}
    assert {"packages", "idle states of packages", "energy of packages", "rights"} <= set(found)
    assert found["packages"]["found"] in sus("packages", "doctor").out


# What is said of hosts that this one is not.


def test_the_text_of_a_host_that_saves() -> None:
    made = Machine(
        groups={"web": Group(use=0.5), "rt": Group(use=0.0, realtime=1)},
        policy=Policy(pack_after_s=30.0, spread_after_s=10.0, window_s=40.0, settle_s=10.0, pairs=1),
    )
    data = answered(made, 1200.0)
    text = packages_text.status(data)
    assert "1 of 2 packages are kept empty" in text
    assert "pc6 independent" in text
    assert "by what trials measured" in text
    assert "1 groups are not moved: they have real-time threads (rt)" in text
    row = next(line for line in text.splitlines() if line.rstrip().endswith("yes"))
    assert "parked" in row
    assert f"{data['plan']['packages'][int(row.split()[0])]['power_w']:.1f} W" in row


def test_the_text_of_a_host_that_counts_nothing() -> None:
    text = packages_text.status(answered(Machine(counters=False, watts=False, independence=None), 60.0))
    rows = [line for line in text.splitlines() if line.startswith(("0 ", "1 "))]
    assert all(line.count("not measurable") == 2 for line in rows)
    assert "watts    not measurable" in text
    assert "nothing that was measured" in text


def test_a_plan_in_words_has_its_trial_and_what_did_not_come_off() -> None:
    made = Machine(groups={"web": Group(use=0.5)}, policy=Policy(pack_after_s=30.0, spread_after_s=10.0))
    made.refuse.add("web")
    for _ in range(200):
        plan = made.tick()
        if plan.actions:
            break
    data = answer(made, plan)
    text = packages_text.plan(data)
    assert "web: place (pack) on packages 1, with its memory: package 0 is emptied" in text
    assert "is on trial: pack for" in text
    assert "did not come off: web: refused: as the test wants it" in text


def answered(made: Machine, seconds: float) -> dict[str, Any]:
    return answer(made, made.ticks(seconds)[-1])


def answer(made: Machine, plan: Plan) -> dict[str, Any]:
    """As the agent says it."""
    scheduler = Packages(made.policy, 10.0, _Eyes(made), None)
    tick: Any = Tick(1, made.now_s, made.state, plan.seen, plan, made.effects)
    about = {"from": "agent", "acts": True, "age_s": 1.0, "problem": None}
    return about | scheduler.ask("plan", {}, tick)


class _Eyes:
    def __init__(self, made: Machine) -> None:
        self.findings = Findings(None, "", SystemClock())
        self.host = Host("", "a made-up host", virtual=False)
        self._made = made

    def read(self, parked: Collection[int] = frozenset()) -> Observation:
        return self._made.look()

    def close(self) -> None:
        """Nothing is held."""


# The active test.


def test_a_test_that_could_say_nothing_is_refused(sus: Sus, config: Path) -> None:
    known = topology.read()
    if len(known.packages) > 1 and not firmware.identify().virtual:
        pytest.skip("this host could be tested")
    sus("packages", "test", "--config", config).failed_with("this host")
    sus("packages", "test", "--config", config, "--repeats", "0").failed_with("too short", status=2)


def test_what_a_test_finds_is_told_and_kept(
    sus: Sus, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host is made up; how it is tested is in tests/schedulers/packages."""
    finding = Finding(
        package=1,
        state="pc6",
        independence="coordinated",
        how="active test",
        detail="in it for 0.1% while another package worked, 93.0% with all idle",
        parked_w=1.2,
        parked_error_w=0.4,
    )
    asked: dict[str, Any] = {}

    def run(host: object, **words: Any) -> active.Tested:
        asked.update(words)
        return active.Tested((finding,), (active.Window(seconds=2.0),) * 3, 1)

    monkeypatch.setattr(active, "run", run)
    ran = sus("packages", "test", "--config", config, "--window", "2s", "--repeats", "3", "--json")
    assert ran.status == 0, ran.err
    assert (asked["window_s"], asked["repeats"]) == (2, 3)
    assert ran.json["findings"][0]["independence"] == "coordinated"
    file = tmp_path / "state" / "packages-findings.json"
    assert ran.json["kept"] == str(file)
    assert "in it for 0.1%" in file.read_text()
    text = sus("packages", "test", "--config", config).out
    assert "coordinated  1.2 ± 0.4 W" in text
    assert "1 of them made again" in text
    # Who looks next knows it.
    ran = sus("packages", "status", "--config", config, "--interval", "100ms", "--json")
    assert [each["state"] for each in ran.json["plan"]["findings"]] == ["pc6"]


def bare(directory: Path) -> Path:
    """A configuration without a section."""
    found = directory / "bare.toml"
    found.write_text(f'[agent]\nstate_dir = "{directory}/state"\n')
    return found


def here(*words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.cli.packages_here", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(done: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """While that process runs, for at most 60 s."""
    end_s = time.monotonic() + 60
    while not done():
        if process.poll() is not None or time.monotonic() > end_s:
            process.kill()
            raise AssertionError("\n".join(process.communicate()))
        time.sleep(0.05)
