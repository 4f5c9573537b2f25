"""What the operator wants shed in an outage, so that the battery lasts for what matters: commands, one after the
other, each with a limit. Used by `supervise`; in a thread, because they are the operator's.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable

LIMIT_S = 5.0


class Shedder:
    """Runs `commands` (shell text) once an outage."""

    def __init__(
        self, commands: tuple[str, ...], *, tell: Callable[[str], None], wake: Callable[[], None]
    ) -> None:
        self._commands = commands
        self._tell = tell
        self._wake = wake
        self._thread: threading.Thread | None = None
        self.done = not commands

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._thread is None and not self.done:
            self._thread = threading.Thread(target=self._run, name="shed", daemon=True)
            self._thread.start()

    def rearm(self) -> None:
        """The outage is over; the next one sheds again."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = None
            self.done = not self._commands

    def _run(self) -> None:
        try:
            for command in self._commands:
                self._tell(self._one(command))
        finally:
            self.done = True
            self._wake()

    @staticmethod
    def _one(command: str) -> str:
        """Carry one out; a line that says how it went."""
        try:
            process = subprocess.Popen(command, shell=True, stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            return f"shed {command!r}: {error.strerror}"
        try:
            status = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"shed {command!r}: not done within {LIMIT_S:g} s, ended"
        return f"shed {command!r}: {'done' if status == 0 else f'failed with status {status}'}"
