"""Real workloads on one machine: two or three `sustain run`, a shared lease directory, what they wrote down."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sustain.host.maps import all_pids
from sustain.host.processes import parents

if TYPE_CHECKING:
    from tests.failover.etcd import Etcd

APP = Path(__file__).with_name("app.py")
TTL_S = 3.0  # a disk of a busy machine may take seconds to flush a renewal
LIMIT_S = 90.0  # on a machine that is busy with other things


def until(condition: Callable[[], Any], what: str | Callable[[], str], limit_s: float = LIMIT_S) -> Any:
    """Wait for something that has no event of its own; what `condition` gave. Fails after the limit, with `what`."""
    deadline, pause = time.monotonic() + limit_s, threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {limit_s:g} s: {what if isinstance(what, str) else what()}")
        pause.wait(0.01)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Host:
    """One `sustain run`, and what can be done to it."""

    def __init__(self, cluster: "Cluster", name: str, port: int) -> None:
        self.cluster = cluster
        self.name = name
        self.port = port
        self.dir = cluster.dir / name
        self.dir.mkdir()
        self.store = self.dir / "app.sus"
        self.log = self.dir / "app.log"
        self.events_file = self.dir / "events.jsonl"
        self.process: subprocess.Popen[bytes] | None = None
        self.lease_url = cluster.lease_url
        self.address = "127.0.0.1"
        self.prefix: tuple[str, ...] = ()  # of every command line: where it runs

    def start(self, *app: str, options: tuple[str, ...] = (), program: Path = APP) -> "Host":
        others = [each for each in self.cluster.hosts if each is not self]
        argv = [
            *self.prefix,
            sys.executable,
            "-m",
            "sustain.cli",
            "run",
            "--store",
            str(self.store),
            "--name",
            self.name,
        ]
        argv += ["--lease", self.lease_url, "--ttl", f"{TTL_S}s"]
        argv += ["--listen", f"{self.address}:{self.port}", "--event-log", str(self.events_file)]
        argv += [word for each in others for word in ("--peer", f"tcp://{each.address}:{each.port}")]
        argv += ["--size", "16MiB", "--log-size", "4MiB", "--stop-timeout", "2s", "--drain-timeout", "3s"]
        argv += [*options, "--", sys.executable, str(program), str(self.log), *app]
        with (self.dir / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)
        return self

    def state(self) -> dict[str, Any]:
        """What it says of itself to others."""
        try:
            held = json.loads(Path(f"{self.store}.run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return held if isinstance(held, dict) else {}

    def becomes(self, role: str) -> "Host":
        until(
            lambda: self.state().get("role") == role and self.alive(),
            f"{self.name} is {role}\n{self.output()}",
        )
        return self

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def ends(self) -> int:
        assert self.process is not None
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} does not end\n{self.output()}")

    def output(self) -> str:
        return (self.dir / "output.txt").read_text(errors="replace")

    def events(self) -> list[dict[str, Any]]:
        if not self.events_file.exists():
            return []
        lines = self.events_file.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def said(self, what: str) -> list[dict[str, Any]]:
        """What its command wrote down."""
        if not self.log.exists():
            return []
        lines = self.log.read_text().split("\n")[:-1]
        return [entry for entry in map(json.loads, lines) if entry["what"] == what]

    def pids(self, *roles: str) -> list[int]:
        state = self.state()
        found = [state[f"{role}_process"] for role in roles or ("command", "shipper", "receiver")]
        return [identity[0] for identity in found if identity]

    def signal_all(self, number: int) -> None:
        """Supervisor, command, shipper, receiver: as when the host stops."""
        assert self.process is not None
        for pid in (self.process.pid, *self.pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGKILL:
            self.process.wait()

    def kill_supervisor(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.ends()


class Cluster:
    """Hosts that share a lease: of the directory `lease`, or another by its URL."""

    def __init__(self, directory: Path, count: int, lease_url: str = "") -> None:
        self.dir = directory
        self.lease = directory / "lease"
        self.lease.mkdir()
        self.lease_url = lease_url or f"file://{self.lease}"
        self.hosts: list[Host] = []
        ports = free_ports(count)
        self.hosts = [Host(self, chr(97 + at), port) for at, port in enumerate(ports)]

    def __getitem__(self, at: int) -> Host:
        return self.hosts[at]

    def all_said(self, what: str) -> list[dict[str, Any]]:
        return sorted(
            (entry for host in self.hosts for entry in host.said(what)), key=lambda each: each["ns"]
        )

    def replicated(self, primary: Host, standby: Host) -> None:
        """Wait until commits of the primary are held by the standby."""
        from sustain._native import Control

        def holds() -> bool:
            if not standby.store.exists():
                return False
            control = Control(str(primary.store))
            try:
                found = [each for each in control.destinations() if each["url"].endswith(f":{standby.port}")]
                return any(each["state"] == "streaming" and (each["acked"] or 0) > 0 for each in found)
            finally:
                control.close()

        until(holds, lambda: f"{standby.name} follows {primary.name}\n{primary.output()}\n{standby.output()}")

    def end(self) -> None:
        for host in self.hosts:
            pids = set(host.pids() if host.state() else [])
            if host.alive():
                assert host.process is not None
                # It may be starting something that no file names yet: stopped first, it starts nothing more.
                host.process.send_signal(signal.SIGSTOP)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(host.process.pid, os.WUNTRACED)
                pids |= {pid for pid in all_pids() if host.process.pid in parents(pid)}
                host.process.kill()
                host.process.wait()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Etcd"]:
    """A real etcd of one member, for all tests of a file; each has names of its own there."""
    from tests.failover.etcd import available, running

    if not available():
        pytest.skip("no etcd (Debian: etcd-server)")
    with running(tmp_path_factory.mktemp("etcd")) as found:
        yield found


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def make(count: int = 2, lease_url: str = "") -> Cluster:
        made.append(Cluster(tmp_path, count, lease_url))
        return made[-1]

    yield make
    for cluster in made:
        cluster.end()


@pytest.fixture
def pair(clusters: Callable[..., Cluster], request: pytest.FixtureRequest) -> Cluster:
    """Two hosts; with a directory for a lease, or with `etcd` where a test asks for that, too (`LEASES`)."""
    if getattr(request, "param", "file") == "file":
        return clusters(2)
    return clusters(2, f"{request.getfixturevalue('etcd').url}/{uuid.uuid4().hex}")


LEASES = pytest.mark.parametrize("pair", ["file", "etcd"], indirect=True)
