"""PostgreSQL as an end-to-end peer: a primary and one hot standby by streaming replication, of Debian's package.

The servers are our own, in a directory of ours, on free loopback ports. PostgreSQL refuses to run as root: then they
run as the user that the package made. The client is psycopg, with prepared statements.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg

from bench.peers.pmemobj import PeerMissing
from bench.peers.redis import free_port

_USER = "postgres"  # Debian's


def programs() -> Path:
    """Where the newest PostgreSQL of Debian's layout has its programs. Raises PeerMissing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise PeerMissing("no PostgreSQL (apt-get install postgresql)")
    return found[-1].parent


class PostgresServer:
    """A server in `directory`, which is made; a standby when `primary` is given.

    synchronous: a commit waits until the standby has it durable. Otherwise replication is asynchronous, and a commit
    waits for the flush of the primary's own log (PostgreSQL's default).
    """

    def __init__(
        self, directory: Path, primary: "PostgresServer | None" = None, *, synchronous: bool = False
    ) -> None:
        self._programs = programs()
        self._data = directory / "data"
        directory.mkdir()
        if os.geteuid() == 0:
            shutil.chown(directory, _USER, _USER)
        self.port = free_port()
        if primary is None:
            self._run(
                "initdb", "-D", self._data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N"
            )
        else:
            source = f"host=127.0.0.1 port={primary.port} user={_USER} application_name=standby"
            self._run("pg_basebackup", "-D", self._data, "-R", "-X", "stream", "-c", "fast", "-d", source)
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "synchronous_standby_names": "standby" if synchronous and primary is None else "",
            "hot_standby": "on",
            "wal_keep_size": "256MB",
            "max_wal_size": "4GB",
            "autovacuum": "off",
            "dynamic_shared_memory_type": "mmap",  # in the directory, where nothing outlives it
        }
        words = [str(self._programs / "postgres"), "-D", str(self._data)]
        for name, value in options.items():
            words += ["-c", f"{name}={value}"]
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **_as_user()
            )
        try:
            self.client = self.connect()
        except BaseException:
            self.kill()
            raise

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """One more connection, each statement a transaction of its own; waits until the server takes it."""
        deadline = time.monotonic() + 60
        while True:
            try:
                connection = psycopg.connect(
                    host="127.0.0.1", port=self.port, user=_USER, dbname="postgres", autocommit=True
                )
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    said = self._log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"PostgreSQL did not start: {error}\n{said}") from error
                time.sleep(0.01)
            else:
                connection.prepare_threshold = 0
                return connection

    def wait_for_standby(self) -> None:
        """Until a standby streams from this one."""
        deadline = time.monotonic() + 60
        while self.one("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") != 1:
            if time.monotonic() > deadline:
                raise TimeoutError("the PostgreSQL standby did not come online")
            time.sleep(0.01)

    def one(self, query: str) -> Any:
        """The one value that a query answers."""
        row = self.client.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def promote(self) -> None:
        """Make a standby a primary; returns when it takes writes, having replayed all that it had received."""
        assert self.one("SELECT pg_promote(true, 60)") is True

    def kill(self) -> None:
        """SIGKILL to every process of the server, as the loss of a host."""
        if self.process.poll() is None:
            # Each is the leader of a session of its own, so there is no group to kill.
            for pid in (self.process.pid, *_children(self.process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self._remove_segment()

    def _remove_segment(self) -> None:
        """The System V segment by which a server knows that it is the only one: a killed one leaves it behind."""
        lines = (self._data / "postmaster.pid").read_text().splitlines()
        if len(lines) >= 7:  # "key id"; written once there is one
            subprocess.run(["ipcrm", "-m", lines[6].split()[1]], check=True, capture_output=True)

    def close(self) -> None:
        self.client.close()
        self.kill()

    def _run(self, program: str, *words: object) -> None:
        made = subprocess.run(
            [str(self._programs / program), *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            **_as_user(),
        )
        if made.returncode != 0:
            raise RuntimeError(f"{program} failed: {made.stderr[-2000:]}")


def _children(pid: int) -> list[int]:
    found = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(each.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(each.parent.name))
    return found


def _as_user() -> dict[str, Any]:
    """Arguments for `subprocess` that make root another user."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(_USER)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": "/"}
