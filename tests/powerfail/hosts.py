"""Hosts as network namespaces on one bridge, with a link that can be throttled, and a plug that can be pulled.

Used by the tests of outages. A host is a namespace, a tmpfs that stands for its memory, a directory that stands for its
disk, and one `sustain run` in it. The network is a bridge of the root namespace, whose address every host reaches: a
real upsd listens there. Directory of the lease: shared by all, like a file system of the site.

A power cut takes the link down first, with one system call, and only then kills every process of the namespace, again
and again until there is none: what a killed process had handed to its socket would otherwise still be sent by the
kernel, which a host without power does not do. Between the two, about a millisecond, the host still computes, cut off
(and reaches the lease's directory). Then its memory is wiped. SIGSTOP first would be no power cut: nothing may be
waited for.

Everything made here is named by the pid of the test's process, and removed at the end, also after a failure; what a
killed run left behind is removed by the next one.
"""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from tests.powerfail.rack import LIMIT_S, Rack, until

APP = Path(__file__).with_name("app.py")
TTL_S = 2.5
_PREFIX = "sus"
_serial = itertools.count()


def allowed() -> bool:
    """Whether namespaces, links and mounts can be made here."""
    return os.geteuid() == 0 and all(shutil.which(tool) for tool in ("ip", "tc", "mount"))


def _do(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Network:
    """A bridge with an address, and namespaces on it."""

    def __init__(self) -> None:
        _sweep()
        number = next(_serial)
        self.tag = f"{_PREFIX}{os.getpid()}x{number}"  # 15 characters are allowed for a link
        self._net = _free_net(os.getpid() * 16 + number)
        self.address = f"{self._net}.1"
        self._names: list[str] = []
        self._links: list[str] = []
        _do("ip", "link", "add", self.tag, "type", "bridge")
        _do("ip", "address", "add", f"{self.address}/24", "dev", self.tag)
        _do("ip", "link", "set", self.tag, "up")

    def add(self, name: str) -> tuple[str, str, str]:
        """A namespace on the bridge: (namespace, its link's end at the bridge, its address)."""
        space, near = f"{self.tag}-{name}", f"{self.tag}{name}"
        address = f"{self._net}.{10 + len(self._names)}"
        self._names.append(space)
        self._links.append(near)
        _do("ip", "netns", "add", space)
        _do("ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", space)
        _do("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            _do("ip", "-n", space, "link", "set", link, "up")
        _do("ip", "link", "set", near, "master", self.tag, "up")
        return space, near, address

    def close(self) -> None:
        for space in self._names:
            end_processes(space)
            _do("ip", "netns", "delete", space, check=False)
        for link in (*self._links, self.tag):  # a namespace stays as long as the kernel has a socket in it
            _do("ip", "link", "delete", link, check=False)


def _free_net(first: int) -> str:
    """The first three numbers of a /24 that no link here has: of 100.64.0.0/10, which is nobody's on the Internet."""
    taken = _do("ip", "-o", "-4", "address")
    return next(
        net
        for at in range(first, first + 16384)
        if f" {(net := f'100.{64 + (at >> 8) % 64}.{at % 256}')}." not in taken
    )


def _sweep() -> None:
    """Remove what earlier runs could not, because they were killed."""
    for space in {line.split()[0] for line in _do("ip", "netns", "list").splitlines() if line.strip()}:
        if _is_left(space):
            end_processes(space)
            _do("ip", "netns", "delete", space, check=False)
    for link in os.listdir("/sys/class/net"):
        if _is_left(link):
            _do("ip", "link", "delete", link, check=False)


def _is_left(name: str) -> bool:
    pid = name.removeprefix(_PREFIX).partition("x")[0]
    return name.startswith(_PREFIX) and pid.isdecimal() and not os.path.exists(f"/proc/{pid}")


def pids_in(space: str) -> list[int]:
    """Every process whose network is that namespace."""
    try:
        found = os.stat(f"/run/netns/{space}")
    except FileNotFoundError:
        return []
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                own = os.stat(f"/proc/{entry}/ns/net")
                if (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino):
                    pids.append(int(entry))
    return pids


def end_processes(space: str) -> None:
    """SIGKILL to all, until none is left: one that forks meanwhile is found the next time."""

    def gone() -> bool:
        pids = [pid for pid in pids_in(space) if not _is_zombie(pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    until(gone, f"every process of {space} has ended")


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in ("Z", "X")


def set_link(name: str, up: bool) -> None:
    """IFF_UP by ioctl: at once, without a process of its own."""
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", name.encode(), 0)
        flags = struct.unpack("16xh14x", fcntl.ioctl(any_socket, 0x8913, request))[0]  # SIOCGIFFLAGS
        flags = flags | 1 if up else flags & ~1
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", name.encode(), flags))  # SIOCSIFFLAGS


class Host:
    """One host. `memory` is lost with its power, `disk` is not."""

    def __init__(self, site: "Site", name: str, memory_bytes: int) -> None:
        self.site = site
        self.name = name
        self.space, self._link, self.address = site.network.add(name)
        self.disk = site.dir / name
        self.memory = self.disk / "memory"
        self.memory.mkdir(parents=True)
        _do("mount", "-t", "tmpfs", "-o", f"size={memory_bytes}", self.space, str(self.memory))
        self.store = self.memory / "app.sus"
        self.log = self.disk / "app.log"  # the oracle: outside of what fails
        self.events_file = self.disk / "events.jsonl"
        self.process: subprocess.Popen[bytes] | None = None

    def kept(self) -> list[str]:
        """Options about the state."""
        sizes = ["--size", "16MiB", "--log-size", "32MiB", "--durability", "memory"]
        return ["--store", str(self.store), *sizes]

    def command(self, app: tuple[str, ...]) -> list[str]:
        """What is run here."""
        return [sys.executable, str(APP), str(self.log), *app]

    @property
    def ups(self) -> Rack:
        return self.site.racks[self.name]

    def power_options(self) -> list[str]:
        """What `sustain run` is told of its power: nothing where there is no UPS."""
        if self.name not in self.site.racks:
            return []
        login = ["--power-user", "master", "--power-password-file", str(self.site.password)]
        return ["--power", self.ups.url, *login, *self.site.power]

    def start(self, *options: str, app: tuple[str, ...] = (), power: tuple[str, ...] | None = None) -> "Host":
        """`sustain run`; `power`: its options about power instead of the usual ones."""
        others = [each for each in self.site.hosts if each is not self]
        argv = ["ip", "netns", "exec", self.space, sys.executable, "-m", "sustain.cli", "run"]
        argv += [*self.kept(), "--name", self.name, "--lease", f"file://{self.site.lease}"]
        argv += ["--ttl", f"{TTL_S}s", "--listen", f"{self.address}:7411", "--key-file", str(self.site.key)]
        argv += [word for each in others for word in ("--peer", f"tcp://{each.address}:7411")]
        argv += ["--stop-timeout", "2s", "--drain-timeout", "3s"]
        argv += ["--report-dir", str(self.disk), "--event-log", str(self.events_file)]
        argv += [*(self.power_options() if power is None else power), *options]
        argv += ["--", *self.command(app or self.site.app)]
        with (self.disk / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)
        return self

    def cut(self) -> int:
        """The power is cut; CLOCK_BOOTTIME, nanoseconds, of just before."""
        at_ns = boottime_ns()
        set_link(self._link, up=False)
        end_processes(self.space)
        if self.process is not None:
            self.process.wait()
        for each in self.memory.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        return at_ns

    def power_on(self) -> "Host":
        """The link is up again; nothing runs yet."""
        self.plug(True)
        return self

    def plug(self, plugged: bool) -> None:
        """The network cable alone."""
        set_link(self._link, up=plugged)

    def throttle(self, bytes_per_s: float | None) -> None:
        """What this host can send; None: as fast as it goes."""
        if bytes_per_s is None:
            _do("tc", "-n", self.space, "qdisc", "delete", "dev", "eth0", "root", check=False)
            return
        rate = f"{int(bytes_per_s * 8)}bit"
        _do(
            *("tc", "-n", self.space, "qdisc", "replace", "dev", "eth0", "root"),
            *("tbf", "rate", rate, "burst", "16kb", "latency", "300ms"),
        )

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def state(self) -> dict[str, Any]:
        """What it says of itself: PATH.run.json."""
        try:
            held = json.loads(Path(f"{self.store}.run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return held if isinstance(held, dict) else {}

    def becomes(self, role: str) -> "Host":
        until(
            lambda: self.state().get("role") == role and self.alive(),
            lambda: f"{self.name} is {role}\n{self.output()}",
        )
        return self

    def ends(self) -> int:
        assert self.process is not None
        until(lambda: not self.alive(), lambda: f"{self.name} ends\n{self.output()}")
        return self.process.returncode

    def output(self) -> str:
        path = self.disk / "output.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in _lines(self.events_file) if each["event"] == kind]

    def said(self, what: str) -> list[dict[str, Any]]:
        """What its command wrote down."""
        return [each for each in _lines(self.log) if each["what"] == what]

    def reports(self, kind: str) -> list[dict[str, Any]]:
        """Of outages or takeovers, oldest first."""
        found = sorted(self.disk.glob(f"{kind}-*.json"), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(path.read_text(encoding="utf-8")) for path in found]

    def end(self) -> None:
        end_processes(self.space)
        if self.process is not None:
            self.process.wait()
        _do("umount", "-l", str(self.memory), check=False)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines only: the last one may have been cut off with the power."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


class Site:
    """Hosts, their UPSes, a lease that they share. A context manager."""

    host: type[Host] = Host

    def __init__(
        self,
        directory: Path,
        names: str = "ab",
        *,
        fed: str = "a",
        power: tuple[str, ...] = (),
        app: tuple[str, ...] = (),
        memory_bytes: int = 128 << 20,
    ) -> None:
        """`fed`: hosts that have a UPS of their own, and watch it; `power`: their options beside `--power`; `app`:
        what the command is given."""
        self.dir = directory
        self.lease = directory / "lease"
        self.lease.mkdir(parents=True)
        self.key = directory / "key"
        self.key.write_text(os.urandom(32).hex())
        self.key.chmod(0o600)
        self.password = directory / "password"
        self.password.write_text("secret\n")
        self.password.chmod(0o600)
        self.app = app
        self.power = power
        self.hosts: list[Host] = []
        self.racks: dict[str, Rack] = {}
        self.network = Network()
        try:
            for name in fed:
                rack = directory / f"rack-{name}"
                rack.mkdir()
                self.racks[name] = Rack(rack, address=self.network.address)
            for name in names:
                self.hosts.append(self.host(self, name, memory_bytes))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, at: int) -> Host:
        return self.hosts[at]

    @property
    def ups(self) -> Rack:
        """The one of the first host that has one."""
        return next(iter(self.racks.values()))

    def begin(self) -> tuple[Host, ...]:
        """The first host is the primary, the others hold what it commits. `begun` is its epoch then."""
        self.hosts[0].start("--create").becomes("primary")
        for each in self.hosts[1:]:
            each.start()
            self.replicated(self.hosts[0], each)
        self.begun = int(
            self.record()["epoch"]
        )  # 2, or more where the machine was too busy for the first lease
        return tuple(self.hosts)

    def replicated(self, primary: Host, standby: Host) -> None:
        """Wait until the standby streams, and holds something that the primary has committed."""
        until(
            lambda: self.acked(primary, standby) is not None,
            lambda: f"{standby.name} follows {primary.name}\n{primary.output()}\n{standby.output()}",
        )

    def acked(self, primary: Host, standby: Host) -> int | None:
        """What the primary knows that the standby holds, while it streams."""
        from sustain._native import Control

        if not standby.store.exists():
            return None
        control = Control(str(primary.store))
        try:
            found = [each for each in control.destinations() if f"//{standby.address}:" in each["url"]]
        finally:
            control.close()
        return found[0]["acked"] if found and found[0]["state"] == "streaming" and found[0]["acked"] else None

    def record(self) -> dict[str, Any]:
        """The lease as it lies in the directory."""
        newest = max(self.lease.glob("lease.*"))
        held = json.loads(newest.read_text().split("\n")[0])
        assert isinstance(held, dict)
        return held

    def all_said(self, what: str) -> list[dict[str, Any]]:
        return sorted((each for host in self.hosts for each in host.said(what)), key=lambda each: each["ns"])

    def close(self) -> None:
        for host in self.hosts:
            host.end()
        for rack in self.racks.values():
            rack.end()
        self.network.close()
