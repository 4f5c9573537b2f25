"""`sustain pages doctor`: what this host offers to the large-page prioritiser.

Used by `pages`. Looks only; whether DAMON can really watch a process shows when it is tried.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from sustain.cli.output import emit, table
from sustain.errors import HostError
from sustain.host import kernel, large_pages, page_idle
from sustain.schedulers.large_pages.counting import impossible

_ROOT = Path("/")


def run(args: argparse.Namespace) -> int:
    findings = look(_ROOT, os.geteuid())
    emit(args, {"findings": findings}, lambda: _text(findings))
    return 0


def look(root: Path, user: int) -> list[dict[str, Any]]:
    """Each thing looked at: name, state (ok, reduced, missing, unknown), found, enable."""
    release = kernel.release(root)
    settings = large_pages.settings(root)
    free = large_pages.free(root)
    exact, estimated = impossible("page-idle", root), impossible("damon", root)
    least = "missing" if exact and estimated else "reduced"
    return [
        _finding(
            "exact counts",
            exact is None,
            _page_idle(exact, root),
            exact.hint if exact else "",
            least,
        ),
        _damon(estimated, least),
        _finding(
            "mapping large",
            release is not None and release >= (6, 1),
            f"Linux {_release(release)}",
            "process_madvise(MADV_COLLAPSE) needs Linux 6.1",
        ),
        _finding(
            "what is large",
            release is not None and release >= (6, 7),
            f"Linux {_release(release)}",
            "PAGEMAP_SCAN needs Linux 6.7",
        ),
        _finding("rights", user == 0, f"user {user}", "run it as root"),
        _finding(
            "small at the start",
            settings.enabled == "never",
            f"transparent_hugepage/enabled is {settings.enabled or 'not there'}",
            f"before targets start: echo never > {large_pages.SETTING}",
            "reduced" if settings.enabled else "missing",
        ),
        _finding(
            "free large pages",
            bool(free),
            "unknown" if free is None else str(free),
            "memory is fragmented or short: echo 1 > /proc/sys/vm/compact_memory",
            "reduced",
        ),
        _finding(
            "demotion of shared memory",
            large_pages.can_split(root),
            "split_huge_pages of debugfs",
            "mount -t debugfs debugfs /sys/kernel/debug; memory that several processes map stays large without",
            "reduced",
        ),
    ]


def _page_idle(lacks: HostError | None, root: Path) -> str:
    if not page_idle.available(root):
        return "no page_idle"
    if lacks is not None:
        return "page_idle, and frame numbers are hidden"
    holder = page_idle.holder(root)
    return f"page_idle; {holder} counts by it now, and nobody else can" if holder else "page_idle"


def _damon(lacks: HostError | None, least: str) -> dict[str, Any]:
    if lacks is not None:
        return _finding("estimated counts", False, "no DAMON", lacks.hint, least)
    found = "DAMON; whether it can watch processes shows when it is tried (`sustain pages status --pid PID`)"
    return {"name": "estimated counts", "state": "unknown", "found": found, "enable": ""}


def _finding(name: str, fine: bool, found: str, enable: str, otherwise: str = "missing") -> dict[str, Any]:
    return {
        "name": name,
        "state": "ok" if fine else otherwise,
        "found": found,
        "enable": "" if fine else enable,
    }


def _text(findings: list[dict[str, Any]]) -> str:
    rows = [(each["state"], each["name"], each["found"], each["enable"]) for each in findings]
    return table(rows)


def _release(release: tuple[int, int] | None) -> str:
    return "unknown" if release is None else ".".join(str(each) for each in release)
