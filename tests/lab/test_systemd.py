"""The agent's unit under a real systemd, in a real kernel: it becomes ready, its sandbox lets it work, a hung loop is
killed and started anew, and whatever ends it puts back what was changed (tests/lab/systemd_host.py)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.lab import vm
from tests.lab.conftest import needed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

SCRIPT = """
export PATH="/run/bin:$PATH:/usr/sbin:/sbin"
cd "$TOP"
exec "$PYTHON" -m tests.lab.systemd_host "$TOP"
"""
CAPABILITIES = {"CAP_DAC_OVERRIDE": 1, "CAP_SYS_PTRACE": 19, "CAP_SYS_NICE": 23}


@pytest.fixture(scope="module")
def seen(kernel: vm.Kernel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Boot, and all that systemd_host does there."""
    with needed():
        if not Path("/lib/systemd/systemd").exists():
            raise vm.LabError(f"this machine has no systemd to boot\nhint: {vm.HINT}")
    share = tmp_path_factory.mktemp("systemd")
    shutil.copy(Path(__file__).with_name("systemd-init"), share / "init")
    result = vm.Guest(kernel, share, SCRIPT).run(limit_s=500)
    print(f"Linux {kernel.release}: {result.seconds:.0f} s")
    assert result.status == 0, result.output
    found: dict[str, Any] = json.loads((share / "seen.json").read_text())
    return found


def test_it_starts_and_says_when_it_is_ready(seen: dict[str, Any]) -> None:
    assert seen["start"] == ""  # `systemctl start` waits for READY, and complains about everything else
    assert seen["active"] == ["active", "running"]
    assert int(seen["capabilities"], 16) == sum(1 << number for number in CAPABILITIES.values())


def test_its_sandbox_lets_it_look_and_act(seen: dict[str, Any]) -> None:
    """At processes and sockets of another user, in a folder that is closed; page tables; process_madvise."""
    assert seen["paged out"] > 0
    guests = {guest["name"]: guest for guest in seen["guests"]}
    assert set(guests) == {"vm", "cold", "box"}
    for name in ("vm", "cold"):
        assert guests[name]["source"] == "guest-agent"
        assert guests[name]["figures"]["resident_bytes"] > 0
        assert not [problem for problem in guests[name]["problems"] if "cannot" in problem]
    assert guests["box"]["source"] == "cgroup"
    assert guests["box"]["figures"]["stall_us"] is not None


def test_pressure_of_a_container_ends_the_wait(seen: dict[str, Any]) -> None:
    assert seen["watched"] == ["guest box", "the host"]
    assert seen["unwatched"] == []
    assert seen["rung"] >= 1


def test_a_loop_that_hangs_is_killed_and_started_anew(seen: dict[str, Any]) -> None:
    assert seen["restarts before"] == "0"
    assert seen["troubles"] == ["guest-memory hangs"]
    assert "watchdog" in seen["ended by"]
    assert seen["balloon after the kill"] == 128 << 20
    assert int(seen["restarts"]) >= 1


def test_stopped_it_has_put_everything_back(seen: dict[str, Any]) -> None:
    assert seen["stop"] == ""
    assert seen["stopped"] == ["inactive", "success"]
    assert seen["balloon after the stop"] == 128 << 20
    assert seen["journal"] == 1  # its first line
    assert "unexpected" not in seen["log"]  # a defect of ours
