"""What this host offers to region evacuation. Used by `cli.doctor`; findings and their states are the same."""

import os
from pathlib import Path

from sustain.cli.doctor import Finding
from sustain.host import freezer, kernel, pagemap
from sustain.powerfail.regions import track


def region_findings() -> list[Finding]:
    """Looks at the kernel, tries what can be tried, changes nothing."""
    return [
        check_tracking(
            scan=pagemap.has_scan(),
            soft_dirty=pagemap.has_soft_dirty(),
            library=track.LIBRARY,
            release=kernel.release(),
        ),
        check_rights(os.geteuid()),
        check_freezing(freezer.cgroup_freezers()),
    ]


def check_tracking(
    *, scan: bool, soft_dirty: bool, library: Path, release: tuple[int, int] | None
) -> Finding:
    name = "finding changed pages"
    ways = [way for way, there in (("write-protect", scan), ("soft-dirty", soft_dirty)) if there] + [
        "content"
    ]
    found = ", ".join(ways)
    if not library.exists():
        return Finding(
            name,
            "reduced",
            f"{found}; no {library.name}",
            "programs cannot be tracked by write protection, and children that came and went are not counted",
            "make build",
        )
    if scan:
        return Finding(
            name,
            "ok",
            found,
            "the kernel names the pages that a program changed; statically linked programs and, without soft-dirty "
            "bits, regions on DAX are compared by content",
        )
    enable = "boot Linux ≥ 6.7"
    if release is not None and release >= (6, 7):
        enable = (
            "allow the PAGEMAP_SCAN ioctl and userfaultfd (a container's seccomp profile may forbid them)"
        )
    if soft_dirty:
        return Finding(
            name,
            "reduced",
            found,
            "the program stands still for a moment each time changes are collected",
            enable,
        )
    return Finding(
        name, "reduced", found, "all of a region is read again and again, and once more at the outage", enable
    )


def check_rights(uid: int) -> Finding:
    name = "looking into programs"
    if uid == 0:
        return Finding(name, "ok", "as root", "the page tables and mappings of all programs can be read")
    return Finding(
        name,
        "reduced",
        f"as user {uid}",
        "programs of this user only; another user's that maps the region is not seen",
        "run the supervisor and the program as the same user, or as root",
    )


def check_freezing(cgroups: list[str]) -> Finding:
    name = "freezing the program"
    if cgroups:
        return Finding(
            name,
            "ok",
            f"by signal, by cgroup ({', '.join(cgroups)}), guests by QMP",
            "the program stands still while the last changes are saved",
        )
    return Finding(
        name,
        "ok",
        "by signal, guests by QMP; no cgroup freezer",
        "the program stands still while the last changes are saved",
        "mount -t cgroup2 none /sys/fs/cgroup",
    )
