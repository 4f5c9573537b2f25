"""`sustain pages` over a real process of this host; where this kernel cannot count, that is what is told."""

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest

from sustain.agent import config as agent_config
from sustain.agent.http import get
from sustain.cli import pages, pages_doctor
from sustain.cli.doctor import Finding
from sustain.cli.doctor_pages import page_findings
from sustain.host import page_idle
from sustain.host.processes import start_ticks
from sustain.schedulers.journal import Entry, Journal
from sustain.schedulers.large_pages import heat_png, ours
from sustain.schedulers.large_pages.model import BLOCK_BYTES, Observation
from sustain.schedulers.large_pages.ours import Span
from sustain.schedulers.loop import Loop
from sustain.schedulers.recording import Recorder, Recording, read_header
from tests import threads
from tests.cli.conftest import Ran
from tests.schedulers.large_pages.touching import Toucher, touching

pytestmark = pytest.mark.usefixtures("large_pages_are_to_be_had")  # several of these map large

Sus = Callable[..., Ran]
_SOON = ("--period", "1s", "--for", "1s", "--here")


@pytest.fixture
def config(tmp_path: Path, held: Toucher) -> Path:
    """A configuration in which that process is a target, with a state directory of its own."""
    path = tmp_path / "agent.toml"
    path.write_text(
        f"""
[agent]
listen = ""
state_dir = "{tmp_path}/state"

[large_pages]
period = "1s"
count_period = "1s"

[[large_pages.targets]]
name = "held"
pid = {held.pid}

[large_pages.policy]
budget = "8MiB"
"""
    )
    return path


@pytest.fixture
def held() -> Iterator[Toucher]:
    with touching([512] * 4) as found:
        yield found


def test_status_tells_of_the_blocks_that_are_there(sus: Sus, config: Path, held: Toucher) -> None:
    ran = sus("pages", "status", "--config", config, *_SOON, "--json")
    assert ran.status == 0
    (target,) = ran.json["plan"]["targets"]
    assert (target["name"], target["pid"], target["phase"]) == ("held", held.pid, 1)
    assert target["blocks"] >= 4
    assert ran.json["plan"]["totals"]["budget"] == 4
    text = sus("pages", "status", "--config", config, *_SOON).out
    assert "a budget of 4" in text
    assert "1: counts" in text


def test_a_plan_in_phase_one_does_nothing(sus: Sus, config: Path) -> None:
    text = sus("pages", "plan", "--config", config, *_SOON).out
    assert "nothing is to be done" in text
    assert "blocks counted only" in text


def test_a_target_and_its_blocks_are_explained(sus: Sus, config: Path, held: Toucher) -> None:
    assert f"process {held.pid}" in sus("pages", "explain", "held", "--config", config, *_SOON).out
    found = sus("pages", "explain", "held", f"{held.start:#x}", "--config", config, *_SOON).out
    assert f"block           {held.start:#x} of held" in found
    assert "512 pages" in found
    sus("pages", "explain", "held", "0x1000", "--config", config, *_SOON).failed_with("held", "0x0")
    sus("pages", "explain", "other", "--config", config, *_SOON).failed_with("other: no such target")
    sus("pages", "explain", "held", "here", "--config", config, *_SOON).failed_with("'here'", status=2)


def test_a_map_is_text_or_a_drawing(sus: Sus, config: Path, tmp_path: Path) -> None:
    text = sus("pages", "map", "held", "--config", config, *_SOON).out
    assert "of 512 pages accessed" in text
    drawing = tmp_path / "map.svg"
    ran = sus("pages", "map", "held", "--svg", drawing, "--config", config, *_SOON, "--json")
    assert ran.json["blocks"] >= 4
    assert ET.parse(drawing).getroot().tag.endswith("svg")
    picture = tmp_path / "map.png"
    assert sus("pages", "map", "held", "--png", picture, "--config", config, *_SOON).out.startswith(
        f"{picture}: "
    )
    assert picture.read_bytes().startswith(heat_png.SIGNATURE)
    words = ("--png", picture, "--svg", drawing)
    sus("pages", "map", "held", *words, "--config", config).failed_with("not allowed with", status=2)


def test_processes_can_be_named_on_the_command_line(sus: Sus, held: Toucher, config: Path) -> None:
    ran = sus("pages", "status", "--pid", held.pid, "--config", config, *_SOON, "--json")
    assert [each["name"] for each in ran.json["plan"]["targets"]] == [str(held.pid)]


def test_without_a_process_there_is_nothing_to_look_at(sus: Sus, tmp_path: Path) -> None:
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    sus("pages", "status", "--config", empty, *_SOON).failed_with("no process is named", status=2)


def test_a_run_says_what_it_came_to_with_the_workloads_own_metric(
    sus: Sus, config: Path, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    script = tmp_path / "metric"
    script.write_text(f'#!/bin/sh\necho x >> {count}\necho "done: $(wc -l < {count})"\n')
    script.chmod(0o755)
    ran = sus("pages", "run", "--config", config, "--for", "1s", "--metric", script, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["metric"] == {"command": str(script), "before": 1.0, "after": 2.0}
    assert ran.json["ticks"] >= 1
    assert ran.json["totals"]["blocks"] >= 4


def test_a_run_that_is_told_to_end_while_it_measures_puts_everything_back(
    config: Path, tmp_path: Path
) -> None:
    """It waits for the metric then, and a thread of NumPy's would take the signal."""
    script = tmp_path / "metric"
    script.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/once ] && kill -TERM $PPID\ntouch {tmp_path}/once\necho 1\n"
    )
    script.chmod(0o755)
    words = ["pages", "run", "--config", config, "--for", "1s", "--metric", script, "--json"]
    ran = subprocess.run(
        [sys.executable, "-m", "sustain.cli", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["left"] == []


@pytest.mark.parametrize("command", ["echo none", "false", "/nowhere/at/all", "true", "echo '"])
def test_a_metric_that_is_no_number_is_refused_before_anything_is_done(
    sus: Sus, config: Path, command: str
) -> None:
    ran = sus("pages", "run", "--config", config, "--for", "1s", "--metric", command)
    ran.failed_with("--metric", status=2)


def test_doctor_says_what_is_missing_and_what_enables_it(sus: Sus, tmp_path: Path) -> None:
    ran = sus("pages", "doctor", "--json")
    assert ran.status == 0
    by_name = {each["name"]: each for each in ran.json["findings"]}
    assert by_name["rights"]["state"] == ("ok" if os.geteuid() == 0 else "missing")
    assert all(each["enable"] for each in ran.json["findings"] if each["state"] in ("missing", "reduced"))
    bare = pages_doctor.look(tmp_path, 1000)
    states = {each["name"]: each["state"] for each in bare}
    assert states["exact counts"] == states["estimated counts"] == "missing"
    assert states["small at the start"] == "missing"


def test_sustain_doctor_says_it_in_short(sus: Sus, tmp_path: Path) -> None:
    ran = sus("doctor", tmp_path, "--json")
    said = {each["name"]: each for each in ran.json["systems"]["large_pages"]}
    full = {each["name"]: each for each in sus("pages", "doctor", "--json").json["findings"]}
    for name in ("exact counts", "estimated counts", "what is large", "small at the start"):
        assert {key: said[name][key] for key in full[name]} == full[name]
        assert said[name]["means"]
    states = {each.name: each.state for each in page_findings(tmp_path, 1000)}
    assert states["exact counts"] == states["estimated counts"] == states["what is large"] == "missing"
    assert states["demotion of shared memory"] == "reduced"
    assert ran.status == 0, "no host of stores needs large pages"
    assert "large pages\n" in sus("doctor", tmp_path).out


def test_doctor_says_who_counts_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_idle, "hidden", lambda *_: None)
    page_idle.path(tmp_path).parent.mkdir(parents=True)
    page_idle.path(tmp_path).touch()
    (tmp_path / "proc").symlink_to("/proc")

    def exact() -> Finding:
        return page_findings(tmp_path, 0)[0]

    assert (exact().state, exact().found) == ("ok", "page_idle")
    with contextlib.closing(page_idle.Held(tmp_path)):
        assert f"process {os.getpid()}" in exact().found


def test_looking_is_over_when_its_time_is(sus: Sus, config: Path) -> None:
    begun = time.monotonic()
    sus("pages", "plan", "--config", config, *_SOON)
    assert time.monotonic() - begun < 20


def test_what_is_recorded_can_be_replayed_with_another_policy(
    sus: Sus, config: Path, tmp_path: Path, held: Toucher
) -> None:
    """This kernel may not be able to count, so counts are put into the recording."""
    file = tmp_path / "day.rec"
    ran = sus("record", file, "--config", config, "--for", "3s", "--period", "1s", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["scheduler"] == "large-pages"
    assert ran.json["observations"] >= 3
    counted = tmp_path / "counted.rec"
    header = read_header(file)
    with Recorder(counted, header) as recorder:
        for number in range(2):
            for seen in Recording(file, Observation, "large-pages"):
                blocks = seen.blocks
                first = np.uint64(held.start)
                hot = (blocks.address >= first) & (blocks.address < first + np.uint64(4 * BLOCK_BYTES))
                told = msgspec.structs.replace(
                    blocks,
                    touched=np.where(hot, 512, 0).astype(np.float32),
                    error=np.zeros(len(blocks), np.float32),
                    age_s=np.zeros(len(blocks), np.float32),
                )
                recorder.write(msgspec.structs.replace(seen, now_s=seen.now_s + 60.0 * number, blocks=told))
    text = sus("replay", counted, "--guest", "held").out
    assert text.splitlines()[-1].endswith("4 blocks would have been mapped large. Nothing reacted.")
    assert f"held {held.start:#x}: pays: 512 of 512 pages accessed" in text
    assert "target          held" in text
    config.write_text(config.read_text().replace('budget = "8MiB"', 'budget = "2MiB"'))
    lines = sus("replay", counted, "--config", config, "--json").out.splitlines()
    assert [len(json.loads(line)["actions"]) for line in lines][-1] == 1


def test_a_signal_that_another_thread_gets_ends_a_recording_in_order(config: Path, tmp_path: Path) -> None:
    """As the kernel does when the main thread is not waiting for one at that moment."""
    file = tmp_path / "day.rec"
    words = ["record", str(file), "--config", str(config), "--period", "1s", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "sustain.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        end = time.monotonic() + 60
        while not file.exists() or file.read_bytes().count(b"\n") < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        others = threads.unblocked(process.pid, signal.SIGTERM)
        if not others:
            process.kill()
            pytest.skip("NumPy has no threads of its own here")
        assert ctypes.CDLL(None).tgkill(process.pid, others[0], signal.SIGTERM) == 0
        out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert json.loads(out)["observations"] >= 1
    Recording(file, Observation, "large-pages")  # it is whole


@pytest.fixture
def agent(config: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One that runs the prioritiser."""
    config.write_text(config.read_text().replace('listen = ""', f'listen = "unix:{tmp_path}/agent"'))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-m", "sustain.cli", "agent", "--config", str(config)],
            env={"NOTIFY_SOCKET": str(tmp_path / "notify")},
            stderr=subprocess.DEVNULL,
        )
        try:
            while b"READY=1" not in ear.recv(4096):
                pass
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.mark.usefixtures("agent")
def test_an_agent_is_asked_where_one_runs(sus: Sus, config: Path, held: Toucher, tmp_path: Path) -> None:
    end = time.monotonic() + 60
    while (ran := sus("pages", "status", "--config", config, "--json")).status:  # its first tick goes on
        assert time.monotonic() < end, ran.err
    assert (ran.json["from"], ran.json["acts"]) == ("agent", True)
    (target,) = ran.json["plan"]["targets"]
    assert target["pid"] == held.pid
    found = sus("pages", "explain", "held", f"{held.start:#x}", "--config", config).out
    assert f"block           {held.start:#x} of held" in found
    sus("pages", "explain", "nobody", "--config", config).failed_with("nobody: no such target")
    page = get(f"{tmp_path}/agent", "/metrics").body.decode()
    assert "sustain_large_pages_target_blocks{counting=" in page


def test_a_configuration_with_targets_is_checked(sus: Sus, config: Path) -> None:
    ran = sus("agent", "check", "--config", config, "--json")
    assert ran.json["schedulers"] == [{"name": "large-pages", "period_s": 1, "targets": ["held"]}]
    assert "every 1 s: held" in sus("agent", "check", "--config", config).out


def test_an_agent_puts_back_at_its_end_and_restore_finds_nothing(
    sus: Sus, config: Path, agent: "subprocess.Popen[bytes]"
) -> None:
    agent.terminate()
    assert agent.wait(60) == 0
    assert sus("agent", "restore", "--config", config).out == "nothing to put back\n"


def left_by_a_run(state: Path, pid: int) -> Entry:
    """As one that was killed leaves it; the process that it had mapped is gone."""
    state.mkdir(exist_ok=True)
    with Journal(state / "large-pages.journal") as journal:
        span = Span("gone", pid, 1, 1, 0, changed=1, now=1)
        journal.note(span.key, ours.KIND, span.target, "", span.value)
        return journal.entries()[0]


def test_processes_on_the_command_line_take_only_the_targets_place(
    config: Path, held: Toucher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pages, "_DEFAULT_CONFIG", str(config))
    args = argparse.Namespace(config=str(config), pid=[held.pid], command=[], period=None)
    found = pages.config_of(args)
    assert found.agent.state_dir == f"{tmp_path}/state"
    assert [each.name for each in found.large_pages.targets] == [str(held.pid)]
    assert found.large_pages.policy.budget_bytes == 8 << 20


@pytest.mark.parametrize("sections", ["", "[guest_memory]\n"])
def test_what_a_run_has_left_is_put_back_whatever_the_file_enables(
    sus: Sus, tmp_path: Path, sections: str
) -> None:
    file = tmp_path / "bare.toml"
    file.write_text(f'[agent]\nstate_dir = "{tmp_path}/state"\n{sections}')
    assert sus("agent", "restore", "--config", file).out == "nothing to put back\n"
    entry = left_by_a_run(tmp_path / "state", os.getpid())
    (undone,) = sus("agent", "restore", "--config", file, "--json").json["undone"]
    assert (undone["key"], undone["outcome"]) == (entry.key, "gone")
    assert sus("agent", "restore", "--config", file).out == "nothing to put back\n"


def test_what_a_run_has_left_is_put_back_beside_an_agent(sus: Sus, tmp_path: Path) -> None:
    file = tmp_path / "memory.toml"
    file.write_text(f'[agent]\nstate_dir = "{tmp_path}/state"\n[guest_memory]\n')
    entry = left_by_a_run(tmp_path / "state", os.getpid())
    with Journal(tmp_path / "state" / "guest-memory.journal"):
        ran = sus("agent", "restore", "--config", file)
        assert ran.status == 1
        assert entry.key in ran.out
        assert "guest-memory.journal: another process has it" in ran.err
        sus("agent", "restore", "--config", file).failed_with("guest-memory.journal")


def test_a_run_that_goes_on_is_no_failure_of_an_agent_without_large_pages(sus: Sus, tmp_path: Path) -> None:
    """The unit file puts back whenever the agent has ended."""
    file = tmp_path / "memory.toml"
    file.write_text(f'[agent]\nstate_dir = "{tmp_path}/state"\n[guest_memory]\n')
    left_by_a_run(tmp_path / "state", os.getpid())
    with Journal(tmp_path / "state" / "large-pages.journal") as journal:
        ran = sus("agent", "restore", "--config", file)
        assert (ran.status, ran.out) == (0, "nothing to put back\n"), ran.err
        assert len(journal.entries()) == 1
        file.write_text(file.read_text() + "[large_pages]\n")
        sus("agent", "restore", "--config", file).failed_with("large-pages.journal: another process has it")


def test_what_a_run_has_left_is_put_back_without_a_file(
    sus: Sus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = agent_config.AgentSection(state_dir=f"{tmp_path}/state")
    bare = agent_config.AgentConfig(agent=state)  # in place of the directory of this host
    monkeypatch.setattr(agent_config, "AgentConfig", lambda: bare)
    monkeypatch.setattr(agent_config, "DEFAULT_PATH", str(tmp_path / "none.toml"))
    entry = left_by_a_run(tmp_path / "state", os.getpid())
    (undone,) = sus("agent", "restore", "--config", tmp_path / "none.toml", "--json").json["undone"]
    assert (undone["key"], undone["outcome"]) == (entry.key, "gone")
    sus("agent", "restore", "--config", tmp_path / "other.toml").failed_with("other.toml", status=2)


def test_a_run_whose_scheduler_ends_is_over(sus: Sus, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(loop: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(Loop, "run", fail)
    begun = time.monotonic()
    sus("pages", "run", "--config", config, "--for", "60s").failed_with("large-pages ended", "out of order")
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_second_metric_and_puts_back(
    config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """The command sees the signals that we see; with them blocked it would say so."""
    script = tmp_path / "metric"
    script.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/once ] || {{ touch {tmp_path}/once; echo 1; exit; }}\n"
        f"grep SigBlk /proc/self/status > {tmp_path}/blocked\necho $$ > {tmp_path}/fifo\nexec sleep 600\n"
    )
    script.chmod(0o755)
    os.mkfifo(tmp_path / "fifo")
    words = ["pages", "run", "--config", str(config), "--for", "1s", "--metric", str(script)]
    process = subprocess.Popen([sys.executable, "-m", "sustain.cli", *words], stderr=subprocess.PIPE)
    try:
        command = int((tmp_path / "fifo").read_text())  # waits for the second one
        assert int((tmp_path / "blocked").read_text().split()[1], 16) == 0
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert b"Traceback" not in said
    assert start_ticks(command) is None, "it is left behind"
    with Journal(tmp_path / "state" / "large-pages.journal") as journal:
        assert journal.entries() == ()
