"""`sustain run --region` with real processes: a program that knows nothing of it moves to another host with its memory.

The oracle is the program itself: it checks its whole region when it starts, and writes down how far it was.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.failover.conftest import Cluster, Host, free_ports, until

APP = Path(__file__).with_name("region_app.py")
SIZE = 4 << 20
AC, BATTERY = "ups.status: OL\nbattery.runtime: 600\n", "ups.status: OB\nbattery.runtime: 600\n"


class RegionHost(Host):
    """A host of a region workload, with a power source that the test writes."""

    def __init__(self, cluster: Cluster, name: str, port: int) -> None:
        super().__init__(cluster, name, port)
        self.region = self.dir / "nv.img"
        self.store = self.region  # beside which the supervisor's files lie
        self.ups = self.dir / "ups"
        self.power(AC)

    def power(self, text: str) -> None:
        draft = self.ups.with_suffix(".new")
        draft.write_text(text)
        draft.replace(self.ups)

    def start(self, *app: str, options: tuple[str, ...] = ()) -> "RegionHost":
        others = [each for each in self.cluster.hosts if each is not self]
        argv = [sys.executable, "-m", "sustain.cli", "run", "--region", str(self.region), "--name", self.name]
        argv += ["--region-name", "nv", "--lease", f"file://{self.cluster.lease}", "--ttl", "3s"]
        argv += ["--listen", f"127.0.0.1:{self.port}", "--event-log", str(self.events_file)]
        argv += [word for each in others for word in ("--peer", f"tcp://127.0.0.1:{each.port}")]
        argv += ["--stop-timeout", "2s", "--drain-timeout", "5s", "--power", f"file://{self.ups}"]
        argv += ["--power-poll", "0.1s", "--power-debounce", "0.5s", "--power-settle", "0.5s"]
        argv += [*options, "--", sys.executable, str(APP), str(self.region), str(self.log), *app]
        with (self.dir / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)
        return self

    def status(self) -> dict[str, Any]:
        try:
            held = json.loads(Path(f"{self.region}.region.json").read_text())
        except (OSError, ValueError):
            return {}
        return held if isinstance(held, dict) else {}

    def steps(self) -> int:
        return max((entry["step"] for entry in self.said("step")), default=0)

    def follows(self) -> "RegionHost":
        """The primary: its destination takes what it sends."""
        until(
            lambda: any(each["state"] == "streaming" for each in self.status().get("destinations", ())),
            f"{self.name} pre-copies\n{self.output()}",
        )
        return self

    def starts(self, count: int = 1) -> dict[str, Any]:
        """What its program found at its newest start; it had to find its region whole."""
        until(lambda: len(self.said("start")) >= count, f"the program starts on {self.name}\n{self.output()}")
        found = self.said("start")[-1]
        assert not found["wrong"], found
        return found


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[RegionHost, RegionHost]]:
    cluster = Cluster(tmp_path, 0)
    hosts = [RegionHost(cluster, name, port) for name, port in zip("ab", free_ports(2), strict=True)]
    cluster.hosts = list(hosts)
    yield hosts[0], hosts[1]
    cluster.end()


def begin(pair: tuple[RegionHost, RegionHost], *options: str) -> tuple[RegionHost, RegionHost]:
    a, b = pair
    a.start(options=("--create", "--size", str(SIZE), *options)).becomes("primary")
    b.start(options=options).becomes("standby")
    a.follows()
    until(lambda: a.steps() > 1000, "the program works")
    return a, b


@pytest.mark.parametrize("options", [("--track", "auto"), ("--track", "content"), ("--signal", "initiating")])
def test_a_program_moves_with_its_memory_when_the_power_fails(
    pair: tuple[RegionHost, RegionHost], options: tuple[str, ...]
) -> None:
    a, b = begin(pair, *options)
    a.power(BATTERY)
    found = b.starts()
    assert found["step"] >= a.steps(), "what the program had done is missing"
    assert found["epoch"] == 3
    until(lambda: b.steps() > found["step"], "and it goes on there")
    until(lambda: a.state().get("role") == "saved", f"a is ready\n{a.output()}")
    assert not any(entry["ns"] > found["ns"] for entry in a.said("step")), "it runs on both hosts"
    report = json.loads((a.dir / "outage-2-a.json").read_text())
    assert (report["outcome"], report["complete"], report["missing"]) == ("saved", True, [])
    # And back: the power of b fails, that of a has returned.
    a.power(AC)
    a.becomes("standby")
    b.follows()
    b.power(BATTERY)
    again = a.starts(2)
    assert again["step"] >= b.steps()
    assert again["epoch"] == 4


def test_power_that_comes_back_in_time_leaves_the_program_where_it_is(
    pair: tuple[RegionHost, RegionHost],
) -> None:
    a, b = begin(pair)
    b.power(BATTERY)  # so that it takes nothing over
    pid = a.said("start")[-1]["pid"]
    os.kill(a.pids("shipper")[0], signal.SIGSTOP)  # the save does not get on
    a.power(BATTERY)
    a.becomes("saving")
    a.power(AC)
    until(lambda: a.state().get("power") == "on AC", "the power is believed to be back")
    os.kill(a.pids("shipper")[0], signal.SIGCONT)
    a.becomes("primary")
    assert a.state()["epoch"] == 3, "what may have been sealed would pass for the newest state"
    before = a.steps()
    until(lambda: a.steps() > before + 200, f"the program goes on\n{a.output()}")
    assert [entry["pid"] for entry in a.said("start")] == [pid], "it was started again"
    assert not b.said("start")


def test_a_region_is_not_taken_from_a_host_that_crashed(pair: tuple[RegionHost, RegionHost]) -> None:
    a, b = begin(pair)
    a.signal_all(signal.SIGKILL)
    until(
        lambda: "not sealed" in b.state().get("waiting_for", "") or "without having saved" in b.output(),
        f"b says why not\n{b.output()}",
    )
    assert b.state()["role"] == "standby"
    assert not b.said("start")
    # Its own host may: the region is as the crash left it.
    a.start(options=("--create",))
    found = a.starts(2)
    assert found["epoch"] == 3


def test_a_workload_that_is_stopped_hands_its_region_over(pair: tuple[RegionHost, RegionHost]) -> None:
    a, b = begin(pair)
    assert a.stop() == 0
    found = b.starts()
    assert found["step"] >= a.steps()
    assert b.stop() == 0


def test_a_killed_supervisor_leaves_a_region_that_the_next_one_takes_up(
    pair: tuple[RegionHost, RegionHost],
) -> None:
    a, _ = begin(pair)
    a.kill_supervisor()
    a.start()
    found = a.starts(2)
    assert found["step"] >= 1000
    a.follows()


def test_a_region_that_was_restored_by_hand_is_taken_up(
    pair: tuple[RegionHost, RegionHost], tmp_path: Path
) -> None:
    a, c = pair
    nas = tmp_path / "nas"
    nas.mkdir()
    a.cluster.hosts = [a]
    a.start(options=("--create", "--size", str(SIZE), "--peer", f"file://{nas}")).becomes("primary")
    a.follows()
    until(lambda: a.steps() > 1000, "the program works")
    a.power(BATTERY)
    until(lambda: a.state().get("outage") == "saved", f"a has saved\n{a.output()}")
    words = [sys.executable, "-m", "sustain.cli", "restore", f"file://{nas}", str(c.region), "--name", "nv"]
    restored = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert restored.returncode == 0, restored.stderr
    c.start()
    a.cluster.hosts = [a, c]
    found = c.starts()
    assert found["step"] >= a.steps()


def test_a_region_is_handed_over_as_asked(pair: tuple[RegionHost, RegionHost]) -> None:
    a, b = begin(pair)
    asked = [sys.executable, "-m", "sustain.cli", "handover", str(a.region), "--to", "b", "--json"]
    made = subprocess.run(asked, capture_output=True, text=True, timeout=90, check=False)
    assert made.returncode == 0, f"{made.stderr}\n{a.output()}\n{b.output()}"
    found = json.loads(made.stdout)
    assert (found["from"], found["to"], found["epoch"]) == ("a", "b", 3)
    assert found["pause_s"] is None, "a region knows of no commits"
    start = b.starts()
    assert start["step"] >= a.steps(), "what the program had done is missing"
    assert not any(entry["ns"] > start["ns"] for entry in a.said("step")), "it runs on both hosts"
    a.becomes("standby")
