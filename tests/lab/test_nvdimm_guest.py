"""A virtual machine with an NVDIMM: its memory, taken at one moment, holds every record that the guest had flushed.

The guest is the example's (examples/nvdimm_guest), made and started as a user does: a real kernel with a DAX file
system on its NVDIMM, in software emulation. The oracle is its console, read from outside: a number that was printed
had been flushed before. What the guest then finds after a boot elsewhere, it says itself; the tests compare.
"""

import contextlib
import json
import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from sustain.host import pagemap
from sustain.powerfail.regions import track
from tests.lab import vm
from tests.powerfail import hosts, rack
from tests.powerfail.rack import until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

EXAMPLE = vm.TOP / "examples" / "nvdimm_guest"
BOOT_LIMIT_S = 120.0
SIZE_BYTES = 96 << 20
PAGE = 4096
BOTH_WAYS = 600  # so many records lie in a mapped segment and in one that is written


@pytest.fixture(scope="module")
def built(kernel: vm.Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel and the RAM disk of the example."""
    target = tmp_path_factory.mktemp("guest")
    command = [sys.executable, str(EXAMPLE / "build.py"), str(target), "--root", str(kernel.tree)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 0, made.stderr
    return target


class Console:
    """What a guest said, in a file that it does not know of."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[str]:
        """Whole lines: what follows the last line end may be half a number."""
        if not self.path.exists():
            return []
        return self.path.read_text(errors="replace").replace("\r", "").split("\n")[:-1]

    def flushed(self) -> int:
        """The highest number that was printed as flushed."""
        return max(
            (int(line.split()[1]) for line in self.lines() if re.fullmatch(r"flushed \d+", line)), default=0
        )

    def verified(self) -> tuple[int, int] | None:
        """How many records the last verification found whole, and the highest number."""
        found = re.findall(r"^verified (\d+) records, highest (\d+)$", "\n".join(self.lines()), re.MULTILINE)
        return (int(found[-1][0]), int(found[-1][1])) if found else None

    def wrong(self) -> list[str]:
        return [line for line in self.lines() if line.startswith("wrong: ")]

    def rest(self) -> str:
        return "\n".join(line for line in self.lines() if not line.startswith("flushed"))


class Machine:
    """The example's command on one region, without Sustain. A context manager; killed at the end."""

    def __init__(self, built: Path, region: Path, console: Path, append: str = "") -> None:
        self.console = Console(console)
        self.region = region
        environment = {**os.environ, "SUSTAIN_REGION": str(region), "GUEST_APPEND": append}
        environment |= track.environment(region)
        with console.open("wb") as output:
            self.process = subprocess.Popen(
                [str(EXAMPLE / "guest.sh"), str(built)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def reaches(self, number: int) -> int:
        """Wait until record `number` is flushed; the highest one then."""

        def there() -> int:
            assert self.process.poll() is None, self.console.rest()
            highest = self.console.flushed()
            return highest if highest >= number else 0

        return int(until(there, f"record {number}", BOOT_LIMIT_S))

    def stop_by_signal(self) -> None:
        """The kernel tells a parent that its child is stopped when the last thread of it stands."""
        self.process.send_signal(signal.SIGSTOP)
        pid, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert pid == self.process.pid
        assert os.WIFSTOPPED(status)

    def stop(self) -> None:
        """Every virtual processor stands when this returns."""
        self._ask("stop")

    def _ask(self, command: str) -> None:
        """QMP, by hand: freezing by our own client is what the test below is about."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(BOOT_LIMIT_S)
            connection.connect(f"{self.region}.qmp")
            lines = connection.makefile("rw")
            assert "QMP" in json.loads(lines.readline())
            for each in ("qmp_capabilities", command):
                lines.write(json.dumps({"execute": each}) + "\n")
                lines.flush()
                while "return" not in (answer := json.loads(lines.readline())):
                    assert "event" in answer, answer

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ends(self) -> int:
        """Its exit status."""
        status = self.process.wait(BOOT_LIMIT_S)
        print(f"{self.region.name}: {time.monotonic() - self._started:.1f} s: {self.console.rest()!r}")
        return status


def changed_pages(before: Path, after: Path) -> dict[int, bool]:
    """Offsets of pages that changed from one copy to the other; whether they begin with a record."""
    found = {}
    with before.open("rb") as one, after.open("rb") as two:
        old = mmap.mmap(one.fileno(), 0, access=mmap.ACCESS_READ)
        new = mmap.mmap(two.fileno(), 0, access=mmap.ACCESS_READ)
        with old, new:
            for at in range(0, len(new), PAGE):
                if old[at : at + PAGE] != new[at : at + PAGE]:
                    found[at] = new[at : at + 8] == b"svrecrd1"
    return found


def test_the_memory_of_one_moment_is_whole_and_a_page_left_out_is_caught(built: Path, tmp_path: Path) -> None:
    region, early, late = tmp_path / "nv.img", tmp_path / "early.img", tmp_path / "late.img"
    with region.open("wb") as file:
        file.truncate(SIZE_BYTES)
    with (
        Machine(built, region, tmp_path / "first") as machine,
        contextlib.closing(track.open_tracker(region, SIZE_BYTES // PAGE)) as tracker,
    ):
        machine.reaches(BOTH_WAYS)
        assert tracker.harvest().everything, "the first look"
        assert "prepared a new NVDIMM" in machine.console.rest()
        machine.stop_by_signal()
        shutil.copyfile(region, early)
        tracker.harvest()
        at_early = machine.console.flushed()
        machine.process.send_signal(signal.SIGCONT)
        machine.reaches(at_early + 300)
        machine.stop()
        shutil.copyfile(region, late)
        harvest = tracker.harvest()
        flushed = machine.console.flushed()
        machine.kill()
    changed = changed_pages(early, late)
    if pagemap.has_scan():
        # What is found by the page tables of a QEMU that knows nothing of it is all that changed, and not all there is.
        assert not harvest.everything, harvest.why
        named = {page * PAGE for first, count in harvest.runs for page in range(first, first + count)}
        assert changed.keys() <= named
        assert len(named) < SIZE_BYTES // PAGE // 10

    torn = tmp_path / "torn.img"
    shutil.copyfile(late, torn)

    # What the checker must see: one page of records as it was at the earlier moment.
    at = [offset for offset, holds_record in changed.items() if holds_record][20]
    with torn.open("r+b") as file, early.open("rb") as old:
        file.seek(at)
        old.seek(at)
        file.write(old.read(PAGE))

    for image, least in ((early, at_early), (late, flushed)):
        with Machine(built, image, tmp_path / f"{image.stem}.console", "guest.mode=verify") as machine:
            assert machine.ends() == 0
            count, highest = machine.console.verified() or (0, 0)
            assert count == highest >= least
            assert "prepared" not in machine.console.rest()

    with Machine(built, torn, tmp_path / "torn.console", "guest.mode=verify") as machine:
        assert machine.ends() == 3
        assert machine.console.verified() is None
        assert re.fullmatch(r"wrong: record \d+ of \d+ is not what was flushed", machine.console.wrong()[0])


class GuestHost(hosts.Host):
    """A host whose workload is the example's guest. Its NVDIMM lies in the memory that goes with the power."""

    site: "GuestSite"

    def __init__(self, site: "GuestSite", name: str, memory_bytes: int) -> None:
        super().__init__(site, name, memory_bytes)
        self.store = self.memory / "nv.img"
        self.console = Console(self.disk / "output.txt")  # the guest's lines among those of `sustain run`

    def kept(self) -> list[str]:
        freeze = "signal" if self.site.freeze == "signal" else f"qmp:{self.store}.qmp"
        return ["--region", str(self.store), "--size", str(SIZE_BYTES), "--freeze", freeze]

    def command(self, app: tuple[str, ...]) -> list[str]:
        return [str(EXAMPLE / "guest.sh"), str(self.site.built)]

    def reaches(self, number: int) -> int:
        """Wait until record `number` is flushed; the highest one then."""

        def there() -> int:
            assert self.alive(), self.console.rest()
            highest = self.console.flushed()
            return highest if highest >= number else 0

        return int(until(there, lambda: f"record {number}\n{self.console.rest()}", BOOT_LIMIT_S))


class GuestSite(hosts.Site):
    host = GuestHost

    def __init__(self, directory: Path, built: Path, freeze: str) -> None:
        self.built = built
        self.freeze = freeze
        super().__init__(directory, power=("--outage-hold", "60s"), memory_bytes=4 * SIZE_BYTES)

    def destination(self, primary: hosts.Host) -> dict[str, Any]:
        """What the primary's pre-copier says of its destination."""
        try:
            held = json.loads(Path(f"{primary.store}.region.json").read_text())
        except FileNotFoundError:
            return {}
        return dict(held["destinations"][0]) if held["destinations"] else {}


@pytest.mark.skipif(
    not (hosts.allowed() and rack.available()), reason="needs root for namespaces, and nut-server"
)
@pytest.mark.parametrize("freeze", ["qmp", "signal"])
def test_a_guest_with_an_nvdimm_survives_its_host(built: Path, tmp_path: Path, freeze: str) -> None:
    with GuestSite(tmp_path / "s", built, freeze) as site:
        a, b = site.hosts
        assert isinstance(a, GuestHost)
        assert isinstance(b, GuestHost)
        a.start("--create").becomes("primary")
        b.start()  # without a UPS of its own
        a.reaches(BOTH_WAYS)
        until(
            lambda: site.destination(a).get("state") == "streaming",
            lambda: f"b receives\n{a.console.rest()}\n{b.console.rest()}",
            BOOT_LIMIT_S,
        )

        # On battery the guest goes on; the other host gets its changes meanwhile.
        a.ups.set("ups.status", "OB DISCHRG")
        a.reaches(a.console.flushed() + 100)
        a.ups.set("ups.status", "OB DISCHRG LB")
        a.becomes("saved")
        a.cut()
        flushed = a.console.flushed()

        b.becomes("primary")
        until(
            lambda: b.console.verified() or b.console.wrong(),
            lambda: f"the guest on b\n{b.console.rest()}",
            BOOT_LIMIT_S,
        )
        assert not b.console.wrong()
        count, highest = b.console.verified() or (0, 0)
        assert count == highest >= flushed
        b.reaches(highest + 50)  # and goes on from there
        assert "prepared a new NVDIMM" not in b.console.rest()

        # Both hosts say so themselves; and it was the freeze that ended the guest's life on the first.
        assert "frozen in" in a.console.rest()
        outage, takeover = a.reports("outage")[-1], b.reports("takeover")[-1]
        assert (outage["outcome"], outage["complete"], outage["missing"]) == ("saved", True, [])
        assert (takeover["old_state"], takeover["complete"]) == ("saved", True)
        assert takeover["held_position"] == outage["end"]
        drain_s = outage["drain_s"]
        print(f"frozen by {freeze}, saved {drain_s:.2f} s after; flushed {flushed}, verified {count}")
