"""A disk that begins to fail under a store at work: a real kernel's I/O errors, through ext4 and device-mapper."""

import json
from pathlib import Path

import pytest

from tests.lab import vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SCRIPT = """
set -e
modprobe brd rd_nr=1 rd_size=131072
modprobe dm_mod; modprobe dm_flakey; modprobe ext4
cd "$TOP"
"$PYTHON" -m tests.lab.disk_errors
"""


def test_write_errors_poison_and_the_store_reopens(kernel: vm.Kernel, tmp_path: Path) -> None:
    result = vm.Guest(kernel, tmp_path, SCRIPT).run(limit_s=300)
    assert result.status == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("told: ")]
    assert lines, result.output
    told = json.loads(lines[-1].removeprefix("told: "))
    print(told)
    assert told["commit"]["error"] in ("StoreIOError", "StorePoisoned")
    assert "app.sus" in told["commit"]["message"]
    assert told["commit"]["hint"]
    assert told["poisoned"]
    assert told["next"]["error"] == "StorePoisoned"
    assert told["acknowledged"] >= 40
    assert told["acknowledged"] <= told["reopened"] <= told["acknowledged"] + 1
