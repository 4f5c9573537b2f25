"""What this host offers to the large-page prioritiser, in few lines. Used by `cli.doctor`; what is looked at, and what
enables the rest, is `sustain pages doctor`'s, which also says what is so at the moment alone."""

import os
from pathlib import Path

from sustain.cli import pages_doctor
from sustain.cli.doctor import Finding

_MEANS = {
    "exact counts": "which pages of a process are used is counted by the kernel's marks, by one at a time",
    "estimated counts": "the same, estimated from samples; with neither nothing is counted, so nothing is mapped large",
    "mapping large": "blocks of 2 MiB of other processes are mapped large where that pays",
    "what is large": "page tables say which blocks are large (PAGEMAP_SCAN): nothing is mapped without",
    "small at the start": "targets begin with small pages, which alone can be counted one by one",
    "demotion of shared memory": "also memory that several processes map can be mapped small again",
}


def page_findings(root: Path = Path("/"), user: int | None = None) -> list[Finding]:
    """Looks only. `user`: as whom, ourselves by default."""
    found = {each["name"]: each for each in pages_doctor.look(root, os.geteuid() if user is None else user)}
    return [
        Finding(name, found[name]["state"], found[name]["found"], means, found[name]["enable"])
        for name, means in _MEANS.items()
    ]
