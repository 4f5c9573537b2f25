"""Sensing packages in a virtual machine of two, as a Xeon that the table of registers knows, whose hypervisor answers
zero for all of them: nothing of it is taken for a measurement. A processor is taken away meanwhile. Also the
surfaces' own tests on that kernel, which has the driver for registers.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.lab import two_sockets, vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

_DRIVERS = """
import subprocess
subprocess.run(["modprobe", "msr"], check=True)
for each in ("intel_cstate", "intel_rapl_msr", "rapl"):  # which find nothing here
    subprocess.run(["modprobe", each], capture_output=True)
"""

ZEROS = (
    _DRIVERS
    + """
import dataclasses, pathlib, time
from sustain.cli.doctor_packages import report
from sustain.host import cpu_time, firmware, msr, package_idle, package_power, topology
from sustain.host.standstill import PATIENCE_NS
identity = firmware.identify()
registers = msr.registers(identity).package
with msr.Msr(3) as register:
    zeros = {name: register.read(number) for name, number in registers.items()}
known = topology.read()
with package_idle.Packages(known) as idle, package_power.Packages(known) as power:
    looks = [idle.read()]
    until_ns = looks[0][0].read_ns + PATIENCE_NS
    while package_idle.since_boot_ns() < until_ns:
        time.sleep(0.1)  # time is what passes here
    looks.append(idle.read())
    watts = power.read()
    sources = [idle.source(each) for each in idle.numbers]
    pathlib.Path("/sys/devices/system/cpu/cpu2/online").write_text("0")
    looks.append(idle.read())
    after = topology.read()
    times = sorted(cpu_time.read())
answer({
    "model": [identity.cpu_vendor, identity.cpu_family, identity.cpu_model, identity.virtual],
    "zeros": zeros, "sources": sources,
    "idle": [{number: dataclasses.asdict(each) for number, each in look.items()} for look in looks],
    "watts": {number: dataclasses.asdict(each) for number, each in watts.items()},
    "after": [sorted(cpus) for _, cpus in sorted(after.packages.items())], "times": times,
    "doctor": {each.name: [each.state, each.found] for each in report()},
})
"""
)


def test_zeros_of_a_hypervisor_are_absent_and_a_processor_may_go(kernel: vm.Kernel, tmp_path: Path) -> None:
    seen = _as_skylake(kernel, tmp_path, ZEROS)
    assert seen["model"] == ["GenuineIntel", 6, 85, True]
    assert set(seen["zeros"].values()) == {0}
    assert seen["sources"] == ["msr", "msr"]
    for look in seen["idle"]:
        for package in ("0", "1"):
            assert look[package]["states"] is None
            assert "virtual machine" in look[package]["reason"]
    assert "stood still" in seen["idle"][1]["0"]["reason"]
    assert seen["idle"][2]["1"]["source"] == "msr"  # by the processor that is left
    for each in seen["watts"].values():
        assert (each["source"], each["package"], each["power_w"]) == ("none", None, None)
        assert each["reason"].startswith("not measurable here, because ")
    assert (seen["after"], seen["times"]) == ([[0, 1], [3]], [0, 1, 3])
    assert seen["doctor"]["packages"][0] == "reduced"
    assert seen["doctor"]["idle states of packages"][0] == "unknown"


THEIR_TESTS = (
    _DRIVERS
    + """
import os, sys
names = ("msr", "cpu_idle", "cpu_time", "firmware", "perf_events", "package_idle", "package_power", "topology")
done = subprocess.run(
    [sys.executable, "-m", "pytest", "-p", "pytest_timeout", "-p", "no:cacheprovider", "-q", "-rs",
     "--basetemp=/dev/shm/tests", "-k", "machine", *(f"tests/host/test_{name}.py" for name in names)],
    env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, capture_output=True, text=True,
)
print(done.stdout, done.stderr)
answer([done.returncode, done.stdout])
"""
)


def test_their_tests_pass_where_there_is_a_driver_for_registers(kernel: vm.Kernel, tmp_path: Path) -> None:
    status, output = _as_skylake(kernel, tmp_path, THEIR_TESTS)
    assert status == 0, output
    assert "no driver for registers here" not in output


def _as_skylake(kernel: vm.Kernel, share: Path, program: str) -> Any:
    """What the program answered on a machine of two packages of that model."""
    machine = two_sockets.guest(kernel, share, program)
    machine.devices += ("-cpu", "Skylake-Server")
    return two_sockets.answer_of(machine, machine.run(400))
