"""`sustain ship --region` as a process, and what a test wants to know of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from sustain.host.freezer import SignalFreezer
from sustain.powerfail.regions.sink import open_source
from sustain.replication.credentials import NO_CREDENTIALS
from tests.powerfail.regions.program import PAGE, Program

UUID = "0123456789abcdef0123456789abcdef"
LIMIT_S = 240.0  # emulated processors share two real ones with other tests


def until(what: Callable[[], Any], why: str, limit_s: float = LIMIT_S) -> Any:
    """What `what` says, once it says something; fails at the limit."""
    deadline = time.monotonic() + limit_s
    while not (found := what()):
        assert time.monotonic() < deadline, why
        time.sleep(0.005)
    return found


class Shipping:
    """One pre-copier. Its status file lies beside the region."""

    def __init__(
        self,
        region: Path,
        urls: list[str],
        *options: str,
        group: int | None = None,
        epoch: int = 1,
        seal: int = 1,
        rate: str = "1GiB",
    ) -> None:
        self._status = region.with_name(f"{region.name}.region.json")
        self._log = (region.parent / "ship.log").open("ab")
        words = [
            *(sys.executable, "-m", "sustain.cli", "ship", "--region", str(region), "--region-name", "nv"),
            *("--region-uuid", UUID, "--epoch", str(epoch), "--seal-number", str(seal), "--name", "a"),
            *("--rate", rate, "--scan-rate", "8GiB", *(["--pids-of", str(group)] if group else [])),
            *(word for url in urls for word in ("--peer", url)),
            *options,
        ]
        self.process = subprocess.Popen(words, stderr=self._log, stdin=subprocess.DEVNULL)
        self.log = region.parent / "ship.log"

    def status(self) -> dict[str, Any]:
        """What the file says; {} before this process has written it."""
        try:
            found = json.loads(self._status.read_text())
        except FileNotFoundError:
            return {}
        return found if found["pid"] == self.process.pid else {}

    def wait(
        self, holds: Callable[[dict[str, Any]], Any], why: str, limit_s: float = LIMIT_S
    ) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = self.status()
            assert self.process.poll() is None, f"the pre-copier ended: {self.log.read_text()}"
            return found if found and holds(found) else None

        try:
            found = until(look, why, limit_s)
        except AssertionError:
            raise AssertionError(f"{why}\n{self.status()}\n{self.log.read_text()}") from None
        assert isinstance(found, dict)
        return found

    def in_step(self) -> dict[str, Any]:
        """Until it has found what is there, and brought it there once; the program may go on changing pages."""
        return self.wait(
            lambda found: (
                found["phase"] == "precopy"
                and all(each["state"] == "streaming" for each in found["destinations"])
                and found["tracker_why"] not in ("not looked at yet", "this is the first look")
            ),
            "the destinations do not get into step",
        )

    def finish(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGUSR1)
        return self.sealed()

    def sealed(self) -> dict[str, Any]:
        return self.wait(
            lambda found: (
                found["phase"] == "sealed"
                and all(each["state"] == "sealed" for each in found["destinations"])
            ),
            "not sealed",
        )

    def go_on(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGUSR2)
        return self.wait(lambda found: found["phase"] == "precopy", "the program does not go on")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self._log.close()

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.log.read_text()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


def image(url: str) -> bytes:
    """The sealed image, each page of it compared with its digest by the source's table."""
    with open_source(url, credentials=NO_CREDENTIALS, name="nv") as source:
        source.seal()
        from sustain._native import page_digests

        pages = source.identity().pages
        data = b"".join(
            bytes(source.read(first, min(1024, pages - first))) for first in range(0, pages, 1024)
        )
        assert page_digests(data) == source.table()
        return data


def same(region: Path, url: str) -> None:
    """The image is the region, byte for byte."""
    ours, theirs = region.read_bytes(), image(url)
    if ours != theirs:
        wrong = [
            at for at in range(len(ours) // PAGE) if ours[at * PAGE :][:PAGE] != theirs[at * PAGE :][:PAGE]
        ]
        raise AssertionError(f"{len(wrong)} pages differ, among them {wrong[:10]}")


def stands_still(program: Program, region: Path) -> bool:
    before = region.read_bytes()
    for each in SignalFreezer(program.pid).members():
        text = Path(f"/proc/{each.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if text not in "TtZ":
            return False
    return region.read_bytes() == before


def runs(region: Path) -> None:
    """The program goes on writing."""
    before = region.read_bytes()
    until(lambda: region.read_bytes() != before, "the program stands still")


def make(path: Path, pages: int) -> Path:
    with path.open("wb") as file:
        file.truncate(pages * PAGE)
        file.write(os.urandom(64 * PAGE))
    return path
