"""Real etcd members, each in a directory of its own, on free ports of loopback (or in a network namespace).

Packages: etcd-server (scripts/setup-debian.sh test). Everything started here is also ended here, by pid.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.failover.conftest import free_ports, until

PEER_NAMES = "m0", "m1", "m2"


def available() -> bool:
    return shutil.which("etcd") is not None


class Member:
    """One etcd process. `https`: (certificate, key, CA that clients must be of or "")."""

    def __init__(
        self, directory: Path, name: str, ports: tuple[int, int], https: tuple[str, str, str] | None = None
    ) -> None:
        self.dir = directory / name
        self.dir.mkdir(parents=True)
        self.name = name
        self.host = "127.0.0.1"
        self.port, self.peer_port = ports
        self.https = https
        self.prefix: tuple[str, ...] = ()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def peer_url(self) -> str:
        return f"http://{self.host}:{self.peer_port}"

    def start(self, cluster: str, more: tuple[str, ...] = ()) -> None:
        client = f"{'https' if self.https else 'http'}://{self.address}"
        argv = [*self.prefix, "etcd", "--name", self.name, "--data-dir", str(self.dir / "data")]
        argv += ["--listen-client-urls", client, "--advertise-client-urls", client]
        argv += ["--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url]
        argv += ["--initial-cluster", cluster, "--initial-cluster-token", str(self.dir.parent), *more]
        if self.https:
            certificate, key, clients = self.https
            argv += ["--cert-file", certificate, "--key-file", key]
            argv += ["--client-cert-auth", "--trusted-ca-file", clients] if clients else []
        with (self.dir / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)

    def says(self) -> dict[str, Any]:
        """What it says of itself; empty when it does not answer."""
        return ask(self.address, "/v3/maintenance/status", {})

    def serves(self) -> bool:
        """Whether it takes part in a cluster that has a leader."""
        if self.https is not None:  # it may want a certificate
            return "ready to serve client requests" in self.output()
        return bool(self.says().get("leader", "0") != "0")

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)
            os.kill(self.process.pid, number)
            self.process.wait(30)

    def pause(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def output(self) -> str:
        return (self.dir / "output.txt").read_text(errors="replace")[-3000:]


class Etcd:
    """A cluster of `count` members."""

    def __init__(self, directory: Path, count: int = 1, https: tuple[str, str, str] | None = None) -> None:
        ports = free_ports(2 * count)
        self.members = [
            Member(directory, PEER_NAMES[at], (ports[2 * at], ports[2 * at + 1]), https)
            for at in range(count)
        ]

    @property
    def url(self) -> str:
        return "etcd://" + ",".join(each.address for each in self.members)

    @property
    def layout(self) -> str:
        return ",".join(f"{each.name}={each.peer_url}" for each in self.members)

    def start(self, *more: str) -> "Etcd":
        for each in self.members:
            each.start(self.layout, more)
        for each in self.members:
            until(each.serves, lambda each=each: f"{each.name} is up\n{each.output()}")
        return self

    def restart(self, member: Member) -> None:
        member.start(self.layout)
        until(member.serves, lambda: f"{member.name} is back\n{member.output()}")

    @property
    def leader(self) -> Member:
        def leads() -> Member | None:
            told = [(each, each.says()) for each in self.members]
            return next(
                (each for each, said in told if said and said["leader"] == said["header"]["member_id"]), None
            )

        found: Member = until(leads, "a member leads")
        return found

    def end(self) -> None:
        for each in self.members:
            each.stop()


@contextlib.contextmanager
def running(directory: Path, count: int = 1, https: tuple[str, str, str] | None = None) -> Iterator[Etcd]:
    cluster = Etcd(directory, count, https)
    try:
        yield cluster.start()
    finally:
        cluster.end()


def ask(address: str, path: str, request: dict[str, Any]) -> dict[str, Any]:
    """One question, for tests; empty when there is no answer."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    try:
        connection.request("POST", path, json.dumps(request))
        found = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    return found if isinstance(found, dict) else {}


class Link:
    """What lies between a host and an etcd member, and loses things: `fault` says how for each question.

    Faults: "" none; "lose" the question is carried out and the connection closed without an answer; "silent" the same
    and the connection stays open; "hold" the question is carried out only after `let_go`; "drip" the answer comes byte
    by byte; "garbage" the answer is no HTTP; "html" it is a web server's.
    """

    def __init__(self, to: str) -> None:
        self.fault = ""
        self.only = ""  # of questions to this path
        self.times = 1 << 30  # so many questions; the others are not harmed
        self.count = 0  # of questions that met the fault
        self._go, self._closed = threading.Event(), threading.Event()
        link = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                link._carry(self, to)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def set(self, fault: str, only: str = "", times: int = 1 << 30) -> None:
        self.fault, self.only, self.times, self.count = fault, only, times, 0
        self._go.clear()

    def let_go(self) -> None:
        self.fault = ""
        self._go.set()

    def close(self) -> None:
        self._closed.set()
        self._go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _carry(self, handler: BaseHTTPRequestHandler, to: str) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        fault = self.fault if self.only in handler.path and self.count < self.times else ""
        self.count += bool(fault)
        if fault == "hold":
            self._go.wait(60)
        host, _, port = to.rpartition(":")
        upstream = http.client.HTTPConnection(host, int(port), timeout=60)
        try:
            token = handler.headers.get("Authorization")
            upstream.request("POST", handler.path, body, {"Authorization": token} if token else {})
            answer = upstream.getresponse()
            status, text = answer.status, answer.read()
        except OSError:
            handler.close_connection = True
            return
        finally:
            upstream.close()
        if fault == "silent":
            self._closed.wait(60)
        if fault in ("lose", "silent"):
            handler.close_connection = True
            return
        with contextlib.suppress(OSError):
            self._answer(handler, fault, status, text)

    def _answer(self, handler: BaseHTTPRequestHandler, fault: str, status: int, text: bytes) -> None:
        if fault == "garbage":
            handler.wfile.write(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n")
            handler.close_connection = True
            return
        if fault == "html":
            status, text = 200, b"<html><body>It works!</body></html>"
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        whole = head.encode() + text
        if fault != "drip":
            handler.wfile.write(whole)
            return
        handler.close_connection = True
        for at in range(len(whole)):
            handler.wfile.write(whole[at : at + 1])
            handler.wfile.flush()
            if self._closed.wait(0.05):
                return
