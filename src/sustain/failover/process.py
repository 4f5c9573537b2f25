"""Children of the supervisor: the command, the shipper, the receiver.

Used by `supervise`. Each runs in a session of its own, so that it can be ended with everything it has
started, and so that Ctrl-C reaches the supervisor alone. Its end is seen before it is reaped, and what is
left of its group is killed in between, while the group's number cannot name anybody else.

The shipper and the receiver are processes and not threads of the supervisor: their work must not delay a
renewal, a crash of either must not end the command, and a shipper goes on sending what is committed when
the supervisor itself was killed.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from sustain.clock import Clock
from sustain.failover.types import ChildState, ChildView
from sustain.host.processes import Identity, identify


class Child:
    """One place for a process: started, ended, started again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._view = ChildView()
        self._killed = False
        self.identity: Identity | None = None

    def start(self, argv: Sequence[str], env: Mapping[str, str], stdout: int | None = None) -> None:
        """Start it, unless it runs; `stdout` as subprocess has it.

        A program that cannot be started counts as one that exited with 127.
        """
        if self.view().running:
            return
        self._killed = False
        now_ns = self._clock.boottime_ns()
        try:
            self._process = subprocess.Popen(
                argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=stdout, start_new_session=True
            )
        except OSError:
            self._view = ChildView(ChildState.EXITED, 127, now_ns)
            self.identity = None
            raise
        self.identity = identify(self._process.pid)
        self._view = ChildView(ChildState.RUNNING, None, now_ns)

    def view(self) -> ChildView:
        """How it is now. After its end nothing of its group is left."""
        process = self._process
        if process is not None and self._has_ended(process.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
            self._process, self.identity = None, None
            now_ns = self._clock.boottime_ns()
            self._view = ChildView(ChildState.EXITED, status, now_ns, self._view.asked_ns)
        return self._view

    def stop(self, kill_at_ns: int) -> None:
        """SIGTERM to the group, once; SIGKILL from `kill_at_ns` on. Call again until it is gone."""
        if self._process is None:
            return
        now_ns = self._clock.boottime_ns()
        if now_ns >= kill_at_ns:
            if not self._killed:
                self._signal(signal.SIGKILL)
                self._killed = True
        elif not self._view.asked:
            self._signal(signal.SIGTERM)
        if not self._view.asked:
            self._view = ChildView(ChildState.RUNNING, None, self._view.changed_ns, now_ns)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
            if number is signal.SIGTERM:
                os.killpg(self._process.pid, signal.SIGCONT)  # a stopped program hears it, too

    @staticmethod
    def _has_ended(pid: int) -> bool:
        try:
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True
