"""What this host offers to power-aware placement, surface by surface, and the command that would enable the rest.

Used by `cli.doctor` (`package_findings`, in few lines) and by `sustain packages doctor` (`report`, or `run` for the
verb). Looks only; looking wakes one package. Sources that are worse than one that works, and those of another maker's
processors, are left out.
"""

import argparse
import fcntl
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sustain.cli.doctor import Finding, describe
from sustain.cli.output import emit
from sustain.errors import HostError
from sustain.host import (
    cpu_idle,
    cpu_time,
    files,
    firmware,
    hierarchies,
    hsmp,
    msr,
    package_idle,
    package_power,
    perf_events,
    topology,
)
from sustain.host.firmware import Identity
from sustain.host.topology import Topology

_SURFACES = {
    "perf": "perf",
    "msr": "registers (/dev/cpu/N/msr)",
    "hsmp": "HSMP (/dev/hsmp)",
    "cpuidle": "cpuidle",
    "powercap": "powercap",
}
_IDLE_MEANS = {
    "perf": "counts how long each package was in each of its idle states",
    "msr": "the same, by the registers that perf would read",
    "hsmp": "tells the share of time in C0 of late, and not which states came in between",
    "cpuidle": "counts the time of processors in their deepest state, which their package need not have followed",
}
_POWER_MEANS = {
    "powercap": "counts the energy of each package, and where it can of its memory",
    "perf": "the same, by other files",
    "hsmp": "tells the power of each package of late, without its memory",
}
_WORSE = frozenset(("hsmp", "cpuidle"))
_SHORT = ("packages", "idle states of packages", "energy of packages", "moving groups", "rights")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What is not in files: the calls to the kernel, and who we are."""

    kernel: perf_events.Kernel | None = None
    pread: msr.Pread = os.pread
    ioctl: hsmp.Ioctl = fcntl.ioctl
    user: int | None = None  # None: as whom we run


def run(args: argparse.Namespace) -> int:
    findings = report()
    emit(
        args,
        {"findings": [asdict(each) for each in findings]},
        lambda: "\n".join(describe(each) for each in findings),
    )
    return 0


def package_findings(root: Path = Path("/"), seams: Seams | None = None) -> list[Finding]:
    """The few that tell whether it is worth a look at the rest."""
    return [each for each in report(root, seams) if each.name in _SHORT]


def report(root: Path = Path("/"), seams: Seams | None = None) -> list[Finding]:
    """All surfaces. Raises HostError when not even processors can be seen."""
    seams = seams or Seams()
    known, identity = topology.read(root), firmware.identify(root)
    return [
        check_packages(known, identity),
        Finding(
            "host and firmware",
            "ok",
            f"{identity.title} (key {identity.key})",
            "what is found out about idle states is kept for this host with this firmware, and found anew with another",
        ),
        *_idle(known, identity, root, seams),
        check_limit(known, identity, root, seams.pread),
        check_processors(known, root),
        *_power(known, identity, root, seams),
        check_times(root),
        check_moving(root),
        check_rights(os.geteuid() if seams.user is None else seams.user),
    ]


def check_packages(known: Topology, identity: Identity) -> Finding:
    count = len(known.packages)
    found = f"{count} with {len(known.cpus)} processors that are online"
    if identity.virtual:
        return Finding(
            "packages",
            "reduced",
            f"{found}, of a virtual machine",
            "those of its host are what uses power; who runs where is its host's to decide",
            "run it on the host",
        )
    if count < 2:
        return Finding("packages", "reduced", found, "with one package there is nothing to empty")
    return Finding("packages", "ok", found, "groups of threads can be placed over them")


def _idle(known: Topology, identity: Identity, root: Path, seams: Seams) -> Iterable[Finding]:
    name = "idle states of packages"
    with package_idle.Packages(
        known, root, kernel=seams.kernel, pread=seams.pread, ioctl=seams.ioctl
    ) as packages:
        first = packages.numbers[0]
        offers = _of_its_maker(packages.offers(first), identity, intel=("perf", "msr"))
        found = packages.read([first])[first]
    what = ", ".join(found.states) if found.states is not None else f"{found.active_percent}% in C0"
    measured = found.states is not None or found.active_percent is not None
    yield _best(name, offers, found.source, what if measured else "", found.reason)
    yield from _surfaces(offers, _IDLE_MEANS, "residency by ")


def _power(known: Topology, identity: Identity, root: Path, seams: Seams) -> Iterable[Finding]:
    name = "energy of packages"
    with package_power.Packages(known, root, kernel=seams.kernel, ioctl=seams.ioctl) as packages:
        first = packages.numbers[0]
        offers = _of_its_maker(packages.offers(first), identity)
        found = packages.read([first])[first]
    what = "counted" if found.dram is None else "counted, and that of memory"
    if found.power_w is not None:
        what = f"{found.power_w:.0f} W of package {first}"
    measured = found.package is not None or found.power_w is not None
    yield _best(name, offers, found.source, what if measured else "", found.reason)
    yield from _surfaces(offers, _POWER_MEANS, "energy by ")


def _of_its_maker(
    offers: dict[str, HostError | None], identity: Identity, intel: tuple[str, ...] = ()
) -> dict[str, HostError | None]:
    """Without those that only processors of another maker have."""
    other = {"GenuineIntel": ("hsmp",), "AuthenticAMD": intel}.get(identity.cpu_vendor, ())
    return {source: error for source, error in offers.items() if error is None or source not in other}


def _best(name: str, offers: Mapping[str, HostError | None], source: str, what: str, reason: str) -> Finding:
    """What is used in the end. `what`: what it measures; "": nothing yet, because of `reason`."""
    means = {
        "idle states of packages": "tells which packages rest, and whether one can while others work",
        "energy of packages": "tells whether a package that was emptied saves anything; else only residency does",
    }[name]
    enable = "; ".join(error.hint for error in offers.values() if error is not None and error.hint)
    if source == "none":
        return Finding(name, "missing", "not measurable here", means, enable)
    if not what:
        return Finding(name, "unknown", reason, means)
    worse = source in _WORSE
    return Finding(
        name, "reduced" if worse else "ok", f"by {_SURFACES[source]}: {what}", means, enable if worse else ""
    )


def _surfaces(
    offers: Mapping[str, HostError | None], means: Mapping[str, str], purpose: str
) -> Iterable[Finding]:
    """Each source down to the first that can be used."""
    usable = None in offers.values()
    for source, error in offers.items():
        name = purpose + _SURFACES[source]
        if error is None:
            yield Finding(name, "ok", "can be read", means[source])
            return
        yield Finding(name, "reduced" if usable else "missing", str(error), means[source], error.hint)


def check_limit(known: Topology, identity: Identity, root: Path, pread: msr.Pread) -> Finding:
    """How deep the firmware lets packages go."""
    name = "depth limit of packages"
    means = "the firmware may keep packages from the states that save most"
    try:
        registers = msr.registers(identity)
        with msr.Msr(min(each.number for each in known.cpus), root, pread) as register:
            limit = register.limit(registers)
    except HostError as error:
        return Finding(name, "unknown", str(error), means, error.hint)
    found = f"{limit.deepest or f'number {limit.number}'}{', locked' if limit.locked else ''}"
    if limit.deepest == "pc0":
        enable = "set the package C-state limit in the firmware's setup"
        return Finding(
            name, "missing", found, "packages do not rest at all, so emptying one saves little", enable
        )
    return Finding(name, "ok" if limit.deepest else "unknown", found, means)


def check_processors(known: Topology, root: Path) -> Finding:
    """cpuidle."""
    name = "idle states of processors"
    means = "how long they rest, read without waking them"
    if lacking := cpu_idle.unavailable(root):
        return Finding(name, "missing", str(lacking), means, lacking.hint)
    setup = cpu_idle.setup(root)
    states = cpu_idle.states(min(each.number for each in known.cpus), root)
    names = ", ".join(each.name + (" (switched off)" if each.disabled else "") for each in states)
    found = f"{names}; driver {setup.driver or 'unknown'}, governor {setup.governor or 'unknown'}"
    if any(each.disabled for each in states):
        return Finding(
            name,
            "reduced",
            found,
            f"{means}; those that are switched off are not used",
            "cpupower idle-set -E",
        )
    return Finding(name, "ok", found, means)


def check_times(root: Path) -> Finding:
    name, means = "times of processors", "how busy each is, read without waking it"
    try:
        count = len(cpu_time.read(root))
    except HostError as error:
        return Finding(name, "missing", str(error), means, error.hint)
    return Finding(name, "ok", f"/proc/stat has {count}", means)


def check_moving(root: Path) -> Finding:
    """Hierarchies with cpuset."""
    name, means = "moving groups", "cgroups get processors by cpuset; processes by their affinity, anywhere"
    found = [
        f"version {each.version} at {each.mount}"
        for each in hierarchies.of("cpuset", root)
        if each.version == 1 or "cpuset" in (files.text(each.mount / "cgroup.controllers") or "").split()
    ]
    if found:
        return Finding(name, "ok", "cpuset of " + ", ".join(found), means)
    enable = "mount -t cgroup2 none /sys/fs/cgroup, on a kernel with CONFIG_CPUSETS"
    return Finding(name, "reduced", "no cgroups with cpuset", means, enable)


def check_rights(user: int) -> Finding:
    means = "moving what others run needs CAP_SYS_NICE, and their cgroups; energy is root's alone"
    if user == 0:
        return Finding("rights", "ok", "root", means)
    return Finding("rights", "missing", f"user {user}", means, "run it as root")
