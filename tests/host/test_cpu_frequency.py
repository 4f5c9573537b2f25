"""How fast processors can run, by made files of intel_pstate, of CPPC, and of none."""

from pathlib import Path

from sustain.host import cpu_frequency
from sustain.host.cpu_frequency import Range


def _write(root: Path, name: str, content: str) -> None:
    path = root / "sys/devices/system/cpu/cpu3" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + "\n")


def test_base_and_most(tmp_path: Path) -> None:
    assert cpu_frequency.read(3, tmp_path) == Range(None, None)
    _write(tmp_path, "cpufreq/cpuinfo_max_freq", "3700000")
    assert cpu_frequency.read(3, tmp_path) == Range(None, 3.7e9)
    _write(tmp_path, "acpi_cppc/nominal_freq", "2500")  # acpi-cpufreq and amd-pstate
    assert cpu_frequency.read(3, tmp_path) == Range(2.5e9, 3.7e9)
    _write(tmp_path, "cpufreq/base_frequency", "2100000")  # intel_pstate
    assert cpu_frequency.read(3, tmp_path) == Range(2.1e9, 3.7e9)


def test_zero_and_nonsense_are_unknown(tmp_path: Path) -> None:
    _write(tmp_path, "acpi_cppc/nominal_freq", "0")
    _write(tmp_path, "cpufreq/cpuinfo_max_freq", "<unknown>")
    assert cpu_frequency.read(3, tmp_path) == Range(None, None)
