"""EIO, ENOSPC and short writes from every call by which a store reaches its medium.

A failed call poisons the store, is told, and the store reopens to the last durable commit. The calls fail in a C
library preloaded into a child process (fault.c), so the engine under test is the one that ships.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.crash.processes import TOP

pytestmark = pytest.mark.crash


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fault.c as a library to preload."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler builds the shim: scripts/setup-debian.sh test"
    library = tmp_path_factory.mktemp("shim") / "fault.so"
    source = Path(__file__).with_name("fault.c")
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        library,
        source,
        "-ldl",
    ]
    subprocess.run(command, check=True, timeout=60)
    return library


def faults(shim: Path, folder: Path, durability: str, error: int, how: str, *more: str) -> Any:
    """What `tests.crash.faults` printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.faults", folder, durability, str(error), how, *more],
        cwd=TOP,
        env={**os.environ, "LD_PRELOAD": str(shim)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr  # no error that came in vain either
    return json.loads(done.stdout)


@pytest.mark.parametrize("how", ["once", "always"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_every_failed_call_is_told_and_survived(shim: Path, tmp_path: Path, error: int, how: str) -> None:
    told = faults(shim, tmp_path, "disk", error, how)
    print(told)
    # One call for each commit, at least, and more for the checkpoint and the superblocks.
    assert told["hits"] == told["calls"] > 12


def test_short_writes_are_completed(shim: Path, tmp_path: Path) -> None:
    told = faults(shim, tmp_path, "disk", 0, "once")
    assert told["hits"] == told["calls"] > 12
    assert all(line.endswith("NoneType") for line in told["raised"])


def test_memory_stores_too(shim: Path, tmp_path: Path) -> None:
    """They write to the medium only when they are closed in order."""
    told = faults(shim, tmp_path, "memory", errno.EIO, "once")
    assert told["hits"] == told["calls"] > 0


@pytest.mark.parametrize("how", ["once", "always"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_transactions_of_sqlite_too(shim: Path, tmp_path: Path, error: int, how: str) -> None:
    """The application hears of it from SQLite as the store's error; what was acknowledged is there, and whole."""
    told = faults(shim, tmp_path, "disk", error, how, "sqlite")
    print(told)
    assert told["hits"] == told["calls"] > 12
