"""A client of upsd, the daemon of Network UPS Tools: its line protocol, over TCP, with TLS where the server has
it.

Used by `powerfail.sources` and at the end of a drain (`logout` tells upsd that it need not wait for this
host). Protocol: RFC 9271, and docs/net-protocol.txt of Network UPS Tools. Every call has a time-out; after
any error but `NutRefused` the connection is of no more use.
"""

import contextlib
import socket
import ssl
from typing import Self

from sustain.errors import PowerSourceError

PORT = 3493
_LINE_LIMIT_BYTES = 16 << 10
_LINES_LIMIT = 10_000

_HINTS = {
    "UNKNOWN-UPS": "`upsc -l HOST` lists the names that this upsd knows",
    "DRIVER-NOT-CONNECTED": "the driver of this UPS is not running: look at its log on the host of upsd",
    "DATA-STALE": "the driver has lost its UPS: look at the cable and at the driver's log",
    "ACCESS-DENIED": "user and password are in upsd.users, on the host of upsd",
    "USERNAME-REQUIRED": "give a user and a password",
    "PASSWORD-REQUIRED": "give a password",
}


class NutRefused(PowerSourceError):
    """upsd answered ERR. `code` is its word: DATA-STALE, UNKNOWN-UPS, ACCESS-DENIED, …"""

    def __init__(self, where: str, code: str) -> None:
        super().__init__(f"{where}: upsd says {code}", hint=_HINTS.get(code.split(" ", maxsplit=1)[0], ""))
        self.code = code.split(" ", maxsplit=1)[0]


class NutClient:
    """One connection to an upsd. A context manager that closes it."""

    def __init__(self, host: str, port: int = PORT, *, timeout_s: float = 5.0) -> None:
        """Connects. Raises PowerSourceError."""
        self._where = f"{host}:{port}"
        self._host = host
        self._rest = b""
        try:
            self._socket = socket.create_connection((host, port), timeout=timeout_s)
        except OSError as error:
            raise PowerSourceError(
                f"{self._where}: upsd cannot be reached: {error.strerror or error}",
                hint="is upsd running there, and does its upsd.conf LISTEN on that address?",
            ) from None

    def start_tls(self, context: ssl.SSLContext | None = None) -> bool:
        """Encrypt from now on; False when this upsd has no TLS, the connection then goes on without.

        Without a `context` the server's certificate is not verified: that keeps listeners out, not impostors.
        """
        try:
            self._ask("STARTTLS", "OK STARTTLS")
        except NutRefused as refused:
            if refused.code in ("FEATURE-NOT-CONFIGURED", "FEATURE-NOT-SUPPORTED", "UNKNOWN-COMMAND"):
                return False
            raise
        if context is None:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            self._socket = context.wrap_socket(self._socket, server_hostname=self._host)
        except OSError as error:
            raise self._lost(f"TLS: {error}") from None
        return True

    def list_ups(self) -> dict[str, str]:
        """Names of the supplies, with their descriptions."""
        return {words[1]: words[2] for words in self._list("UPS") if len(words) >= 3}

    def variables(self, ups: str) -> dict[str, str]:
        """All variables of a supply. Raises NutRefused, with code DATA-STALE when they are not to be believed."""
        return {words[2]: words[3] for words in self._list(f"VAR {quoted(ups)}") if len(words) == 4}

    def variable(self, ups: str, name: str) -> str:
        """One variable. Raises NutRefused, with code VAR-NOT-SUPPORTED when the supply does not have it."""
        words = split(self._ask(f"GET VAR {quoted(ups)} {quoted(name)}", "VAR "))
        if len(words) != 4:
            raise self._lost(f"the answer {' '.join(words)!r} is not a variable")
        return words[3]

    def login(self, ups: str, user: str, password: str) -> None:
        """Be counted among those whom this supply feeds: upsd's primary waits for their `logout` (for HOSTSYNC
        seconds at most) before it cuts the power."""
        self._ask(f"USERNAME {quoted(user)}", "OK")
        self._ask(f"PASSWORD {quoted(password)}", "OK")
        self._ask(f"LOGIN {quoted(ups)}", "OK")

    def logout(self) -> None:
        """Be counted no more, and close."""
        with contextlib.suppress(OSError, PowerSourceError):
            self._send("LOGOUT")
            self._line()
        self.close()

    def close(self) -> None:
        """A login ends with the connection."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, command: str, beginning: str) -> str:
        self._send(command)
        line = self._line()
        if not line.startswith(beginning):
            raise self._lost(f"the answer to {command.split(' ', maxsplit=1)[0]} was {line[:80]!r}")
        return line

    def _list(self, what: str) -> list[list[str]]:
        self._ask(f"LIST {what}", "BEGIN LIST ")
        found: list[list[str]] = []
        while not (line := self._line()).startswith("END LIST "):
            found.append(split(line))
            if len(found) > _LINES_LIMIT:
                raise self._lost(f"LIST {what} does not end")
        return found

    def _send(self, command: str) -> None:
        if "\n" in command or "\r" in command:
            raise PowerSourceError(f"{self._where}: a line end in a name or a password", hint="")
        try:
            self._socket.sendall(f"{command}\n".encode())
        except OSError as error:
            raise self._lost(str(error.strerror or error)) from None

    def _line(self) -> str:
        while b"\n" not in self._rest:
            if len(self._rest) > _LINE_LIMIT_BYTES:
                raise self._lost("a line without an end")
            try:
                more = self._socket.recv(4096)
            except TimeoutError:
                raise self._lost("no answer in time") from None
            except OSError as error:
                raise self._lost(str(error.strerror or error)) from None
            if not more:
                raise self._lost("it closed the connection")
            self._rest += more
        raw, self._rest = self._rest.split(b"\n", 1)
        line = raw.decode("utf-8", "replace").rstrip("\r")
        if line.startswith("ERR "):
            raise NutRefused(self._where, line[4:])
        return line

    def _lost(self, why: str) -> PowerSourceError:
        self.close()
        return PowerSourceError(f"{self._where}: upsd: {why}", hint="the connection is made anew")


def quoted(text: str) -> str:
    """A word as the protocol wants it: in quotes when it has to be."""
    if text and not any(c in ' "\\' for c in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def split(line: str) -> list[str]:
    """The words of a line; those in quotes may hold spaces, and quotes and backslashes behind a backslash."""
    words: list[str] = []
    word: list[str] | None = None
    in_quotes = escaped = False
    for c in line:
        if escaped:
            word = [*(word or []), c]
            escaped = False
        elif c == "\\":
            escaped = True
        elif c == '"':
            word, in_quotes = word or [], not in_quotes
        elif c == " " and not in_quotes:
            if word is not None:
                words.append("".join(word))
            word = None
        else:
            word = [*(word or []), c]
    if word is not None:
        words.append("".join(word))
    return words
