"""Power sources: a real upsd with a dummy UPS, the kernel's power supplies in a made-up tree, files."""

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.clock import SystemClock
from sustain.errors import ConfigError, PowerSourceError
from sustain.host.nut import NutClient, NutRefused, quoted, split
from sustain.powerfail.decide import Power, PowerMemory, PowerPolicy, decide
from sustain.powerfail.sources import AcpiSource, open_source
from tests.powerfail.rack import Rack, available, until

needs_nut = pytest.mark.skipif(
    not available(), reason="nut-server is not installed: scripts/setup-debian.sh test"
)
CLOCK = SystemClock()


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    made = Rack(tmp_path)
    yield made
    made.end()


@needs_nut
def test_upsd_is_asked(rack: Rack) -> None:
    with rack.client() as client:
        assert list(client.list_ups()) == ["rack"]
        assert client.variables("rack")["battery.runtime"] == "600"
        assert client.variable("rack", "ups.status") == "OL"
        assert client.start_tls() is False  # it has no certificate
        assert client.variable("rack", "battery.charge") == "100"
        with pytest.raises(NutRefused) as refused:
            client.variable("rack", "battery.mood")
        assert refused.value.code == "VAR-NOT-SUPPORTED"
        with pytest.raises(NutRefused) as refused:
            client.variables("shed")
        assert refused.value.code == "UNKNOWN-UPS"
        assert refused.value.hint
        assert client.variable("rack", "ups.status") == "OL"  # the connection is as good as before


@needs_nut
def test_the_connection_is_encrypted_where_upsd_can(tmp_path: Path) -> None:
    rack = Rack(tmp_path, tls=True)
    try:
        with rack.client() as client:
            assert client.start_tls() is True
            assert client.variable("rack", "ups.status") == "OL"
        with rack.client() as client, pytest.raises(PowerSourceError):
            client.start_tls(ssl.create_default_context())  # nobody vouches for that certificate
        source = open_source(f"{rack.url}?tls=1", CLOCK)
        assert source.read().on_battery is False
        source.close()
    finally:
        rack.end()


@needs_nut
def test_an_upsd_without_tls_is_refused_when_tls_is_asked(rack: Rack) -> None:
    assert "no TLS" in open_source(f"{rack.url}?tls=1", CLOCK).read().problem


@needs_nut
def test_login_counts_this_host_and_logout_does_not(rack: Rack) -> None:
    with rack.client() as client, pytest.raises(NutRefused) as refused:
        client.login("rack", "master", "wrong")
    assert refused.value.code == "ACCESS-DENIED"
    client = rack.client()
    client.login("rack", "master", "secret")

    def logins() -> int:
        with socket.create_connection(("127.0.0.1", rack.port), timeout=20) as plain:
            plain.sendall(b"GET NUMLOGINS rack\n")
            return int(plain.makefile().readline().split()[2])

    assert logins() == 1
    client.logout()
    until(lambda: logins() == 0, "upsd does not wait for this host")


@needs_nut
def test_an_outage_by_a_real_upsd(rack: Rack) -> None:
    policy = PowerPolicy(debounce_s=0.3, settle_s=0.3, stale_s=5, flap_changes=100)
    source = open_source(rack.url, CLOCK)
    memory = PowerMemory()

    def power() -> Power:
        nonlocal memory
        memory = decide(source.read(), memory, policy, CLOCK.boottime_ns())
        return memory.power

    until(lambda: power() is Power.ON_AC, "on AC")
    rack.set("ups.status", "OB DISCHRG")
    until(lambda: power() is Power.ON_BATTERY, "an outage")
    assert memory.countdown_s == 600
    rack.set("ups.status", "OL CHRG")
    until(lambda: power() is Power.ON_AC, "AC is back")
    rack.set("ups.status", "OB LB DISCHRG")
    until(lambda: power() is Power.LOW, "low")
    rack.set("ups.status", "OL")
    until(lambda: power() is Power.ON_AC, "AC is back again")
    rack.force_shutdown()
    until(lambda: power() is Power.FORCED_SHUTDOWN, "a forced shutdown")
    rack.upsd.kill()
    rack.upsd.wait()
    assert source.read().problem
    assert power() is Power.FORCED_SHUTDOWN
    source.close()


@needs_nut
def test_upsd_that_dies_and_returns_is_found_again(rack: Rack) -> None:
    source = open_source(rack.url, CLOCK)
    assert source.read().on_battery is False
    rack.upsd.kill()
    rack.upsd.wait()
    assert "upsd" in source.read().problem
    rack.start_upsd()
    until(lambda: source.read().on_battery is False, "it answers again")
    source.close()


@needs_nut
def test_data_of_a_driver_that_died_is_not_believed(rack: Rack) -> None:
    source = open_source(rack.url, CLOCK)
    assert not source.read().problem
    rack.driver.kill()
    rack.driver.wait()
    until(lambda: source.read().problem, "upsd notices")
    source.close()


class Liar:
    """A server that answers each connection with these bytes and closes, or says nothing."""

    def __init__(self, answer: bytes | None) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._answer = answer
        self._kept: list[socket.socket] = []
        self.port = int(self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._kept.append(connection)
            if self._answer is not None:
                with contextlib.suppress(OSError):  # the client may be gone
                    connection.recv(4096)
                    connection.sendall(self._answer)
                    connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for each in self._kept:
            each.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"x" * 100_000,
        b"BEGIN LIST VAR rack\n" + b"VAR rack a b\n" * 20_000,
        b"BEGIN LIST VAR rack\nVAR rack ups.status",
        b"\xff\xfe\n",
        None,
    ],
)
def test_what_is_no_upsd_is_one_clear_error(answer: bytes | None) -> None:
    liar = Liar(answer)
    try:
        with NutClient("127.0.0.1", liar.port, timeout_s=0.3) as client, pytest.raises(PowerSourceError):
            client.variables("rack")
        assert open_source(f"nut://127.0.0.1:{liar.port}/rack", CLOCK, timeout_s=0.3).read().problem
    finally:
        liar.close()


def test_no_upsd_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(PowerSourceError) as refused:
        NutClient("127.0.0.1", port)
    assert "LISTEN" in refused.value.hint


@pytest.mark.parametrize("word", ["plain", "two words", 'a "quote"', "back\\slash", "", "é"])
def test_words_survive_the_protocol(word: str) -> None:
    assert split(f"A {quoted(word)} B") == ["A", word, "B"]


def supply(root: Path, name: str, **files: str) -> None:
    folder = root / "sys/class/power_supply" / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text + "\n")


def test_a_laptop(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="0")
    supply(
        tmp_path,
        "BAT0",
        type="Battery",
        status="Discharging",
        capacity="80",
        energy_now="40000000",
        power_now="10000000",
    )
    supply(tmp_path, "hidpp_battery_0", type="Battery", scope="Device", capacity="3", status="Discharging")
    reading = AcpiSource("acpi:", CLOCK, tmp_path).read()
    assert (reading.on_battery, reading.charge_percent, reading.runtime_s) == (True, 80, 4 * 3600)
    (tmp_path / "sys/class/power_supply/AC/online").write_text("1\n")
    assert AcpiSource("acpi:", CLOCK, tmp_path).read().on_battery is False


def test_a_battery_alone_says_by_its_status(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", status="Full", capacity="100")
    reading = AcpiSource("acpi:", CLOCK, tmp_path).read()
    assert (reading.on_battery, reading.runtime_s) == (False, None)


def test_a_host_without_supplies_says_so(tmp_path: Path) -> None:
    assert "no battery" in AcpiSource("acpi:", CLOCK, tmp_path).read().problem


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "power"
    source = open_source(f"file://{path}?max_age=60", CLOCK)
    assert source.read().problem
    path.write_text("# by our script\nups.status: OB LB\nbattery.runtime: 42\n")
    reading = source.read()
    assert (reading.on_battery, reading.low, reading.runtime_s) == (True, True, 42)
    os.utime(path, (1, 1))
    assert "believed for 60 s" in source.read().problem
    path.write_text("hello\n")
    assert source.read().problem


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ups",
        "nut://",
        "nut://host",
        "nut://host:port/ups",
        "nut://h/u?tls=2",
        "nut://h/u?x=1",
        "acpi://x",
        "file://a/b",
    ],
)
def test_a_wrong_url_is_one_error_with_a_hint(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_source(url, CLOCK)
    assert refused.value.hint
