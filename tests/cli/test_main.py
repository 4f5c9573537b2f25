"""The command line as a whole: help, wrong usage, errors, and how lightly it starts."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sustain import cli
from tests.cli.conftest import Ran


def test_help_has_one_line_per_verb(sus: Callable[..., Ran]) -> None:
    ran = sus("--help")
    assert ran.status == 0
    for verb in cli.VERBS:
        (line,) = (line for line in ran.out.splitlines() if line.split()[:1] == [verb])
        assert len(line.split()) > 2
    assert sus("-h").out == sus("help").out == ran.out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(sus: Callable[..., Ran], verb: str) -> None:
    ran = sus(verb, "--help")
    assert ran.status == 0
    assert ran.out.startswith(f"usage: sustain {verb}")
    assert ran.err == ""


@pytest.mark.parametrize("verb", ["create", "info", "verify", "status", "objects", "doctor", "demo"])
def test_verbs_that_report_have_json(sus: Callable[..., Ran], verb: str) -> None:
    assert "--json" in sus(verb, "--help").out


def test_what_a_peer_says_cannot_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    cli.complain("tcp://h:1: no\x1b[2J\nerror: made up", "do\r\nthis\x07 é")
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: tcp://h:1: no [2J error: made up"
    assert hint == "hint: do  this  é"


def test_version(sus: Callable[..., Ran]) -> None:
    ran = sus("--version")
    assert ran.status == 0
    assert ran.out.startswith("sustain 0.")


def test_nothing_asked_is_wrong_usage_and_shows_help(sus: Callable[..., Ran]) -> None:
    ran = sus()
    assert ran.status == 2
    assert "verbs" in ran.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fly"], "fly"),
        (["--fly"], "VERB"),
        (["create"], "path"),
        (["create", "x", "--size", "banana"], "banana"),
        (["create", "x", "--durability", "eternal"], "eternal"),
        (["info", "x", "y"], "y"),
        (["status", "x", "--interval", "soon", "--watch"], "soon"),
    ],
)
def test_wrong_usage(
    sus: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    sus(*words).failed_with(said, status=2)
    assert list(tmp_path.iterdir()) == []


def test_a_defect_is_one_line_too(sus: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    from sustain.cli import info

    monkeypatch.setattr(info, "facts", lambda *_: 1 // 0)
    sus("info", __file__).failed_with()  # before: not a store
    monkeypatch.setattr(info, "Control", lambda _: 1 // 0)
    monkeypatch.delenv("SUSTAIN_DEBUG", raising=False)
    sus("info", "x").failed_with("ZeroDivisionError")
    monkeypatch.setenv("SUSTAIN_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        sus("info", "x")


def test_as_a_process(filled: Path) -> None:
    """The same through a real process: status, streams, no traceback; and quiet when the reader goes away."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sustain.cli", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert run("info", str(filled)).returncode == 0
    missing = run("info", str(filled) + ".not")
    assert missing.returncode == 1
    Ran(missing.returncode, missing.stdout, missing.stderr).failed_with(".not")
    wrong = run("info")
    Ran(wrong.returncode, wrong.stdout, wrong.stderr).failed_with("path", status=2)

    read_end, write_end = os.pipe()
    os.close(read_end)
    gone = subprocess.run(
        [sys.executable, "-m", "sustain.cli", "info", str(filled)],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write_end)
    assert gone.stderr == ""
    assert gone.returncode == 1


def test_it_starts_lightly() -> None:
    """A command that is taken over must start at once: what costs tens of milliseconds to import is not
    imported."""
    code = (
        "import sys, sustain, sustain.cli, sustain.cli.status; "
        "print(*{m.split('.')[0] for m in sys.modules} & {'numpy', 'rich', 'msgspec', 'asyncio'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""
