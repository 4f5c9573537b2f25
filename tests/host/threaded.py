"""A process whose threads start, work and end as a test says; for tests of what is done to threads from outside."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Self

_LIMIT_S = 120.0  # also in emulated guests, whose processors share those of a busy machine

# Each thread has a pipe of its own that ends it: busy ones look at a flag, the others wait.
_PROGRAM = """
import sys, threading
threads, stops = {}, {}
def work(busy, stop):
    print(threading.get_native_id(), flush=True)
    while busy and not stop.is_set():
        for _ in range(1000): pass
    stop.wait()
def main():
    for line in sys.stdin:
        what, *which = line.split()
        if what == "end":
            stops[int(which[0])].set()
            threads.pop(int(which[0])).join()
            print("ended", flush=True)
            continue
        stop = threading.Event()
        thread = threading.Thread(target=work, args=(what == "busy", stop), daemon=True)
        thread.start()
        threads[thread.native_id], stops[thread.native_id] = thread, stop
main()
"""


class Program:
    """One process; its first thread waits for what it is told."""

    def __init__(self, *before: str) -> None:
        """`before`: a command that executes what follows it."""
        self._process = subprocess.Popen(
            [*before, sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._ask("idle")  # it runs by now; so the process is this program, whatever was before it
        self.end(self._last)

    def start(self, *, busy: bool = False) -> int:
        """Another thread, by its number; it works all the time, or waits."""
        self._ask("busy" if busy else "idle")
        return self._last

    def end(self, tid: int) -> None:
        self._tell(f"end {tid}")
        assert self._answer() == "ended"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, what: str) -> None:
        self._tell(what)
        self._last = int(self._answer())

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def wait_until(holds: Callable[[], bool]) -> None:
    """Until it holds, which it must within the limit."""
    deadline_s = time.monotonic() + _LIMIT_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
