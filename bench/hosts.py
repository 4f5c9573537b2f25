"""The processes around a store, as an operator starts them: `sustain receive`, `sustain ship`, and a writer.

Used by the questions that need more than one process. Everything started is ended by its pid.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LIMIT_S = 120.0


class Started:
    """A process of ours; a context manager that kills it."""

    def __init__(self, words: list[str], log: Path, *, pipe: bool = False) -> None:
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE if pipe else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipe else stderr,
                stderr=stderr,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def check(self) -> None:
        """RuntimeError with the last lines it wrote, when it has ended."""
        if self.process.poll() is not None:
            words = " ".join(map(str, self.process.args))  # type: ignore[arg-type]
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{words} ended with {self.process.returncode}:\n{tail}")


def sustain(*words: str | Path) -> list[str]:
    """The command line of a verb, with this interpreter."""
    return [sys.executable, "-m", "sustain.cli", *map(str, words)]


def receiver(store: Path, durability: str = "memory", *more: str) -> tuple[Started, int]:
    """`sustain receive` for `store`; with the port that it listens on."""
    port_file = store.with_suffix(f".port{time.monotonic_ns()}")
    words = sustain("receive", "--store", store, "--listen", "127.0.0.1:0", "--port-file", port_file)
    started = Started([*words, "--durability", durability, *more], store.with_suffix(".receive.log"))
    until(lambda: port_file.exists() and bool(port_file.read_text().strip()), started)
    return started, int(port_file.read_text())


def shipper(store: Path, port: int, *more: str) -> Started:
    """`sustain ship` from `store` to a receiver on this machine."""
    words = sustain("ship", "--store", store, "--peer", f"tcp://127.0.0.1:{port}", *more)
    return Started(words, store.with_suffix(".ship.log"))


class Writer(Started):
    """A program of `bench.writers`; `ready()` waits for its line and returns it."""

    def __init__(self, what: str, store: Path, *words: str) -> None:
        super().__init__(
            [sys.executable, "-m", "bench.writers", what, str(store), *words],
            store.with_suffix(".log"),
            pipe=True,
        )

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.check()
        facts: dict[str, Any] = json.loads(line)
        return facts

    def go(self) -> None:
        """Send the line that it waits for."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()


def until(holds: Callable[[], bool], *processes: Started, limit_s: float = LIMIT_S) -> None:
    """Poll until `holds()`; RuntimeError when a process ended meanwhile, TimeoutError after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not holds():
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"gave up after {limit_s:.0f} s: {holds}")
        time.sleep(0.0005)


def acked(control: Any) -> int:
    """Position that the (only) destination holds; 0 when unknown."""
    return max(
        (each["acked"] or 0 for each in control.destinations() if each["state"] != "unused"), default=0
    )


def streaming(control: Any) -> bool:
    """Whether a destination follows the log."""
    return any(each["state"] == "streaming" for each in control.destinations())


def pin_self(processors: set[int]) -> None:
    """Keep this process on some processors, where there are that many."""
    if processors <= os.sched_getaffinity(0):
        os.sched_setaffinity(0, processors)
