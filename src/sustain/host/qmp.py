"""QMP, the control protocol of QEMU, over a UNIX socket: one command, one answer; events are passed over.

https://www.qemu.org/docs/master/interop/qmp-spec.html. Used to freeze and thaw guests. A small synchronous client:
what is needed here is two commands and a time limit, in a process without an event loop
(docs/decisions/0011-change-tracking.md).
"""

import json
import socket
from typing import Any, Self

from sustain.errors import RegionIOError

_LINE_LIMIT_BYTES = 1 << 24


class Qmp:
    """A connection after the greeting. Raises RegionIOError for whatever goes wrong, also for an answer "error"."""

    def __init__(self, path: str, timeout_s: float = 10.0) -> None:
        self._path = path
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise RegionIOError(
                f"{path}: QMP: {error.strerror or error}",
                hint="start QEMU with -qmp unix:PATH,server=on,wait=off; one client at a time",
            ) from None
        if "QMP" not in self._message():
            raise self._lost("no greeting")
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """The answer to a command."""
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\r\n")
        except OSError as error:
            raise self._lost(str(error.strerror or error)) from None
        while True:
            message = self._message()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise RegionIOError(
                    f"{self._path}: QMP: {command}: {message['error'].get('desc', message['error'])}", hint=""
                )

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _message(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            if len(self._rest) > _LINE_LIMIT_BYTES:
                raise self._lost("a line without an end")
            try:
                more = self._socket.recv(65536)
            except TimeoutError:
                raise self._lost("no answer in time (does another client hold the socket?)") from None
            except OSError as error:
                raise self._lost(str(error.strerror or error)) from None
            if not more:
                raise self._lost("it closed the connection")
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise self._lost(f"{line[:80]!r} is not a message")
        return message

    def _lost(self, why: str) -> RegionIOError:
        self.close()
        return RegionIOError(f"{self._path}: QMP: {why}", hint="is QEMU alive?")
