"""Swap on this host in its own RAM (zram), for tests and benchmarks; and whose turn it is.

It is everybody's while it is there, so who needs some and who needs a host without any take turns by a lock. A device
says by its label who made it, so that what was left by one that was killed is found, and goes.
"""

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.host import marks

_CONTROL = Path("/sys/class/zram-control")
_PREFIX = "sus"
_LABEL_AT, _LABEL_SIZE = 1024 + 28, 16  # in the header of a swap area
_MAGIC, _MAGIC_AT = b"SWAPSPACE2", 4096 - 10
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@contextlib.contextmanager
def taking_turns() -> Iterator[None]:
    """Nobody else of us switches swap on meanwhile; what a killed one has left is cleared."""
    with Path(tempfile.gettempdir(), "sustain-lab-swap.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        clear()
        yield


@contextlib.contextmanager
def host_swap(size_bytes: int) -> Iterator[str]:
    """So much for as long as the block lasts: the device's name. It is filled before any other that the host has, so
    what is swapped out meanwhile is back when the block ends. Raises OSError where the kernel or the rights are
    missing."""
    with taking_turns():
        number = int((_CONTROL / "hot_add").read_text())
        try:
            Path(f"/sys/block/zram{number}/disksize").write_text(str(size_bytes))
            device = f"/dev/zram{number}"
            _run("mkswap", "-q", "-L", _PREFIX + marks.own(), device)
            _run("swapon", "--priority", "32767", device)
            try:
                yield device
            finally:
                _run("swapoff", device)
        finally:
            (_CONTROL / "hot_remove").write_text(str(number))


def clear() -> None:
    """Take away the devices of processes that were killed. One that was killed before its device had a label has left a
    device that nothing is on: it stays."""
    active = {line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]}
    for block in Path("/sys/block").glob("zram*"):
        device = f"/dev/{block.name}"
        label = _label(device)
        if label.startswith(_PREFIX) and marks.dead(label.removeprefix(_PREFIX)):
            if device in active:
                _run("swapoff", device)
            (_CONTROL / "hot_remove").write_text(block.name.removeprefix("zram"))


def _label(device: str) -> str:
    """Of a swap area; "" when it is none, or not ours to read."""
    try:
        with open(device, "rb") as file:
            header = file.read(4096)
    except OSError:
        return ""
    if header[_MAGIC_AT:] != _MAGIC:
        return ""
    label = header[_LABEL_AT : _LABEL_AT + _LABEL_SIZE].split(b"\0")[0]
    return label.decode(errors="replace")


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": _PATH}
    )
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
