"""How fast processors can run: cpufreq, and ACPI's CPPC.

Documentation/admin-guide/pm/intel_pstate.rst, cpufreq.rst, acpi/cppc_sysfs.rst. Used by power-aware placement, which
weighs fewer packages at lower frequencies against more at higher ones. Reading these wakes nobody.
"""

from dataclasses import dataclass
from pathlib import Path

from sustain.host import files

_CPUS = "sys/devices/system/cpu"
_KHZ, _MHZ = 1e3, 1e6


@dataclass(frozen=True, slots=True)
class Range:
    """Of one processor. Hz; None: this host does not say."""

    base_hz: float | None  # that it keeps with all cores at work
    most_hz: float | None  # that it reaches alone


def read(cpu: int, root: Path = Path("/")) -> Range:
    """Raises HostError."""
    folder = root / _CPUS / f"cpu{cpu}"
    base = files.number(folder / "cpufreq/base_frequency")
    nominal = files.number(folder / "acpi_cppc/nominal_freq") if base is None else None
    most = files.number(folder / "cpufreq/cpuinfo_max_freq")
    base_hz = base * _KHZ if base else (nominal * _MHZ if nominal else None)
    return Range(base_hz, most * _KHZ if most else None)
