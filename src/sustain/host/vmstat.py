"""/proc/vmstat: what a system has done to its memory, in counters since it started. `parse` also reads guests' texts.

Used by the guest memory scheduler. Counters of pages become bytes; None: this kernel does not count it.
"""

from dataclasses import dataclass
from pathlib import Path

from sustain.errors import HostError
from sustain.host import files

PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Vmstat:
    """Counters: they only grow, until the system starts anew."""

    swap_in_bytes: int | None = None
    swap_out_bytes: int | None = None
    refault_anonymous_bytes: int | None = None  # came back soon after they were reclaimed
    refault_file_bytes: int | None = None
    scanned_bytes: int | None = None  # looked at by reclaim
    reclaimed_bytes: int | None = None
    major_faults: int | None = None
    oom_kills: int | None = None


def parse(content: str, page_bytes: int = PAGE_BYTES) -> Vmstat:
    """A text in the form of /proc/vmstat, from a system with pages of `page_bytes`."""
    count = files.table(content)

    def size(*names: str) -> int | None:
        pages = _sum(*(count.get(each) for each in names))
        return None if pages is None else pages * page_bytes

    return Vmstat(
        swap_in_bytes=size("pswpin"),
        swap_out_bytes=size("pswpout"),
        refault_anonymous_bytes=size("workingset_refault_anon"),
        # before Linux 5.9 files alone were counted, without "file" in the name
        refault_file_bytes=size("workingset_refault_file", "workingset_refault"),
        scanned_bytes=size("pgscan_kswapd", "pgscan_direct"),
        reclaimed_bytes=size("pgsteal_kswapd", "pgsteal_direct"),
        major_faults=count.get("pgmajfault"),
        oom_kills=count.get("oom_kill"),
    )


def read(root: Path = Path("/")) -> Vmstat:
    """This host's. Raises HostError when there is none."""
    path = root / "proc/vmstat"
    content = files.text(path)
    if not content:
        raise HostError(f"{path}: not there, or empty", hint="is /proc mounted?")
    return parse(content)


def _sum(*values: int | None) -> int | None:
    known = [each for each in values if each is not None]
    return sum(known) if known else None
