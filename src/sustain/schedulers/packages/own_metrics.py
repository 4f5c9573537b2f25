"""The workloads' own metrics: commands that print a number, more is better, each asked in a thread of its own.

Used by `sense`, which never waits for them: it takes the last value that came, and asks for the next one. A command
that takes longer than its time limit is ended with all that it has started, and has no value; so has one that fails or
prints no number. A value that is old is none, since a trial would judge by what was before it.
"""

import contextlib
import math
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping

from sustain.clock import Clock

_OLD_S = 60.0
_MOST_BYTES = 4096


class OwnMetrics:
    """Close it."""

    def __init__(self, commands: Mapping[str, str], timeout_s: float, clock: Clock) -> None:
        """Commands as `config.check` lets them pass."""
        self._metrics = {
            name: _Metric(name, shlex.split(command), timeout_s, clock) for name, command in commands.items()
        }
        self._clock = clock

    def read(self, problems: list[str]) -> dict[str, float]:
        """The last values, of those that are not old; and the commands are run once more."""
        now_s = self._clock.boottime_ns() / 1e9
        found = {}
        for name, each in self._metrics.items():
            value, at_s, problem = each.last
            each.ask()
            if at_s is not None and now_s - at_s <= _OLD_S:
                found[name] = value
            elif at_s is not None:
                problem = problem or "it does not come back"
                problems.append(f"metric {name}: no value for {now_s - at_s:.0f} s: {problem}")
            elif problem:
                problems.append(f"metric {name}: {problem}")
        return found

    def close(self) -> None:
        """Ends commands that run."""
        for each in self._metrics.values():
            each.close()


class _Metric:
    """One command, and the thread that runs it."""

    def __init__(self, name: str, words: list[str], timeout_s: float, clock: Clock) -> None:
        self._words = words
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._value, self._at_s, self._problem = math.nan, None, ""
        self._thread = threading.Thread(target=self._work, name=f"metric {name}", daemon=True)
        self._thread.start()

    _at_s: float | None

    @property
    def last(self) -> tuple[float, float | None, str]:
        """The value, when it came (None: never), and what has been wrong since."""
        with self._lock:
            return self._value, self._at_s, self._problem

    def ask(self) -> None:
        """Run it, if it does not run."""
        self._wanted.set()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._process is not None:
                _end(self._process)
        self._wanted.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._closed:
                return
            problem, value = "", math.nan
            try:
                value = self._run()
            except (OSError, ValueError) as error:
                problem = str(error)
            with self._lock:
                self._problem = problem
                if not problem:
                    self._value, self._at_s = value, self._clock.boottime_ns() / 1e9

    def _run(self) -> float:
        """Raises OSError, and ValueError for what is no number."""
        with self._lock:
            if self._closed:
                raise ValueError("closed")
            process = self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        late = threading.Event()

        def end() -> None:
            late.set()
            _end(process)

        limit = threading.Timer(self._timeout_s, end)
        limit.start()
        try:
            assert process.stdout is not None
            said = process.stdout.read(_MOST_BYTES)
            _end(process) if len(said) == _MOST_BYTES else process.wait()
        finally:
            limit.cancel()
            process.stdout.close() if process.stdout else None
            process.wait()
            with self._lock:
                self._process = None
        if late.is_set():
            raise ValueError(f"{self._words[0]} took longer than {self._timeout_s:g} s (metric_timeout)")
        if process.returncode:
            raise ValueError(f"{self._words[0]} failed: exit status {process.returncode}")
        return _number(self._words[0], said)


def _number(program: str, said: bytes) -> float:
    words = said.decode(errors="replace").split()
    try:
        value = float(words[0]) if words else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{program} prints no number but {said[:40].decode(errors='replace')!r}")
    return value


def _end(process: "subprocess.Popen[bytes]") -> None:
    """With all that it has started: it leads its session. It is not waited for yet, so its number is its own."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
