"""Answers to GET on a loopback address or a UNIX socket, and nothing else.

Used by `agent`, which gives the pages. Whoever may ask may know: there are no secrets in what is answered and nothing
can be changed here, so there is no key; that nobody on another host can ask is checked by the configuration.
"""

import contextlib
import http.client
import os
import socket
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from sustain.errors import AgentError

Address = tuple[str, int] | str  # (host, port), or the path of a UNIX socket


class Page(NamedTuple):
    """An answer."""

    body: bytes
    type: str = "application/json"
    status: int = 200


Pages = Callable[[str, Mapping[str, str]], Page | None]  # path and what follows "?"; None: there is none


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    pages: Pages

    def server_bind(self) -> None:
        # Without HTTPServer's: it asks the resolver for our name, which may take its time.
        if self.address_family != socket.AF_UNIX:
            # Connections that a killed agent had answered lie in TIME_WAIT for a minute, and keep nobody from starting.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        sock, _ = self.socket.accept()
        return sock, ("", 0)


class _Ipv6Server(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10.0

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        page = self.server.pages(path, dict(urllib.parse.parse_qsl(query)))
        if page is None:
            page = Page(
                b"there is /healthz, /status, /metrics, /schedulers/NAME[/QUESTION]\n", "text/plain", 404
            )
        self.send_response(page.status)
        self.send_header("Content-Type", page.type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # whoever asked has gone
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: object) -> None:
        """Who looked is not worth a line."""


class Server:
    """Answers with `pages` until closed. Raises AgentError when the address cannot be had."""

    def __init__(self, address: Address, pages: Pages) -> None:
        self._path = address if isinstance(address, str) else None
        try:
            if self._path is not None:
                _remove_dead(self._path)
            kind = _UnixServer if self._path is not None else _Ipv6Server if ":" in address[0] else _Server
            self._server = kind(address, _Handler)  # type: ignore[arg-type]
        except OSError as error:
            raise AgentError(
                f"{_shown(address)}: {error.strerror or error}",
                hint="another agent, or another program there? agent.listen names another address",
            ) from error
        if self._path is not None:
            os.chmod(self._path, 0o660)
        self._server.pages = pages
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(1.0,), name="http", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> Address:
        """Where it listens; the port that was found for port 0."""
        if self._path is not None:
            return self._path
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if self._path is not None:
            Path(self._path).unlink(missing_ok=True)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._socket_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)


def get(address: Address, path: str, timeout_s: float = 5.0) -> Page:
    """Ask an agent. Raises AgentError when nobody answers."""
    if isinstance(address, str):
        connection: http.client.HTTPConnection = _UnixConnection(address, timeout_s)
    else:
        connection = http.client.HTTPConnection(*address, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return Page(answer.read(), answer.getheader("Content-Type", ""), answer.status)
    except (OSError, http.client.HTTPException) as error:
        raise AgentError(
            f"{_shown(address)}: no agent answers: {error}", hint="start it: sustain agent --config FILE"
        ) from error
    finally:
        connection.close()


def _remove_dead(path: str) -> None:
    """A socket that a killed agent has left is in the way; one that is answered is not ours to take."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        except FileNotFoundError:
            pass


def _shown(address: Address) -> str:
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"
