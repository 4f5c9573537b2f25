"""Processes that are killed at random, and what they had said before.

Used by the kill loops. Every process is a `Victim`: started with its standard output read by a thread, killed,
stopped and continued by pid, and always gone at the end of the test.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

TOP = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0  # on a machine that is busy with other things


def rounds(default: int) -> int:
    """How many rounds of killing: `SUSTAIN_CRASH_ROUNDS`, or a few dozen for the suite."""
    return int(os.environ.get("SUSTAIN_CRASH_ROUNDS", default))


def seed() -> int:
    """Of this run, random unless `SUSTAIN_CRASH_SEED` says it; the caller prints it."""
    return int(os.environ.get("SUSTAIN_CRASH_SEED", int.from_bytes(os.urandom(4), "little")))


class Victim:
    """A running `python -m MODULE ARGS`; its words are the lines of its standard output."""

    def __init__(self, module: str, *args: str | Path, log: Path) -> None:
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, args)],
                cwd=TOP,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self.log = log
        self.last: dict[str, int] = {}
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            words = line.split()
            if len(words) == 2 and line.endswith(b"\n") and words[1].isdigit():
                with self._changed:
                    self.last[words[0].decode()] = int(words[1])
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, word: str, beyond: int = -1) -> int:
        """Until the process has said `word` with a number above `beyond`; that number."""
        deadline = time.monotonic() + LIMIT_S
        with self._changed:
            while self.last.get(word, -1) <= beyond:
                left = deadline - time.monotonic()
                assert left > 0, f"{self} did not say {word} > {beyond}: {self.last}\n{self._said()}"
                assert self._reader.is_alive(), f"{self} ended: {self.last}\n{self._said()}"
                self._changed.wait(min(left, 0.5))
            return self.last[word]

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            self.process.send_signal(number)

    def kill(self) -> dict[str, int]:
        """SIGKILL; all that it had said."""
        self.signal(signal.SIGKILL)
        return self._gone()

    def end(self) -> dict[str, int]:
        """Close its standard input, which asks a writer to end; all that it had said."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(LIMIT_S)
        finally:
            self.kill()
        assert self.process.returncode == 0, f"{self} ended with {self.process.returncode}\n{self._said()}"
        return self.last

    def _gone(self) -> dict[str, int]:
        self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return self.last

    def _said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def __str__(self) -> str:
        return f"pid {self.process.pid} ({' '.join(map(str, self.process.args[2:4]))})"  # type: ignore[index]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGCONT)
        self.kill()
