"""A real upsd with a dummy-ups driver, in a directory of its own, on a free port.

It listens on loopback, or on the address of a network that simulated hosts reach (`hosts`).
Packages: nut-server (scripts/setup-debian.sh test). Everything it starts it also ends, by pid.
"""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sustain.errors import PowerSourceError
from sustain.host.nut import NutClient

LIMIT_S = 90.0  # on a machine that is busy with other things
_AGAIN_S = 5.0
DRIVER = Path("/lib/nut/dummy-ups")
_DRIVER_ARGS = (str(DRIVER), "-a", "rack", "-u", "root", "-D")
UPSD = Path("/lib/nut/upsd")  # /usr/sbin/upsd is a script that asks /etc/nut
FIRST = {
    "ups.status": "OL",
    "battery.charge": "100",
    "battery.runtime": "600",
    "battery.runtime.low": "60",
    "ups.load": "20",
}


def available() -> bool:
    return DRIVER.exists() and UPSD.exists()


def until(condition: Any, what: str | Callable[[], str], limit_s: float = LIMIT_S) -> Any:
    """What `condition` returns, once it is true. `what` was waited for, in words, is asked for after a failure."""
    deadline = time.monotonic() + limit_s
    pause = threading.Event()
    while not (found := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"not in {limit_s:g} s: {what if isinstance(what, str) else what()}")
        pause.wait(0.02)
    return found


class Rack:
    """`rack` is the name of its UPS; `master` with password `secret` may do everything."""

    def __init__(self, directory: Path, *, tls: bool = False, address: str = "127.0.0.1") -> None:
        self.dir = directory
        self.address = address
        with socket.create_server((address, 0)) as free:
            self.port = int(free.getsockname()[1])
        state = directory / "state"
        state.mkdir()
        self._write("nut.conf", "MODE=standalone\n")
        self._write(
            "ups.conf",
            "pollinterval = 1\n[rack]\n  driver = dummy-ups\n  port = rack.dev\n  mode = dummy-once\n",
        )
        secure = self._certificate() if tls else ""
        self._write("upsd.conf", f"LISTEN {address} {self.port}\nMAXAGE 2\nSTATEPATH {state}\n{secure}")
        self._write(
            "upsd.users",
            "[master]\n  password = secret\n  actions = SET FSD\n  instcmds = ALL\n  upsmon primary\n",
        )
        self._write("rack.dev", "".join(f"{name}: {value}\n" for name, value in FIRST.items()))
        self.environment = {**os.environ, "NUT_CONFPATH": str(directory), "NUT_STATEPATH": str(state)}
        self.driver = self._start(*_DRIVER_ARGS)
        self.upsd = self.start_upsd()
        until(self.answers, "upsd has the driver's data")

    @property
    def url(self) -> str:
        return f"nut://{self.address}:{self.port}/rack"

    def client(self) -> NutClient:
        return NutClient(self.address, self.port)

    def answers(self) -> bool:
        try:
            with self.client() as client:
                found = client.variables("rack")
                return "battery.runtime" in found and found["ups.status"] != "WAIT"
        except PowerSourceError:
            return False

    def start_upsd(self) -> "subprocess.Popen[bytes]":
        self.upsd = self._start(str(UPSD), "-u", "root", "-D")
        return self.upsd

    def set(self, name: str, value: str) -> None:
        """Change a variable, and wait until upsd says so."""
        self.set_all({name: value})

    def set_all(self, values: dict[str, str]) -> int:
        """Change variables at once, and wait until upsd says so (its driver looks once a second); CLOCK_BOOTTIME,
        nanoseconds, of the last moment when it did not say so."""
        ups = f"rack@{self.address}:{self.port}"
        commands = [
            ["upsrw", "-s", f"{name}={value}", "-u", "master", "-p", "secret", ups]
            for name, value in values.items()
        ]
        asked_s = -_AGAIN_S
        before_ns = 0

        def said(command: list[str]) -> bool:
            nonlocal before_ns
            before_ns = time.clock_gettime_ns(
                time.CLOCK_BOOTTIME
            )  # the driver may look right after it was told
            return self._done(command)

        def ask() -> None:
            """Ask for it; again after a while: an upsd that has just started may lose it on the way to the driver."""
            nonlocal asked_s
            if time.monotonic() - asked_s > _AGAIN_S:
                for command in commands:
                    until(lambda command=command: said(command), " ".join(command))
                asked_s = time.monotonic()

        def there() -> bool:
            nonlocal before_ns
            ask()
            asked_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            try:
                with self.client() as client:
                    found = client.variables("rack")
            except PowerSourceError:  # stale for a moment, on a machine that is busy with other things
                return False
            # An FSD that was ordered stands before every later status.
            if all(found[name].removeprefix("FSD ") == value for name, value in values.items()):
                return True
            before_ns = asked_ns
            return False

        until(there, f"upsd says {values}")
        return before_ns

    def _done(self, command: list[str]) -> bool:
        done = subprocess.run(
            command, env=self.environment, check=False, capture_output=True, timeout=LIMIT_S
        )
        return done.returncode == 0

    def force_shutdown(self) -> None:
        """FSD, as upsmon's primary orders it."""
        with socket.create_connection((self.address, self.port), timeout=LIMIT_S) as plain:
            lines = plain.makefile("rwb")
            for command in ("USERNAME master", "PASSWORD secret", "LOGIN rack", "PRIMARY rack", "FSD rack"):
                lines.write(command.encode() + b"\n")
                lines.flush()
                answer = lines.readline()
                assert answer.startswith(b"OK"), (command, answer)

    def clients(self) -> list[str]:
        """Addresses of those that are logged in: upsd's primary waits for them before it cuts the power."""
        with socket.create_connection((self.address, self.port), timeout=LIMIT_S) as plain:
            plain.sendall(b"LIST CLIENT rack\n")
            lines = iter(plain.makefile().readline, "")
            assert next(lines).startswith("BEGIN LIST CLIENT")
            found = []
            for line in lines:
                if line.startswith("END"):
                    break
                found.append(line.split()[2])
        return found

    def kill_upsd(self) -> None:
        """Nobody answers any more, until `start_upsd`."""
        self.upsd.kill()
        self.upsd.wait()

    def restart(self) -> None:
        """Driver and upsd anew, with the first values: a driver does not always speak to an upsd that was killed and is
        back."""
        for process in (self.upsd, self.driver):
            process.kill()
            process.wait()
        self.driver = self._start(*_DRIVER_ARGS)
        self.start_upsd()
        until(self.answers, "upsd has the driver's data")

    def stall(self, stalled: bool = True) -> None:
        """The driver says nothing any more (or speaks again): upsd calls what it has stale, after MAXAGE."""
        self.driver.send_signal(signal.SIGSTOP if stalled else signal.SIGCONT)

    def end(self) -> None:
        for process in (self.upsd, self.driver):
            process.kill()
            process.wait()

    def _certificate(self) -> str:
        """A certificate that upsd made itself, as lines for upsd.conf. Debian's upsd keeps them with NSS."""
        store = self.dir / "certificates"
        store.mkdir()
        noise = self.dir / "noise"
        noise.write_bytes(os.urandom(64))
        made = [
            "-S",
            "-x",
            "-n",
            "upsd",
            "-s",
            f"CN={self.address}",
            "-t",
            "CT,,",
            "-v",
            "12",
            "-z",
            str(noise),
        ]
        for options in (["-N", "--empty-password"], made):
            command = ["certutil", *options, "-d", f"sql:{store}"]
            subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S)
        return f'CERTPATH {store}\nCERTIDENT upsd ""\n'

    def _write(self, name: str, text: str) -> None:
        path = self.dir / name
        path.write_text(text)
        path.chmod(0o600)

    def _start(self, *argv: str) -> "subprocess.Popen[bytes]":
        with (self.dir / "log").open("ab") as log:
            return subprocess.Popen(argv, env=self.environment, stdout=log, stderr=log, cwd=self.dir)
