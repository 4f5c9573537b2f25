"""Ways to bring a file somewhere else that everybody has: `cp`, `rsync` from and to a daemon, `dd | nc`.

Each takes seconds for the whole command, as an operator would wait for it. On a disk all of them end with the
target made durable, since ours does; on tmpfs that costs nothing. None of them verifies what arrived.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from bench.hosts import Started, until


def synced(path: Path) -> None:
    """Make the file durable, as `sync -d` does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def cp(source: Path, target: Path) -> float:
    """Seconds of `cp` and the flush. --reflink=never: some file systems would copy nothing."""
    begun = time.perf_counter()
    subprocess.run(["cp", "--sparse=never", "--reflink=never", str(source), str(target)], check=True)
    synced(target)
    return time.perf_counter() - begun


class Rsync:
    """A daemon on loopback that serves one directory, no checksums of old files (--whole-file)."""

    def __init__(self, directory: Path, scratch: Path) -> None:
        self.port = free_port()
        configuration = scratch / f"rsyncd-{self.port}.conf"
        configuration.write_text(
            f"address = 127.0.0.1\nport = {self.port}\nuse chroot = no\n"
            f"[bench]\npath = {directory}\nread only = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n"
        )
        self.started = Started(
            ["rsync", "--daemon", "--no-detach", f"--config={configuration}"], scratch / "rsyncd.log"
        )
        until(lambda: _listens(self.port), self.started)

    def _run(self, source: str, target: str) -> float:
        begun = time.perf_counter()
        subprocess.run(["rsync", "--whole-file", "--inplace", "--fsync", source, target], check=True)
        return time.perf_counter() - begun

    def push(self, source: Path, name: str) -> float:
        """Seconds from this side to the daemon's directory."""
        return self._run(str(source), f"rsync://127.0.0.1:{self.port}/bench/{name}")

    def pull(self, name: str, target: Path) -> float:
        """And back."""
        return self._run(f"rsync://127.0.0.1:{self.port}/bench/{name}", str(target))

    def close(self) -> None:
        self.started.kill()


def netcat(source: Path, target: Path) -> float:
    """Seconds of `dd if=SOURCE bs=1M | nc` to an `nc -l` that writes TARGET with dd, and the flush."""
    port = free_port()
    taking = subprocess.Popen(
        f"nc -l 127.0.0.1 {port} | dd of='{target}' bs=1M iflag=fullblock status=none", shell=True
    )
    _wait_for_listener(port)
    begun = time.perf_counter()
    subprocess.run(f"dd if='{source}' bs=1M status=none | nc -N 127.0.0.1 {port}", shell=True, check=True)
    if taking.wait() != 0:
        raise RuntimeError("nc | dd has failed")
    synced(target)
    return time.perf_counter() - begun


def missing() -> dict[str, str]:
    """Which of these are not installed, and what would."""
    needs = {"rsync": "rsync", "dd | nc": "nc"}
    return {
        name: f"{command} is not installed (scripts/setup-debian.sh bench)"
        for name, command in needs.items()
        if not shutil.which(command)
    }


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for_listener(port: int) -> None:
    """Without connecting: nc would take that for its only client."""
    wanted = f"0100007F:{port:04X}"

    def listening() -> bool:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return any(row[1] == wanted and row[3] == "0A" for row in rows)

    until(listening)
