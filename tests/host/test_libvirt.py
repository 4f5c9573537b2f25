"""libvirt by its own test driver, which is a hypervisor that it imagines, and with a real QEMU."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host.libvirt import Domain

WHY = "no libvirt here: pip install libvirt-python, with libvirt's headers (scripts/setup-debian.sh test)"
TEST = "test:///default"  # a guest named "test"


@pytest.fixture
def library() -> None:
    pytest.importorskip("libvirt", reason=WHY)


@pytest.mark.usefixtures("library")
def test_a_domain_of_the_test_driver() -> None:
    domain = Domain(TEST, "test")
    life = domain.running()
    assert life is not None
    assert life.startswith(domain.identity() + ":")
    assert Domain(TEST, domain.identity()).running() == life
    size = domain.size_bytes()
    domain.set_balloon(size // 2)
    assert domain.balloon_bytes() is not None
    said = domain.statistics()
    assert said.updated_s > 0
    assert said.total_bytes is not None
    assert said.free_bytes is not None
    assert said.free_bytes < said.total_bytes
    assert said.disk_caches_bytes
    assert domain.period() in (0, None)  # of its balloon, if it has one


@pytest.mark.usefixtures("library")
def test_a_domain_that_is_not_there() -> None:
    domain = Domain(TEST, "nobody")
    assert domain.running() is None
    with pytest.raises(HostError, match="nobody"):
        domain.size_bytes()


@pytest.mark.usefixtures("library")
def test_the_test_driver_has_no_agents() -> None:
    with pytest.raises(HostError, match="test:///default"):
        Domain(TEST, "test").ask("guest-ping")
    with pytest.raises(HostError, match="test:///default"):
        Domain(TEST, "test").ask_monitor("query-name")


@pytest.mark.usefixtures("library")
def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="none") as caught:
        Domain(f"qemu+unix:///system?socket={tmp_path / 'none'}", "x").running()
    assert "libvirtd" in caught.value.hint


@pytest.mark.usefixtures("library")
def test_a_daemon_that_hangs_delays_nobody(tmp_path: Path) -> None:
    """It takes connections and says nothing: the library waits for it for ever."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        daemon.listen()
        uri = f"qemu+unix:///system?socket={path}"
        stuck, beside = Domain(uri, "x", timeout_s=0.3), Domain(uri, "y", timeout_s=0.3)
        begun_s = time.monotonic()
        for each in (stuck, beside, stuck, stuck):
            with pytest.raises(HostError, match="no answer") as caught:
                each.running()
            assert "libvirtd" in caught.value.hint
        assert time.monotonic() - begun_s < 2
        assert Domain(TEST, "test", timeout_s=5).running()
    # It has gone: the calls that hung come back, and the next one says so.
    deadline_s = time.monotonic() + 20
    while True:
        try:
            stuck.running()
        except HostError as error:
            if "no answer" not in str(error):
                break
        assert time.monotonic() < deadline_s


def test_a_process_ends_though_its_daemon_hangs(library: None, tmp_path: Path) -> None:
    program = (
        "import sys; from sustain.host.libvirt import Domain\n"
        "try: Domain(sys.argv[1], 'x', timeout_s=0.3).running()\n"
        "except Exception as error: print(error)"
    )
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        daemon.listen()
        done = subprocess.run(
            [sys.executable, "-c", program, f"qemu+unix:///system?socket={path}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert "no answer" in done.stdout
    assert done.returncode == 0
    assert done.stderr == ""


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(HostError, match="not installed") as caught:
        Domain(TEST, "test").running()
    assert "sustain[libvirt]" in caught.value.hint


@pytest.mark.usefixtures("library")
def test_a_real_guest(tmp_path: Path) -> None:
    emulator = shutil.which("qemu-system-x86_64")
    if emulator is None:
        pytest.skip("no qemu-system-x86_64 here")
    if not list(Path("/usr").glob("lib*/**/connection-driver/libvirt_driver_qemu.so")):
        pytest.skip("no QEMU driver of libvirt here: scripts/setup-debian.sh test")
    others = ["unshare", "--user", "--map-user=1000"]
    if subprocess.run([*others, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here, and as root the driver needs the user of libvirt's daemon")
    with tempfile.TemporaryDirectory(prefix="lv-home-") as home:  # sockets: a short path
        done = subprocess.run(
            [*others, sys.executable, "-m", "tests.host.embedded_libvirt", emulator],
            env={**os.environ, "HOME": home, "XDG_RUNTIME_DIR": home},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    (guest,) = seen["first"]["guests"]
    assert (guest["name"], guest["kind"], guest["source"]) == ("small", "libvirt", "none")
    assert guest["figures"]["size_bytes"] == seen["balloon"] == 64 << 20
    assert guest["figures"]["resident_bytes"] > 1 << 20
    assert guest["figures"]["balloon_bytes"] is None
    assert seen["deflates"] is True
    assert any("no driver" in each for each in guest["problems"])
    assert any("agent" in each for each in guest["problems"])
    assert seen["pid"]
    assert seen["resident"] > 1 << 20
    assert seen["by_uuid"] == [guest["life"]]
    assert any("absent: it is not running" in each for each in seen["first"]["host"]["problems"])
    assert not any("(small)" in each for each in seen["first"]["host"]["problems"])  # it is configured
    assert any(f"{seen['pid']} (small)" in each and "kind libvirt" in each for each in seen["strangers"])
    assert "small" in seen["after"]
    assert seen["period"] == {"noted": ["statistics:small"], "while": 5, "after": 0, "left": []}
    # Where a guest-physical address lies in QEMU's memory, asked through libvirt: in the RAM that was found.
    (ram,) = seen["areas"]
    assert ram[0] <= seen["place"] < ram[1]
