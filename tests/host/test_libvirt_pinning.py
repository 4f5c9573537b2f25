"""Pins by libvirt: of its own test driver, which imagines a host of eight processors, and of a real QEMU."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import libvirt_pinning, qemu
from sustain.host.affinity import Written
from sustain.host.libvirt import Domain
from sustain.host.libvirt_pinning import Part
from tests.host.test_libvirt import TEST, WHY
from tests.host.test_meminfo import put
from tests.host.test_threads import stat

EVERYWHERE = frozenset(range(8))


@pytest.fixture
def domain() -> Domain:
    pytest.importorskip("libvirt", reason=WHY)
    return Domain(TEST, "test")


def life(domain: Domain) -> str:
    running = domain.running()
    assert running is not None
    return running


def test_nobody_has_pinned_it(domain: Domain) -> None:
    assert libvirt_pinning.read(domain) == {
        Part("emulator"): EVERYWHERE,
        Part("vcpu", 0): EVERYWHERE,
        Part("vcpu", 1): EVERYWHERE,
    }
    first, second = libvirt_pinning.vcpus(domain)
    assert (first.number, second.number) == (0, 1)
    assert first.running
    assert first.used_ns > 0
    assert first.cpu in range(16)


def test_each_part_is_pinned_alone_and_put_back(domain: Domain) -> None:
    domain.call(lambda it: it.addIOThread(3, 1))  # VIR_DOMAIN_AFFECT_LIVE
    try:
        parts = (Part("vcpu", 1), Part("emulator"), Part("iothread", 3))
        for part in parts:
            before = libvirt_pinning.read(domain)
            cpus = frozenset((1, 5))
            assert libvirt_pinning.write(domain, life(domain), part, cpus, expected=before[part]) == (
                Written.DONE,
                cpus,
            )
            assert libvirt_pinning.read(domain) == {**before, part: cpus}
            assert libvirt_pinning.write(domain, life(domain), part, cpus).written is Written.SAME
            changed = libvirt_pinning.write(domain, life(domain), part, {0}, expected=before[part])
            assert changed == (Written.CHANGED, cpus)
            back = libvirt_pinning.write(domain, life(domain), part, before[part], expected=cpus)
            assert back == (Written.DONE, before[part])
            assert libvirt_pinning.read(domain) == before
    finally:
        domain.call(lambda it: it.delIOThread(3, 1))


def test_a_domain_that_was_started_anew(domain: Domain) -> None:
    before = life(domain)
    domain.call(lambda it: it.destroy())
    try:
        assert libvirt_pinning.write(domain, before, Part("emulator"), {1}) == (Written.GONE, None)
        with pytest.raises(HostError, match="test:///default test"):
            libvirt_pinning.read(domain)
    finally:
        domain.call(lambda it: it.create())
    assert life(domain) != before
    pins = libvirt_pinning.read(domain)
    assert libvirt_pinning.write(domain, before, Part("emulator"), {1}) == (Written.GONE, None)
    assert libvirt_pinning.read(domain) == pins


def test_what_there_is_not(domain: Domain) -> None:
    for part in (Part("vcpu", 7), Part("iothread", 9)):
        assert libvirt_pinning.write(domain, life(domain), part, {1}) == (Written.GONE, None)
    nobody = Domain(TEST, "nobody")
    assert libvirt_pinning.write(nobody, "x:1", Part("vcpu"), {1}) == (Written.GONE, None)
    with pytest.raises(HostError, match="no processor"):
        libvirt_pinning.write(domain, life(domain), Part("vcpu"), ())
    with pytest.raises(HostError, match="nobody"):
        libvirt_pinning.vcpus(nobody)


def test_threads_of_virtual_processors(tmp_path: Path) -> None:
    for tid, name in ((7, "qemu-system-x86"), (8, "CPU 0/KVM"), (9, "CPU 11/TCG"), (10, "ALL CPUs/TCG")):
        put(tmp_path, f"proc/7/task/{tid}/stat", stat(tid, name=name))
    assert {number: who.pid for number, who in qemu.vcpus(7, tmp_path).items()} == {0: 8, 11: 9}
    assert qemu.vcpus(1, tmp_path) == {}


def test_a_real_guest() -> None:
    pytest.importorskip("libvirt", reason=WHY)
    emulator = shutil.which("qemu-system-x86_64")
    if emulator is None:
        pytest.skip("no qemu-system-x86_64 here")
    if not list(Path("/usr").glob("lib*/**/connection-driver/libvirt_driver_qemu.so")):
        pytest.skip("no QEMU driver of libvirt here: scripts/setup-debian.sh test")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one processor for us")
    others = ["unshare", "--user", "--map-user=1000"]
    if subprocess.run([*others, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here, and as root the driver needs the user of libvirt's daemon")
    with tempfile.TemporaryDirectory(prefix="lv-home-") as home:  # sockets: a short path
        done = subprocess.run(
            [*others, sys.executable, "-m", "tests.host.embedded_pinning", emulator],
            env={**os.environ, "HOME": home, "XDG_RUNTIME_DIR": home},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    everywhere, low = seen["everywhere"], seen["everywhere"][:1]
    assert seen["before"] == {
        "emulator 0": everywhere,
        "iothread 1": everywhere,
        "vcpu 0": everywhere,
        "vcpu 1": everywhere,
    }
    assert [each["written"] for each in seen["pinned"]] == ["done"] * 3
    # What the kernel says of QEMU's threads.
    assert seen["threads"] == {"vcpu 0": everywhere, "vcpu 1": low, "process": low}
    assert seen["back"] == {"vcpu 0": everywhere, "vcpu 1": everywhere, "process": everywhere}
    assert seen["vcpus"] == [0, 1]
    assert seen["gone"] == "gone"
