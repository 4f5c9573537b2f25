"""Redis as an end-to-end peer: a primary with append-only file (everysec) and one replica.

The client below speaks RESP over one socket: a request, an answer. The usual Python client would spend
several times as long per call, and its time would be taken for the server's.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from bench.peers.pmemobj import PeerMissing


class RedisClient:
    """One connection; `call` sends one command and returns its answer."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def call(self, *parts: bytes) -> bytes | int | list[bytes | None] | None:
        """The answer; RuntimeError when the server says no, ConnectionError when it is gone."""
        self.socket.sendall(encode(*parts))
        return self.answer()

    def answer(self) -> bytes | int | list[bytes | None] | None:
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        items = [self.answer() for _ in range(int(rest))]
        return [item if isinstance(item, bytes) else None for item in items]

    def info(self, section: bytes) -> dict[str, str]:
        text = self.call(b"INFO", section)
        assert isinstance(text, bytes)
        return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()
            self.socket.close()


def encode(*parts: bytes) -> bytes:
    """A command on the wire."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class RedisServer:
    """A server of our own in `directory`, on a free loopback port; a replica when `primary` is given."""

    def __init__(self, directory: Path, primary: "RedisServer | None" = None) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise PeerMissing("no redis-server (apt-get install redis-server)")
        directory.mkdir()
        self.port = free_port()
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": directory,
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "daemonize": "no",
            "repl-diskless-sync-delay": 0,
            "loglevel": "warning",
        }
        if primary is not None:
            options["replicaof"] = f"127.0.0.1 {primary.port}"
        words = [program]
        for name, value in options.items():
            words += [f"--{name}", *(str(value).split(" ") if name == "replicaof" else [str(value)])]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = self._connect()

    def _connect(self) -> RedisClient:
        deadline = time.monotonic() + 20
        while True:
            try:
                client = RedisClient(self.port)
                client.call(b"PING")
            except (OSError, RuntimeError):
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.01)
            else:
                return client

    def wait_for_replica(self, replica: "RedisServer") -> None:
        """Until the replica follows the stream (not merely loads the snapshot) and acknowledged a write."""
        deadline = time.monotonic() + 20
        while not self._followed_by(replica):
            if time.monotonic() > deadline:
                raise TimeoutError("the Redis replica did not come online")
            time.sleep(0.01)

    def _followed_by(self, replica: "RedisServer") -> bool:
        if "state=online" not in self.client.info(b"replication").get("slave0", ""):
            return False
        if replica.client.info(b"replication").get("master_link_status", "").strip() != "up":
            return False
        self.client.call(b"SET", b"warm-up", b"")
        return self.client.call(b"WAIT", b"1", b"100") == 1

    def kill(self) -> None:
        """SIGKILL, as the loss of a host."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.kill()
