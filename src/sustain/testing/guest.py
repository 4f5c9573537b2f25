"""Fakes of QEMU and of a guest's agent, at their sockets: what they answer, and how they fail, is set by the test.

Used by the tests of the guest memory scheduler; those of `host/` run the same checks against a real QEMU. One client is
served at a time, as QEMU does; `silent` makes them take what is sent and say nothing, as a guest that hangs.
"""

import base64
import json
import socket
import threading
from pathlib import Path
from typing import Any, Self

_DEVICE = "/machine/peripheral/balloon0"


class _Server:
    """One thread, one client at a time, one message after the other."""

    greeting = b""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self.silent = False
        self.calls: list[str] = []
        self._ended = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def answer(self, request: dict[str, Any]) -> bytes:
        """What to send for a message."""
        raise NotImplementedError

    def close(self) -> None:
        """As if the process had been killed; the socket's file stays."""
        self._ended = True
        for each in (self._listener, self._client):
            if each is not None:
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # its peer has gone already
        self._thread.join(10)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        with self._listener:
            while not self._ended:
                try:
                    client, _ = self._listener.accept()
                except OSError:
                    return
                self._client = client
                try:
                    self._talk(client)
                except OSError:
                    continue  # it hung up
                finally:
                    client.close()

    def _talk(self, client: socket.socket) -> None:
        if self._ended:
            return
        if self.greeting and not self.silent:
            client.sendall(self.greeting)
        rest = b""
        while more := client.recv(1 << 16):
            rest = (rest + more).lstrip(b"\xff \r\n")
            while rest:  # clients need not end their messages with a line's end
                try:
                    request, length = json.JSONDecoder().raw_decode(rest.decode())
                except ValueError:
                    break
                rest = rest[length:].lstrip(b"\xff \r\n")
                if not self.silent:
                    client.sendall(self.answer(request))


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\r\n"


class FakeQemu(_Server):
    """The QMP socket of a guest of `size_bytes` with a balloon whose driver follows at once, if it is there."""

    greeting = _line({"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 0}}, "capabilities": []}})

    def __init__(
        self, path: Path | str, size_bytes: int, *, balloon: bool = True, driver: bool = True
    ) -> None:
        self.size_bytes = size_bytes
        self.target_bytes = size_bytes
        self.balloon = balloon
        self.driver = driver
        self.statistics: dict[str, int] = {}
        self.updated_s = 0
        self.period_s = 0
        self.deflates = False  # when the guest runs out of memory
        super().__init__(path)

    def answer(self, request: dict[str, Any]) -> bytes:
        command, arguments = request["execute"], request.get("arguments", {})
        self.calls.append(command)
        try:
            said = {"return": self._return(command, arguments)}
        except LookupError as error:
            kind, text = error.args
            said = {"error": {"class": kind, "desc": text}}
        return _line({**said, "id": request.get("id")})

    def _return(self, command: str, arguments: dict[str, Any]) -> Any:
        match command, arguments:
            case "qmp_capabilities", _:
                return {}
            case "query-memory-size-summary", _:
                return {"base-memory": self.size_bytes, "plugged-memory": 0}
            case "query-balloon", _:
                if not self.balloon:
                    raise LookupError("DeviceNotActive", "No balloon device has been activated")
                return {"actual": self.target_bytes if self.driver else self.size_bytes}
            case "balloon", {"value": value}:
                if not self.balloon:
                    raise LookupError("DeviceNotActive", "No balloon device has been activated")
                self.target_bytes = min(value, self.size_bytes)
                return {}
            case "qom-list", {"path": "/machine/peripheral"} if self.balloon:
                return [{"name": "balloon0", "type": "child<virtio-balloon-pci>"}]
            case "qom-list", _:
                return []
            case "qom-get", {"path": str(path), "property": "guest-stats"} if path == _DEVICE:
                return {"stats": self.statistics, "last-update": self.updated_s}
            case "qom-get", {"path": str(path), "property": "guest-stats-polling-interval"} if (
                path == _DEVICE
            ):
                return self.period_s
            case "qom-get", {"path": str(path), "property": "deflate-on-oom"} if path == _DEVICE:
                return self.deflates
            case "qom-set", {"path": str(path), "value": value} if path == _DEVICE:
                self.period_s = value
                return {}
        raise LookupError("CommandNotFound", f"The command {command} has not been found")


class FakeAgent(_Server):
    """A guest agent that shows the files of `files`; `refuse` makes it say no to every command but the sync."""

    def __init__(self, path: Path | str, files: dict[str, str]) -> None:
        self.files = files
        self.refuse = ""
        self.junk = b""  # said before the next answer
        self._open: dict[int, bytes] = {}
        self._handles = 0
        super().__init__(path)

    @property
    def left_open(self) -> int:
        """Files that nobody has closed."""
        return len(self._open)

    def answer(self, request: dict[str, Any]) -> bytes:
        command, arguments = request["execute"], request.get("arguments", {})
        self.calls.append(command)
        junk, self.junk = self.junk, b""
        if command == "guest-sync-delimited":
            return junk + b"\xff" + _line({"return": arguments["id"]})
        if self.refuse:
            return junk + _line({"error": {"class": "GenericError", "desc": self.refuse}})
        try:
            return junk + _line({"return": self._return(command, arguments)})
        except KeyError as error:
            return junk + _line({"error": {"class": "GenericError", "desc": f"no {error}"}})

    def _return(self, command: str, arguments: dict[str, Any]) -> Any:
        match command:
            case "guest-file-open":
                content = self.files[arguments["path"]]
                self._handles += 1
                self._open[self._handles] = content.encode()
                return self._handles
            case "guest-file-read":
                piece, rest = self._cut(arguments["handle"], arguments["count"])
                return {"count": len(piece), "buf-b64": base64.b64encode(piece).decode(), "eof": not rest}
            case "guest-file-close":
                del self._open[arguments["handle"]]
                return {}
        raise KeyError(command)

    def _cut(self, handle: int, count: int) -> tuple[bytes, bytes]:
        content = self._open[handle]
        self._open[handle] = content[count:]
        return content[:count], content[count:]
