"""The unit file of a workload: systemd understands it, and what it runs is a command line of ours."""

import argparse
import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sustain.cli import run as verb

UNIT = Path(__file__).parents[2] / "packaging/systemd/sustain-run@.service"


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser["Service"]


def words(options: str, command: str) -> list[str]:
    """What systemd makes of ExecStart, without the program: variables in words of their own are split at blanks."""
    found: list[str] = []
    for word in shlex.split(unit()["ExecStart"])[1:]:
        found += {"$OPTIONS": options.split(), "$COMMAND": command.split()}.get(word, [word])
    return found


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_understands_it(tmp_path: Path) -> None:
    def verify(text: str) -> str:
        here = tmp_path / "sustain-run@app.service"
        here.write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", str(here)], capture_output=True, text=True, check=False
        )
        return done.stderr if here.name in done.stderr else ""

    text = UNIT.read_text().replace("/usr/bin/sustain", sys.executable)  # it wants a program that is there
    assert verify(text) == ""
    assert verify(text.replace("KillMode=mixed", "KillMode=gently")) != ""


def test_it_runs_a_workload(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    lease.mkdir()
    options = f"--store {tmp_path}/app.sus --name a --lease file://{lease} --durability memory --create --size 16MiB"
    line = words(f"{options} --log-size 4MiB", f"{sys.executable} -c open('{tmp_path}/ran','w')")
    done = subprocess.run(
        [sys.executable, "-m", "sustain.cli", *line], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ran").exists()


def test_it_gives_the_time_to_hand_over() -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    needed_s = parser.get_default("stop_timeout") + parser.get_default("drain_timeout")
    assert float(unit()["TimeoutStopSec"]) >= 2 * needed_s
    assert unit()["KillMode"] == "mixed"  # the command is the supervisor's to stop
    assert unit()["Restart"] == "on-failure"
