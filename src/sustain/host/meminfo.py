"""/proc/meminfo: what the memory of a system is used for. `parse` also reads the texts of guests.

Used by the guest memory scheduler (`sense`, and the page classes of guests with an agent). Values are bytes; None: this
kernel does not say. Names are ours, since the kernel's ("Active(file)") cannot be; the kernel's are beside them.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from sustain.errors import HostError
from sustain.host import files


@dataclass(frozen=True, slots=True, kw_only=True)
class Meminfo:
    """Bytes."""

    total_bytes: int | None = None
    free_bytes: int | None = None
    available_bytes: int | None = None
    buffers_bytes: int | None = None
    cached_bytes: int | None = None  # with shared memory
    active_anonymous_bytes: int | None = None
    inactive_anonymous_bytes: int | None = None
    active_file_bytes: int | None = None
    inactive_file_bytes: int | None = None
    unevictable_bytes: int | None = None
    anonymous_bytes: int | None = None
    shared_bytes: int | None = None
    mapped_bytes: int | None = None
    dirty_bytes: int | None = None
    writeback_bytes: int | None = None
    slab_reclaimable_bytes: int | None = None
    slab_unreclaimable_bytes: int | None = None
    kernel_reclaimable_bytes: int | None = None
    kernel_stack_bytes: int | None = None
    page_table_bytes: int | None = None
    second_page_table_bytes: int | None = None  # of KVM's guests
    per_cpu_bytes: int | None = None
    vmalloc_used_bytes: int | None = None
    hugetlb_bytes: int | None = None
    anonymous_huge_bytes: int | None = None
    shared_huge_bytes: int | None = None
    file_huge_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_free_bytes: int | None = None
    swap_cached_bytes: int | None = None
    zswap_bytes: int | None = None  # memory that zswap uses
    zswapped_bytes: int | None = None  # what lies in it
    balloon_bytes: int | None = None  # taken by this system's own balloon (Linux 6.16)


_NAMES = {
    "MemTotal": "total_bytes",
    "MemFree": "free_bytes",
    "MemAvailable": "available_bytes",
    "Buffers": "buffers_bytes",
    "Cached": "cached_bytes",
    "Active(anon)": "active_anonymous_bytes",
    "Inactive(anon)": "inactive_anonymous_bytes",
    "Active(file)": "active_file_bytes",
    "Inactive(file)": "inactive_file_bytes",
    "Unevictable": "unevictable_bytes",
    "AnonPages": "anonymous_bytes",
    "Shmem": "shared_bytes",
    "Mapped": "mapped_bytes",
    "Dirty": "dirty_bytes",
    "Writeback": "writeback_bytes",
    "SReclaimable": "slab_reclaimable_bytes",
    "SUnreclaim": "slab_unreclaimable_bytes",
    "KReclaimable": "kernel_reclaimable_bytes",
    "KernelStack": "kernel_stack_bytes",
    "PageTables": "page_table_bytes",
    "SecPageTables": "second_page_table_bytes",
    "Percpu": "per_cpu_bytes",
    "VmallocUsed": "vmalloc_used_bytes",
    "Hugetlb": "hugetlb_bytes",
    "AnonHugePages": "anonymous_huge_bytes",
    "ShmemHugePages": "shared_huge_bytes",
    "FileHugePages": "file_huge_bytes",
    "SwapTotal": "swap_total_bytes",
    "SwapFree": "swap_free_bytes",
    "SwapCached": "swap_cached_bytes",
    "Zswap": "zswap_bytes",
    "Zswapped": "zswapped_bytes",
    "Balloon": "balloon_bytes",
}
assert set(_NAMES.values()) == {each.name for each in fields(Meminfo)}


def parse(content: str) -> Meminfo:
    """A text in the form of /proc/meminfo. What is not a number of kB is unknown."""
    found: dict[str, int] = {}
    for line in content.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if (ours := _NAMES.get(name)) and len(words) == 2 and words[1] == "kB":
            kib = files.counted(words[0])
            if kib is not None:
                found[ours] = kib * 1024
    return Meminfo(**found)


def read(root: Path = Path("/")) -> Meminfo:
    """This host's. Raises HostError when it cannot be read or says nothing."""
    path = root / "proc/meminfo"
    info = parse(files.text(path) or "")
    if info.total_bytes is None:
        raise HostError(f"{path}: no MemTotal", hint="is /proc mounted?")
    return info
