"""The QEMU guest agent, over the UNIX socket of its port: what the guest says of itself in files of its /proc.

https://www.qemu.org/docs/master/interop/qemu-ga-ref.html. The channel has no connections: answers to somebody who has
hung up come to the next one. So a conversation begins with `guest-sync-delimited`: everything up to byte 0xFF and the
number just sent is dropped, on both sides. After a time-out the conversation is over; the next one finds its own start.
Everything here comes from the guest and is believed in form only. Not by the package `qemu.qmp`, which knows no 0xFF.
"""

import base64
import itertools
import json
import os
import socket
import time
from collections.abc import Iterable
from typing import Any, Protocol, Self

from sustain.errors import HostError
from sustain.host.processes import peer

_ANSWER_LIMIT_BYTES = 1 << 22
_FILE_LIMIT_BYTES = 1 << 20
_READ_BYTES = 1 << 16

_numbers = itertools.count(int.from_bytes(os.urandom(4)))  # of two clients in turn, none repeats the other's


# What Linux guests tell of their memory.
MEMINFO, VMSTAT, PRESSURE = "/proc/meminfo", "/proc/vmstat", "/proc/pressure/memory"
BOOT_ID = "/proc/sys/kernel/random/boot_id"


class AgentRefused(HostError):
    """The agent answered, and said no."""


class Asking(Protocol):
    """Whoever passes a command on to a guest agent: this module's client, or libvirt."""

    def ask(self, command: str, **arguments: Any) -> Any: ...


class GuestAgent:
    """One conversation, which may take `timeout_s` in all; `listener`: the pid of who answers, as `processes.peer` says
    it. Raises HostError for whatever goes wrong."""

    def __init__(self, path: str, timeout_s: float = 2.0) -> None:
        self._path = path
        self._deadline = time.monotonic() + timeout_s
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise HostError(
                f"{path}: guest agent: {error.strerror or error}",
                hint="QEMU needs -chardev socket,path=PATH,server=on,wait=off,id=A -device virtio-serial "
                "-device virtserialport,chardev=A,name=org.qemu.guest_agent.0",
                errno=error.errno,
            ) from None
        self.listener = peer(self._socket)
        self._sync()

    def ask(self, command: str, **arguments: Any) -> Any:
        """The answer to a command; AgentRefused when it is an error."""
        self._send(command, arguments)
        line = self._line()
        try:
            message = _parse(line)
        except ValueError:
            raise AgentRefused(f"{self._path}: guest agent: {line[:80]!r} is not a message") from None
        if "error" in message:
            error = message["error"]
            why = error.get("desc", error) if isinstance(error, dict) else error
            raise AgentRefused(f"{self._path}: guest agent: {command}: {why}")
        if "return" not in message:
            raise self._lost(f"{command}: an answer without an answer")
        return message["return"]

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sync(self) -> None:
        number = next(_numbers)
        # The 0xFF makes the agent drop half a command that somebody may have left it with.
        self._send("guest-sync-delimited", {"id": number}, b"\xff")
        while True:
            try:
                message = _parse(self._line().rpartition(b"\xff")[2])
            except ValueError:
                continue  # the rest of somebody else's answer
            if message.get("return") == number:
                return

    def _send(self, command: str, arguments: dict[str, Any], before: bytes = b"") -> None:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            self._socket.settimeout(max(0.001, self._deadline - time.monotonic()))
            self._socket.sendall(before + json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._lost(f"{command}: {error.strerror or error}") from None

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            if len(self._rest) > _ANSWER_LIMIT_BYTES:
                raise self._lost("an answer without an end")
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise self._lost("no answer in time (is the agent running?)")
            try:
                self._socket.settimeout(left_s)
                more = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError as error:
                raise self._lost(str(error.strerror or error)) from None
            if not more:
                raise self._lost("QEMU closed the connection")
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    def _lost(self, why: str) -> HostError:
        self.close()
        return HostError(
            f"{self._path}: guest agent: {why}", hint="is qemu-guest-agent running in the guest?"
        )


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


def read_texts(agent: Asking, paths: Iterable[str]) -> dict[str, str | None]:
    """The guest's files as text; None for one that it does not have, or does not show."""
    return {path: _read(agent, path) for path in paths}


def _read(agent: Asking, path: str) -> str | None:
    try:
        handle = agent.ask("guest-file-open", path=path, mode="r")
    except AgentRefused as error:
        if "disabled" in str(error) or "not allowed" in str(error):
            raise AgentRefused(
                str(error), hint="allow guest-file-open, -read and -close in the guest"
            ) from None
        return None
    if not isinstance(handle, int):
        raise AgentRefused(f"{path}: guest agent: {str(handle)[:80]} is no handle of a file")
    try:
        text = _read_all(agent, handle)
    except AgentRefused:
        text = None
    agent.ask("guest-file-close", handle=handle)
    return text


def _read_all(agent: Asking, handle: Any) -> str:
    content = b""
    while len(content) < _FILE_LIMIT_BYTES:
        answer = agent.ask("guest-file-read", handle=handle, count=_READ_BYTES)
        try:
            piece = base64.b64decode(answer["buf-b64"], validate=True)
            content += piece
            if answer["eof"] or not piece:
                break
        except (KeyError, TypeError, ValueError):
            raise AgentRefused(f"guest agent: {str(answer)[:80]} is not a piece of a file") from None
    return content.decode("utf-8", "replace")
