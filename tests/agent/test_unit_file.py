"""The unit file: systemd understands it, and what it runs is a command line of ours."""

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sustain.cli import main

UNIT = Path(__file__).parents[2] / "packaging/systemd/sustain-agent.service"


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser["Service"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_understands_it(tmp_path: Path) -> None:
    def verify(text: str) -> str:
        (tmp_path / UNIT.name).write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", str(tmp_path / UNIT.name)],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stderr if UNIT.name in done.stderr else ""

    text = UNIT.read_text().replace("/usr/bin/sustain", sys.executable)  # it wants a program that is there
    assert verify(text) == ""
    assert verify(text.replace("WatchdogSec=60", "WatchdogSec=soon")) != ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_finds_little_exposed() -> None:
    """Its score, from 0 to 10; a service without any sandbox has 9.6. What is left is what the work needs: root, three
    capabilities, other users' processes."""

    def exposure(path: Path) -> float:
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if "unrecognized option" in done.stderr:  # systemd before 250
            pytest.skip(done.stderr)
        return float(done.stdout.rpartition("Overall exposure level")[2].split(":")[1].split()[0])

    assert exposure(UNIT) < 4.0


@pytest.mark.parametrize("key", ["ExecStart", "ExecStopPost"])
def test_it_runs_what_there_is(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(unit()[key])
    assert words[0] == "/usr/bin/sustain"
    assert words[-2] == "--config"
    missing = tmp_path / "agent.toml"
    assert main([*words[1:-1], str(missing)]) == 2
    assert f"{missing}: No such file" in capsys.readouterr().err


def test_it_keeps_what_a_killed_agent_left() -> None:
    assert unit()["RuntimeDirectory"] == "sustain"  # agent.state_dir's default is /run/sustain
    assert unit()["RuntimeDirectoryPreserve"] == "yes"
    assert unit()["Type"] == "notify"


def test_it_may_do_no_more_than_it_needs() -> None:
    assert set(unit()["CapabilityBoundingSet"].split()) == {
        "CAP_SYS_PTRACE",
        "CAP_SYS_NICE",
        "CAP_DAC_OVERRIDE",
    }
    assert unit()["NoNewPrivileges"] == "yes"
