"""Stores that are arriving, for tests: the source and the fetch are processes of their own, as in real use.

They must be: the test is the application, and an application that waits for a page may hold the interpreter's lock.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sustain
from sustain._native import PageSource, arrival_of
from tests.replication.conftest import until

if TYPE_CHECKING:  # only the stub has it
    from sustain._native import Arrival

ROOT = Path(__file__).resolve().parents[2]
PAGE = 4096
SUSTAIN = ("-m", "sustain.cli")


class Process:
    """A child whose lines on stderr are kept; gone at the latest with `end`."""

    def __init__(self, *command: str | Path) -> None:
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())

    def wait(self, limit_s: float = 60.0) -> int:
        """Its exit status."""
        code = self.process.wait(limit_s)
        self._reader.join(limit_s)
        return code

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


class Hosts:
    """Makes sources and fetches, and ends them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ending: list[Callable[[], object]] = []

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.sus"

    def source(self, name: str = "a") -> tuple[Process, str]:
        """`sustain receive` over a store that nobody has open, and its URL."""
        port_file = self.directory / f"{name}.port"
        port_file.unlink(missing_ok=True)
        store = self.path(name)
        words = ["receive", "--store", store, "--listen", "127.0.0.1:0", "--port-file", port_file]
        process = self._start(*SUSTAIN, *words, "--heartbeat", "200ms", "--timeout", "3s")
        until(lambda: port_file.exists() or process.process.poll() is not None, "the source listens")
        assert process.process.poll() is None, process.said
        return process, f"tcp://127.0.0.1:{port_file.read_text().strip()}"

    def restore(self, url: str, name: str = "b", *more: str, on_demand: bool = True) -> Process:
        """`sustain restore`; returns once the store can be opened, when on demand."""
        ready = self.directory / f"{name}.ready"
        ready.unlink(missing_ok=True)
        words = ["restore", url, str(self.path(name)), "--json", "--ready-file", str(ready), *more]
        process = self._start(*SUSTAIN, *words, *(["--on-demand"] if on_demand else []))
        if on_demand:
            until(lambda: ready.exists() or process.process.poll() is not None, "the store can be opened")
            assert ready.exists(), process.said
        return process

    def restore_asked_only(self, url: str, name: str = "b", limit_s: float = 30.0) -> Process:
        """The same, but nothing streams in before `stream` is called: only what is accessed comes."""
        ready = self.directory / f"{name}.ready"
        ready.unlink(missing_ok=True)
        process = self._start("-m", "tests.replication.asked_only", url, self.path(name), ready, str(limit_s))
        until(lambda: ready.exists() or process.process.poll() is not None, "the store can be opened")
        assert ready.exists(), process.said
        return process

    def stream(self, process: Process) -> None:
        assert process.process.stdin is not None
        process.process.stdin.close()

    def run(self, program: str, *args: object) -> Process:
        """An application of its own."""
        return self._start("-c", program, *map(str, args))

    def arrival(self, name: str = "b") -> "Arrival | None":
        return arrival_of(str(self.path(name)))

    def asked(self, name: str = "b") -> int:
        """Pages that came because they were accessed."""
        arrival = self.arrival(name)
        assert arrival is not None, "it has arrived completely"
        return arrival["asked"]

    def _start(self, *command: str | Path) -> Process:
        process = Process(*command)
        self._ending.append(process.end)
        return process

    def open(self, name: str, **options: Any) -> sustain.Store:
        store = sustain.open(str(self.path(name)), **options)
        self._ending.append(store.close)
        return store

    def end(self) -> None:
        for each in reversed(self._ending):
            each()


def image(path: Path) -> bytes:
    """The whole image of a store that nobody writes, and its sums."""
    with sustain.open(str(path), readonly=True) as store:
        pages = store.info()["image_size"] // PAGE
    source = PageSource(str(path))
    return b"".join(source.read(first, min(256, pages - first)) for first in range(0, pages, 256))


def flip(path: Path, page: int, log_size: int, image_size: int) -> None:
    """Damage one byte of an image page in the file."""
    align = 2 << 20
    sums = -(-(image_size // 512) // align) * align
    at = align + log_size + sums + page * PAGE + 100
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x10]))
        file.flush()
        os.fsync(file.fileno())
