"""What this host offers to replicated stores, to region evacuation, to large pages and to power-aware placement, what
each finding means, and the command that would enable the rest. Fails when something is missing for the first two; the
others are for hosts that schedule them.

Looks at the kernel, at the medium under PATH (where a store is or would be) and, when asked, at a lease. It tries
things with a temporary file and removes it; nothing is changed.
"""

import argparse
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fcntl import F_OFD_SETLK, fcntl
from pathlib import Path

from sustain import _native
from sustain.cli.output import add_json, emit
from sustain.errors import SustainError
from sustain.host import kernel, mounts
from sustain.units import format_duration

HELP = "say what this host offers, and how to enable the rest"

_MARKS = {"ok": "✓", "reduced": "~", "missing": "✗", "unknown": "?"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. state: "ok", "reduced" (works, with a cost), "missing" (does not work),
    "unknown"."""

    name: str
    state: str
    found: str
    means: str
    enable: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", default=".", help="a store, or a directory for one (.)")
    parser.add_argument(
        "--lease", metavar="URL", help="also look at a lease: file:///dir, etcd://host:2379,…"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    path = Path(args.path)
    directory = path if path.is_dir() else path.parent
    findings = [
        check_kernel(kernel.release()),
        check_capture(
            _native.capture_modes(),
            kernel.release(),
            kernel.setting("vm.unprivileged_userfaultfd"),
            os.geteuid(),
        ),
        check_on_demand(
            _native.on_demand_available(), kernel.setting("vm.unprivileged_userfaultfd"), os.geteuid()
        ),
        check_overcommit(kernel.setting("vm.overcommit_memory")),
        check_durability(directory, mounts.mount_of(directory)),
        check_directory("store directory", directory),
        check_locks(directory),
        check_fdatasync(directory),
    ]
    if args.lease:
        from sustain.cli.doctor_lease import lease_findings

        findings += lease_findings(args.lease)
    from sustain.cli.doctor_packages import package_findings
    from sustain.cli.doctor_pages import page_findings
    from sustain.cli.doctor_regions import region_findings

    needed = {"replicated_stores": findings, "region_evacuation": region_findings()}
    systems = needed | {"large_pages": page_findings(), "power_aware_placement": package_findings()}
    data = {
        "path": str(path),
        "ok": all(finding.state != "missing" for each in needed.values() for finding in each),
        "systems": {name: [asdict(finding) for finding in each] for name, each in systems.items()},
    }
    emit(args, data, lambda: "\n".join(_described(name, each) for name, each in systems.items()))
    return 0 if data["ok"] else 1


def _described(system: str, findings: list[Finding]) -> str:
    return "\n".join([system.replace("_", " "), *(describe(each) for each in findings)])


def describe(finding: Finding) -> str:
    lines = [f"  {_MARKS[finding.state]} {finding.name}: {finding.found}", f"      {finding.means}"]
    if finding.enable:
        lines.append(f"      to change it: {finding.enable}")
    return "\n".join(lines)


def check_kernel(release: tuple[int, int] | None) -> Finding:
    if release is None:
        return Finding(
            "kernel", "unknown", "release not readable", "is /proc mounted?", "mount -t proc proc /proc"
        )
    shown = f"Linux {release[0]}.{release[1]}"
    if release >= (6, 7):
        return Finding("kernel", "ok", shown, "has everything that stores use")
    if release >= (5, 10):
        return Finding(
            "kernel",
            "reduced",
            shown,
            "works; changed array pages are found more slowly before 6.7",
            "boot Linux ≥ 6.7",
        )
    return Finding("kernel", "missing", shown, "older than what Sustain is tested with", "boot Linux ≥ 5.10")


def check_capture(
    modes: list[str], release: tuple[int, int] | None, unprivileged_userfaultfd: int | None, uid: int
) -> Finding:
    name, found = "finding changed array pages", ", ".join(modes) or "none"
    if "scan" in modes:
        return Finding(name, "ok", found, "PAGEMAP_SCAN names the written pages; a commit costs what changed")
    enable = "boot Linux ≥ 6.7"
    if release is not None and release >= (6, 7):
        enable = (
            "allow the userfaultfd system call to this process (a container's seccomp profile may forbid it)"
        )
        if uid != 0 and unprivileged_userfaultfd == 0:
            enable = "sysctl -w vm.unprivileged_userfaultfd=1"
    if "pagemap" in modes:
        return Finding(
            name,
            "reduced",
            found,
            "/proc/self/pagemap names pages that ever changed; commits compare them all",
            enable,
        )
    return Finding(name, "reduced", found, "every page of every array is compared at each commit", enable)


def check_on_demand(available: bool, unprivileged_userfaultfd: int | None, uid: int) -> Finding:
    name = "opening a store that is still arriving"
    if available:
        return Finding(
            name, "ok", "userfaultfd", "pages come when they are first used, also inside system calls"
        )
    enable = "allow the userfaultfd system call (a container's seccomp profile may forbid it)"
    if uid != 0 and unprivileged_userfaultfd == 0:
        enable = "sysctl -w vm.unprivileged_userfaultfd=1, or let this user open /dev/userfaultfd"
    return Finding(
        name,
        "reduced",
        "no userfaultfd for faults in the kernel",
        "opening waits until all pages are here",
        enable,
    )


def check_overcommit(mode: int | None) -> Finding:
    name = "memory overcommit"
    if mode is None:
        return Finding(name, "unknown", "vm.overcommit_memory not readable", "is /proc mounted?")
    if mode == 2:
        return Finding(
            name,
            "reduced",
            "strict (vm.overcommit_memory = 2)",
            "a store's whole image counts as memory in use, and opening a large one may fail",
            "sysctl -w vm.overcommit_memory=0",
        )
    return Finding(name, "ok", f"vm.overcommit_memory = {mode}", "only changed pages take memory")


def check_durability(directory: Path, mount: mounts.Mount | None) -> Finding:
    name = "durability"
    where = "" if mount is None else f" on {mount.kind} at {mount.point}"
    try:
        best = _native.durability_of(str(directory))
    except SustainError as error:
        return Finding(name, "unknown", str(error), "the directory cannot be used")
    if best == "pmem":
        return Finding(
            name, "ok", f"pmem{where}", "a commit that returned survives power loss, without a system call"
        )
    pmem = "on persistent memory: mount -o dax=always /dev/pmem0 DIR"
    if best == "disk":
        return Finding(
            name,
            "ok",
            f"disk{where}",
            "a commit that returned survives power loss; it waits for the disk",
            pmem,
        )
    return Finding(
        name,
        "reduced",
        f"memory{where}",
        "a commit survives the death of its process; power loss only through its replicas",
        "put the store on a disk's file system, or " + pmem,
    )


def check_directory(name: str, directory: Path) -> Finding:
    """Can files be made, renamed and made durable in `directory`?"""
    try:
        with tempfile.TemporaryDirectory(prefix=".sustain-doctor-", dir=directory) as scratch:
            first = Path(scratch, "first")
            first.write_bytes(b"x")
            first.rename(Path(scratch, "second"))
            descriptor = os.open(scratch, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        return Finding(
            name,
            "missing",
            f"{directory}: {error.strerror or error}",
            "files cannot be made there",
            f"mkdir -p {directory} && chown {os.geteuid()} {directory}",
        )
    return Finding(
        name, "ok", f"{directory.resolve()} is writable", "files can be made, renamed and made durable"
    )


def check_locks(directory: Path) -> Finding:
    """Open-file-description locks keep the second writer out; some network file systems lack them."""
    name = "locks"

    def attempt(descriptor: int) -> Finding:
        fcntl(descriptor, F_OFD_SETLK, struct.pack("hhqqi4x", 1, os.SEEK_SET, 0, 1, 0))  # F_WRLCK on byte 0
        return Finding(name, "ok", "open-file-description locks work", "a second writer is kept out")

    return _with_file(directory, name, attempt, "use a local file system, or NFS ≥ 4")


def check_fdatasync(directory: Path) -> Finding:
    """How long the medium takes to make a small write durable: the floor of a `disk` commit."""
    name = "fdatasync"

    def attempt(descriptor: int) -> Finding:
        times_s = []
        for _ in range(5):
            os.pwrite(descriptor, os.urandom(512), 0)
            began_s = time.perf_counter()
            os.fdatasync(descriptor)
            times_s.append(time.perf_counter() - began_s)
        typical = format_duration(statistics.median(times_s))
        return Finding(
            name, "ok", f"works, {typical} (median of 5)", "a `disk` commit alone takes at least that long"
        )

    return _with_file(directory, name, attempt, "use a file system on a disk of this host")


def _with_file(directory: Path, name: str, attempt: Callable[[int], Finding], enable: str) -> Finding:
    try:
        with tempfile.TemporaryFile(prefix=".sustain-doctor-", dir=directory) as scratch:
            return attempt(scratch.fileno())
    except OSError as error:
        return Finding(
            name, "missing", f"{directory}: {error.strerror or error}", "stores cannot be kept there", enable
        )
