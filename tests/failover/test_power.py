"""The power source as a supervisor watches it, with a real upsd; what is shed; what the report says."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.clock import SystemClock
from sustain.failover.outage_report import OutageReport
from sustain.failover.power import PowerWatch, Watching
from sustain.failover.shed import Shedder
from sustain.failover.types import DestinationView, Outage, PowerView
from sustain.powerfail.budget import BudgetPolicy
from sustain.powerfail.decide import Power, PowerPolicy
from sustain.powerfail.sources import open_source
from tests.powerfail.rack import Rack, available, until

S = 1_000_000_000
QUICK = Watching(0.1, PowerPolicy(debounce_s=0.3, settle_s=0.3), BudgetPolicy(margin_s=10))


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    if not available():
        pytest.fail("nut-server is missing: scripts/setup-debian.sh test")
    made = Rack(tmp_path)
    yield made
    made.end()


def clients(rack: Rack) -> int:
    """How many hosts upsd waits for, in its own words."""
    with socket.create_connection(("127.0.0.1", rack.port), timeout=10) as plain:
        lines = plain.makefile("rwb")
        lines.write(b"GET NUMLOGINS rack\n")
        lines.flush()
        return int(lines.readline().split()[-1])


def test_upsd_waits_for_this_host_until_it_is_ready(rack: Rack) -> None:
    said: list[str] = []
    source = open_source(rack.url, SystemClock(), login=("master", "secret"))
    watch = PowerWatch(source, QUICK, SystemClock(), wake=lambda: None, tell=said.append)
    watch.start()
    try:
        until(lambda: clients(rack) == 1, "upsd counts this host")
        clock = SystemClock()
        until(lambda: watch.view(clock.boottime_ns()).power is Power.ON_AC, "it is on AC")
        assert watch.view(clock.boottime_ns()).usable_s == 600 - 60 - 12
        rack.set("ups.status", "OB")
        until(lambda: watch.view(clock.boottime_ns()).fails, "it is an outage")
        watch.set_ready(True)
        until(lambda: clients(rack) == 0, "upsd need not wait any more")
        until(lambda: any("may cut the power" in line for line in said), "it is said")
        until(lambda: watch.view(clock.boottime_ns()).fails, "and it is still asked")
        # A connection that is lost takes the login with it; it is made anew.
        watch.set_ready(False)
        until(lambda: clients(rack) == 1, "counted again")
        rack.upsd.kill()
        rack.upsd.wait()
        rack.start_upsd()
        until(rack.answers, "upsd is back")
        until(lambda: clients(rack) == 1, "counted after a reconnection")
    finally:
        watch.stop(5.0)
    until(lambda: clients(rack) == 0, "logged out at the end")


def test_a_wrong_password_is_said_once_and_the_source_is_asked_all_the_same(rack: Rack) -> None:
    said: list[str] = []
    source = open_source(rack.url, SystemClock(), login=("master", "wrong"))
    watch = PowerWatch(source, QUICK, SystemClock(), wake=lambda: None, tell=said.append)
    watch.start()
    try:
        until(lambda: said, "it is said")
        clock = SystemClock()
        until(lambda: watch.view(clock.boottime_ns()).power is Power.ON_AC, "it is read")
        assert len(said) == 1
        assert "ACCESS-DENIED" in said[0]
        assert "upsd.users" in said[0]
    finally:
        watch.stop(5.0)


def test_what_is_shed_is_shed_in_order_and_nothing_holds_it_up(tmp_path: Path) -> None:
    said: list[str] = []
    order = tmp_path / "order"
    commands = (f"echo one >> {order}", "exit 3", f"echo two >> {order}")
    shedder = Shedder(commands, tell=said.append, wake=lambda: None)
    assert not shedder.done
    shedder.start()
    shedder.start()
    until(lambda: shedder.done, "all is shed")
    assert order.read_text() == "one\ntwo\n"
    assert "status 3" in said[1]
    shedder.rearm()
    until(lambda: not shedder.done or shedder.rearm(), "the next outage sheds again")


def test_the_report_names_what_nobody_confirmed(tmp_path: Path) -> None:
    outage = Outage("the power fails", 3, 10 * S, 300.0, 900, 400, down_ns=12 * S, end=1000)
    holds = (
        DestinationView("tcp://b", "streaming", 800, False, 1e6),
        DestinationView("tcp://c", "connecting", None, False, None),
    )
    power = PowerView(Power.LOW, "the source calls the battery low", 0.0)
    found = OutageReport("a", "/app.sus", outage, power, 1000, holds, 15 * S, 0)
    path = found.save(str(tmp_path))
    data = json.loads((tmp_path / "outage-3-a.json").read_text())
    assert data["complete"] is False
    assert data["shipped_bytes"] == 400
    assert data["missing"] == [
        {"url": "tcp://b", "from": 800, "to": 1000, "bytes": 200},
        {"url": "tcp://c", "from": None, "to": 1000, "bytes": None},
    ]
    assert (data["stop_s"], data["drain_s"]) == (2.0, None)
    text = Path(path).read_text()
    assert "(800, 1000] on tcp://b" in text
    assert "(unknown, 1000] on tcp://c" in text
    assert "not finished yet" in text
    whole = OutageReport("a", "/app.sus", outage, power, 800, holds[:1], 15 * S, 0)
    assert whole.complete is True
    assert whole.missing() == []
    assert OutageReport("a", "/app.sus", outage, power, None, holds, 15 * S, 0).complete is None


def test_the_report_of_a_region_names_the_pages_that_are_missing(tmp_path: Path) -> None:
    outage = Outage("the power fails", 3, 10 * S, 300.0, 8, 7, down_ns=0, end=8)
    lacks = DestinationView("tcp://b", "streaming", None, False, 1e6, 12288, ((5, 2), (9, 1)), True, True)
    power = PowerView(Power.LOW, "the source calls the battery low", 0.0)
    found = OutageReport("a", "/nv.img", outage, power, 8, (lacks,), 15 * S, 0)
    (missing,) = found.missing()
    assert missing["pages"] == [[5, 2], [9, 1]]
    assert missing["bytes"] == 12288
    assert "seal 8 on tcp://b: 12 KiB, pages 5-6, 9, …" in found.text()


def test_a_region_is_away_before_its_program_is_ended() -> None:
    outage = Outage("the power fails", 3, 10 * S, 300.0, 7, 7, down_ns=14 * S, drained_ns=11 * S, end=8)
    sealed = DestinationView("tcp://b", "sealed", 8, False, 1e6, 0, seals=True)
    power = PowerView(Power.LOW, "the source calls the battery low", 0.0)
    data = OutageReport("a", "/nv.img", outage, power, 8, (sealed,), 15 * S, 0).as_dict()
    assert (data["drain_s"], data["stop_s"]) == (1.0, 3.0)
    assert data["shipped_bytes"] is None, "one more seal is not one more byte"
