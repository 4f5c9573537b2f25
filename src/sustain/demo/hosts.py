"""Two "hosts" on one machine: a directory each, and every process that `sustain run` starts there.

Used by `play`. A host's processes are known by a word in their environment, which every child inherits,
whatever session or process group it makes for itself. So the loss of a host can be played: all of them
are sent SIGKILL at once, and none is left.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sustain import _native
from sustain.errors import SustainError

_MARK = "SUSTAIN_DEMO_HOST"


class Host:
    """One of the two; `start` runs `sustain run` there."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.directory.mkdir(parents=True)
        self.store = directory / "docs.sus"
        self.events_path = directory / "events.jsonl"  # of the supervisor
        self.output_path = directory / "output.txt"
        self.progress_path = directory / "progress.jsonl"  # of the application
        self.mark = f"{name}:{uuid.uuid4().hex}"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: _native.Control | None = None

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start(self, peer: "Host", lease: Path, key: Path, options: list[str], command: list[str]) -> None:
        """`sustain run` with `options`, and `command` as the workload."""
        words = [sys.executable, "-m", "sustain.cli", "run", "--store", str(self.store), "--name", self.name]
        words += ["--listen", f"127.0.0.1:{self.port}", "--peer", peer.url, "--lease", f"file://{lease}"]
        words += ["--key-file", str(key), "--event-log", str(self.events_path), *options, "--", *command]
        with self.output_path.open("ab") as output:
            self._process = subprocess.Popen(
                words,
                cwd=self.directory,
                env={**os.environ, _MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def status(self) -> int | None:
        """Exit status of `sustain run`; None while it runs."""
        return None if self._process is None else self._process.poll()

    def control(self) -> _native.Control | None:
        """The store's control words, once there is a store that can be read."""
        if self._control is None and self.store.exists():
            with contextlib.suppress(SustainError):
                self._control = _native.Control(str(self.store))
        return self._control

    def words(self) -> "_native.ControlWords | None":
        control = self.control()
        return None if control is None else control.words()

    def destinations(self) -> "list[_native.Destination]":
        control = self.control()
        return [] if control is None else control.destinations()

    def progress(self, event: str) -> dict[str, Any] | None:
        """The application's first `event` line; None when it has not come yet."""
        return next((line for line in _lines(self.progress_path) if line.get("event") == event), None)

    def event(self, event: str) -> dict[str, Any] | None:
        """The supervisor's first `event` line; None when it has not come yet."""
        return next((line for line in _lines(self.events_path) if line.get("event") == event), None)

    def last_event(self, event: str, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """The supervisor's last `event` line that fits; None when it has not come yet."""
        lines = [line for line in _lines(self.events_path) if line.get("event") == event and fits(line)]
        return lines[-1] if lines else None

    def kill(self) -> tuple[int, int]:
        """SIGKILL everything at once; (CLOCK_BOOTTIME ns of the first signal, processes killed)."""
        victims = list(self._processes())
        now_ns = _native.boottime_ns()
        killed = set(victims)
        while victims:
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            victims = list(self._processes())
            killed.update(victims)
        if self._process is not None:
            self._process.wait()
        return now_ns, len(killed)

    def close(self) -> None:
        self.kill()
        if self._control is not None:
            self._control.close()
            self._control = None

    def complaint(self) -> str:
        """The last lines that its processes wrote."""
        try:
            return "\n".join(self.output_path.read_text(errors="replace").splitlines()[-6:])
        except OSError:
            return ""

    def _processes(self) -> Iterator[int]:
        wanted = f"{_MARK}={self.mark}".encode()
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                        yield int(entry)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for(
    what: str, holds: Callable[[], bool], hosts: list[Host], limit_s: float, poll_s: float = 0.001
) -> None:
    """Poll until `holds()`. SustainError when a host's `sustain run` ends meanwhile, or after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not holds():
        for host in hosts:
            if host.status is not None and not holds():
                raise SustainError(
                    f"host {host.name} ended with {host.status} before {what}:\n{host.complaint()}",
                    hint="run again with --keep DIR and look at output.txt of that host",
                )
        if time.monotonic() > deadline:
            raise SustainError(
                f"gave up after {limit_s:.0f} s waiting for {what}\n"
                + "\n".join(f"{host.name}: {host.complaint()}" for host in hosts),
                hint="a busy machine? run again with --keep DIR and look at output.txt of both hosts",
            )
        time.sleep(poll_s)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):  # the last one may be in the writing
            yield json.loads(line)
