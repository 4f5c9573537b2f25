"""QMP, the control protocol of QEMU, over a UNIX socket: one command, one answer; events are kept until asked for.

Used to freeze and thaw guests, and to read and set their balloons. The protocol is the package `qemu.qmp`'s, which is
QEMU's own; it speaks asyncio, and here a connection gets a private loop that runs only while a call waits, so that
callers with threads and without a loop stay as they are. Not the package's `legacy` module, which does the same: it is
under another licence than the rest (docs/decisions/0017-qmp.md).
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError

from sustain.errors import HostError
from sustain.host.processes import peer

T = TypeVar("T")

# What goes wrong is raised here; without a handler the package's log would go to stderr besides.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


class _Client(QMPClient):
    """Without what the package does at these two places: print each message prettily, for a log that nobody reads."""

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class QmpRefused(HostError):
    """QEMU answered, and said no; `kind` is its class of error (`CommandNotFound`, `DeviceNotActive`, …)."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Qmp:
    """A connection after the greeting, for one thread at a time. `listener`: the pid of who answers, as the function of
    that name says it. Raises HostError for whatever goes wrong."""

    def __init__(self, path: str, timeout_s: float = 10.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        connection = _connect(path, timeout_s)
        self.listener = peer(connection)
        self._loop = asyncio.new_event_loop()
        self._client = _Client(path)
        try:
            self._run(self._client.connect(connection))
        except HostError:
            connection.close()
            raise

    def ask(self, command: str, **arguments: Any) -> Any:
        """The answer to a command; QmpRefused when it is an error."""
        return self._run(self._client.execute(command, arguments or None), command)

    def event(self, *names: str) -> dict[str, Any]:
        """The next event of these names since the connection began; what comes before it is dropped."""

        async def find() -> dict[str, Any]:
            while True:
                event = await self._client.events.get()
                if event["event"] in names:
                    return dict(event)

        return self._run(find(), f"event {', '.join(names)}")

    def close(self) -> None:
        if self._loop.is_closed():
            return
        # An error of the connection has been told by the call that met it, and nothing is owed to the peer: nor is
        # anything said of futures inside the package that end with the connection.
        self._loop.set_exception_handler(lambda loop, context: None)
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(_within(1.0, self._client.disconnect()))
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T], what: str = "greeting") -> T:
        if self._loop.is_closed():
            work.close()
            raise HostError(f"{self._path}: QMP: {what}: the connection is closed", hint="")
        try:
            return self._loop.run_until_complete(_within(self._timeout_s, work))
        except ExecuteError as error:
            raise QmpRefused(f"{self._path}: QMP: {what}: {error}", error.error_class) from None
        except TimeoutError:
            self.close()
            why = "no answer in time (does another client hold the socket?)"
        except (QMPError, OSError, EOFError) as error:
            self.close()
            why = str(error) or "it closed the connection"
        raise HostError(f"{self._path}: QMP: {what}: {why}", hint="is QEMU alive?")


async def _within(limit_s: float, work: Coroutine[Any, Any, T]) -> T:
    """Raises TimeoutError. Cheaper than `asyncio.wait_for`, which makes a task of it."""
    async with asyncio.timeout(limit_s):
        return await work


def listener(path: str, timeout_s: float = 10.0) -> int | None:
    """The pid of who listens there: QEMU, also one that hangs, or who gave it the socket. None: it is in another pid
    namespace. Raises HostError when nobody does."""
    with _connect(path, timeout_s) as connection:
        return peer(connection)


def _connect(path: str, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise HostError(
            f"{path}: QMP: {error.strerror or error}",
            hint="start QEMU with -qmp unix:PATH,server=on,wait=off; one client at a time",
            errno=error.errno,
        ) from None
    return connection
