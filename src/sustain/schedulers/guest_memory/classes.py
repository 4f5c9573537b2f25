"""Page classes of one guest, from whatever tells of them: its own kernel's files, its balloon, its cgroup. Pure.

Used by `look`. A guest may lie, or be half up: figures that contradict themselves, or the size that the host gave
it, are not used at all, and the reading says so. What a source cannot tell is None: the balloon does not tell active
from inactive, nor anonymous memory at all, and its "disk caches" hold shared memory, which can only be swapped.

unreclaimable = Unevictable + SUnreclaim + KernelStack + PageTables + SecPageTables + Percpu + Hugetlb of /proc/meminfo.
"""

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from sustain.host.balloon import Statistics
    from sustain.host.cgroup import Stat
    from sustain.host.meminfo import Meminfo
    from sustain.host.pressure import Pressure
    from sustain.host.vmstat import Vmstat

_SLACK = 1.05  # counters are read one after the other while the guest runs


class Reading(msgspec.Struct, frozen=True):
    """Fields of `model.Figures` that a source knows, and what it does not, in words."""

    figures: dict[str, float] = {}
    problems: tuple[str, ...] = ()


def of_guest(info: "Meminfo", stat: "Vmstat", stalls: "Pressure", size_bytes: float | None) -> Reading:
    """By the guest's kernel itself."""
    kernel = (
        info.unevictable_bytes,
        info.slab_unreclaimable_bytes,
        info.kernel_stack_bytes,
        info.page_table_bytes,
        info.second_page_table_bytes,
        info.per_cpu_bytes,
        info.hugetlb_bytes,
    )
    swapped = _less(info.swap_total_bytes, info.swap_free_bytes)
    if swapped is not None and info.swap_cached_bytes is not None:
        swapped = max(0.0, swapped - info.swap_cached_bytes)  # those are in memory as well
    figures = _known(
        total_bytes=info.total_bytes,
        free_bytes=info.free_bytes,
        available_bytes=info.available_bytes,
        inactive_buffer_bytes=info.inactive_file_bytes,
        active_buffer_bytes=info.active_file_bytes,
        inactive_anonymous_bytes=info.inactive_anonymous_bytes,
        active_anonymous_bytes=info.active_anonymous_bytes,
        unreclaimable_bytes=None if info.slab_unreclaimable_bytes is None else _sum(*kernel),
        dirty_bytes=_sum(info.dirty_bytes, info.writeback_bytes),
        swapped_bytes=swapped,
        swap_free_bytes=info.swap_free_bytes,
        stall_us=stalls.some_us,
        full_stall_us=stalls.full_us,
        swap_in_bytes=stat.swap_in_bytes,
        refault_bytes=stat.refault_file_bytes,
        major_faults=stat.major_faults,
    )
    problems = (
        [] if "stall_us" in figures else ["its kernel does not tell how long it waits for memory (PSI)"]
    )
    return _believed(figures, size_bytes, problems)


def of_balloon(said: "Statistics", size_bytes: float | None) -> Reading:
    """By the balloon's driver."""
    figures = _known(
        total_bytes=said.total_bytes,
        free_bytes=said.free_bytes,
        available_bytes=said.available_bytes,
        buffer_bytes=said.disk_caches_bytes,
        swap_in_bytes=said.swap_in_bytes,
        major_faults=said.major_faults,
    )
    unknown = (
        "the balloon tells only free memory and buffers: no anonymous memory, nothing of activity, no stalls"
    )
    return _believed(figures, size_bytes, [unknown])


def of_cgroup(
    stat: "Stat", current_bytes: float | None, limit_bytes: float | None, stalls: "Pressure"
) -> Reading:
    """By the kernel of this host. `limit_bytes` None: it has no limit, and so nothing in it is free."""
    kernel = stat.kernel_bytes
    if kernel is not None and stat.slab_reclaimable_bytes is not None:
        kernel = max(0, kernel - stat.slab_reclaimable_bytes)
    figures = _known(
        total_bytes=limit_bytes,
        free_bytes=None if limit_bytes is None else _less(limit_bytes, current_bytes),
        inactive_buffer_bytes=stat.inactive_file_bytes,
        active_buffer_bytes=stat.active_file_bytes,
        inactive_anonymous_bytes=stat.inactive_anonymous_bytes,
        active_anonymous_bytes=stat.active_anonymous_bytes,
        unreclaimable_bytes=_sum(stat.unevictable_bytes, kernel),
        dirty_bytes=_sum(stat.dirty_bytes, stat.writeback_bytes),
        stall_us=stalls.some_us,
        full_stall_us=stalls.full_us,
        refault_bytes=stat.refault_file_bytes,
        major_faults=stat.major_faults,
        # Linux before 6.13 does not count what a cgroup swaps in, only what of it was needed again soon.
        host_swap_in_bytes=stat.refault_anonymous_bytes if stat.swap_in_bytes is None else stat.swap_in_bytes,
    )
    problems = () if "stall_us" in figures else ("this kernel does not tell how long the cgroup waits (PSI)",)
    return Reading(figures, problems)


def of_sampling(accessed: int, sampled: int, resident_bytes: float, how: str) -> Reading:
    """By the host, which saw `accessed` of `sampled` resident pages, chosen at random, used; `how`, in words.

    Standard error √(f(1−f)/n) of the share, never less than that of one page more or less: a sample of which nothing
    was used does not prove that nothing is."""
    if sampled == 0:
        return Reading()
    share = accessed / sampled
    error = max((share * (1 - share) / sampled) ** 0.5, 1 / sampled)
    return Reading(
        {
            "active_anonymous_bytes": share * resident_bytes,
            "inactive_anonymous_bytes": (1 - share) * resident_bytes,
            "error_bytes": error * resident_bytes,
        },
        (
            f"seen from the host only ({how}): all of its memory counts as anonymous, and what it calls free is "
            "unknown",
        ),
    )


def _believed(figures: dict[str, float], size_bytes: float | None, problems: list[str]) -> Reading:
    lie = _contradiction(figures, size_bytes)
    if lie is not None:
        return Reading({}, (f"its statistics contradict themselves and are not used: {lie}",))
    return Reading(figures, tuple(problems))


def _contradiction(figures: dict[str, float], size_bytes: float | None) -> str | None:
    """What cannot be, in words."""
    total = figures.get("total_bytes")
    if total is None or total <= 0:
        return "no total"
    if size_bytes is not None and total > size_bytes * _SLACK:
        return f"{total:.0f} bytes in a guest of {size_bytes:.0f}"
    for name in ("free_bytes", "available_bytes", "buffer_bytes", "unreclaimable_bytes", "dirty_bytes"):
        if figures.get(name, 0.0) > total * _SLACK:
            return f"{name.removesuffix('_bytes')} {figures[name]:.0f} of {total:.0f} bytes"
    classes = [name for name in figures if name in _PARTS]
    whole = sum(figures[name] for name in classes)
    if whole > total * _SLACK:
        return f"{' + '.join(name.removesuffix('_bytes') for name in classes)} = {whole:.0f} of {total:.0f} bytes"
    return None


_PARTS = frozenset(
    (
        "free_bytes",
        "inactive_buffer_bytes",
        "active_buffer_bytes",
        "inactive_anonymous_bytes",
        "active_anonymous_bytes",
        "unreclaimable_bytes",
        "buffer_bytes",
    )
)


def _known(**values: float | None) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None}


def _sum(*values: float | None) -> float | None:
    known = [each for each in values if each is not None]
    return sum(known) if known else None


def _less(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else max(0.0, whole - part)
