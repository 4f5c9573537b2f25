"""A real QEMU without a guest system: enough for its control protocol and its devices."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

QEMU = "qemu-system-x86_64"


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Path of its QMP socket, and its pid. It has a balloon, and a port for an agent, and nothing that uses them."""
    path = tmp_path / "qmp"
    command = [
        *(QEMU, "-accel", "tcg", "-m", "64M", "-display", "none", "-nodefaults"),
        *("-qmp", f"unix:{path},server=on,wait=off"),
        *("-device", "virtio-balloon-pci,id=b0", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={tmp_path / 'agent'},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
    ]
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        pytest.skip(f"no {QEMU} here")
    deadline = time.monotonic() + 60
    while not _listens(str(path)):  # the file is there a moment before
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield str(path), process.pid
    process.kill()
    process.wait(30)


def _listens(path: str) -> bool:
    """Without connecting: its queue is short. The flag is __SO_ACCEPTCON, as in proc(5)'s net/unix."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(words[-1] == path and int(words[3], 16) & 0x10000 for words in lines if len(words) == 8)
