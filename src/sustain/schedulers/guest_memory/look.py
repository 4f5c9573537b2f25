"""One look at one guest: what the host sees, what its balloon says, what its agent says, and which of these to believe.

Used by `sense`, in a thread for each guest. What cannot hang comes first and is passed on at once, so that a guest that
does not answer is still known by what the host sees of it. Of the sources of page classes the best that is fresh is
taken: its agent, its balloon, the host's sampling. An answer that does not come leaves the last one, with its old
time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from sustain.clock import Clock
from sustain.errors import SustainError
from sustain.host import guest_agent, meminfo, pressure, vmstat
from sustain.host.cgroup import Cgroup
from sustain.schedulers.guest_memory import classes
from sustain.schedulers.guest_memory.classes import Reading
from sustain.schedulers.guest_memory.handles import CgroupHandle, Machine, Monitor
from sustain.schedulers.guest_memory.model import Figures, Guest, Mechanism, Source
from sustain.schedulers.guest_memory.sampling import Sampler

_PAGE_BYTES = 4096
_FILES = (guest_agent.BOOT_ID, guest_agent.MEMINFO, guest_agent.VMSTAT, guest_agent.PRESSURE)


class _Classes(msgspec.Struct, frozen=True):
    """What a source said, and when."""

    source: Source = "none"
    at_s: float | None = None
    reading: Reading = Reading()
    boot: str = ""


class Looker:
    """Looks at one guest again and again; remembers what the last look leaves for the next."""

    def __init__(self, clock: Clock, fresh_s: float, root: Path, sampler: Sampler) -> None:
        self._clock = clock
        self._fresh_s = fresh_s
        self._root = root
        self._sampler = sampler
        self._life = ""
        self._agent = _Classes()
        self._statistics = (0, 0.0)  # the last ones: their time by QEMU, and by our clock

    def machine(self, handle: Machine, swap: bool | None, publish: Callable[[Guest], None]) -> Guest | None:
        """A virtual machine; None: it is not running. `swap`: whether this host has any (None: unknown)."""
        life = handle.life()
        if life is None:
            return None
        if life != self._life:
            self._life, self._agent, self._statistics = life, _Classes(), (0, 0.0)
        seen: dict[str, Any] = {}
        problems: list[str] = []
        can: list[Mechanism] = []
        deflates: bool | None = None

        def guest(by: _Classes) -> Guest:
            return Guest(
                name=handle.name,
                kind=handle.kind,
                life=life,
                source=by.source,
                deflates=deflates,
                boot=self._agent.boot,
                figures=Figures(**seen, **by.reading.figures, classes_at_s=by.at_s),
                can=tuple(can),
                problems=(*problems, *by.reading.problems),
            )

        self._from_host(handle, swap, seen, problems, can)
        publish(guest(self._agent))
        monitor = self._from_monitor(handle, seen, problems)
        said = self._from_statistics(monitor, problems)
        if said.at_s is not None and monitor is not None:
            can.insert(0, "balloon")
            seen["balloon_bytes"] = monitor.balloon_bytes
            deflates = monitor.deflates
            if not deflates:
                problems.append(_KILLED)
        publish(guest(self._agent))
        self._from_agent(handle, seen.get("size_bytes"), problems)
        return guest(self._best(handle, said, seen, problems))

    def cgroup(self, handle: CgroupHandle, host_total_bytes: float | None) -> Guest | None:
        """A container; None: it is not there."""
        if handle.life() is None:
            return None
        group = handle.open()
        limit, current = group.limit_bytes(), group.current_bytes()
        limited = limit is not None and (host_total_bytes is None or limit < host_total_bytes)
        stat = group.stat()
        reading = classes.of_cgroup(stat, current, limit if limited else None, group.pressure())
        problems = list(reading.problems)
        if not limited:
            problems.append("it has no limit below the host's memory, so its size is the host's")
        if not group.can_reclaim:
            problems.append("this kernel has no memory.reclaim (Linux 5.19)")
        return Guest(
            name=handle.name,
            kind=handle.kind,
            life=group.life,
            source="cgroup",
            figures=Figures(
                **reading.figures,
                size_bytes=limit if limited else host_total_bytes,
                resident_bytes=current,
                host_swapped_bytes=group.swap_bytes(),
                huge_bytes=stat.anonymous_huge_bytes,
                classes_at_s=self._now_s(),
            ),
            can=("reclaim",) if group.can_reclaim else (),
            problems=tuple(problems),
        )

    def _from_host(
        self,
        handle: Machine,
        swap: bool | None,
        seen: dict[str, Any],
        problems: list[str],
        can: list[Mechanism],
    ) -> None:
        try:
            footprint = handle.footprint()
            faults = footprint.major_faults
            seen |= {
                "size_bytes": sum(each.size_bytes for each in handle.areas()) or None,
                "resident_bytes": footprint.resident_bytes,
                "host_swapped_bytes": footprint.swapped_bytes,
                "huge_bytes": footprint.huge_bytes,
                "host_swap_in_bytes": None if faults is None else faults * _PAGE_BYTES,
            }
        except SustainError as error:
            problems.append(f"its process cannot be looked at: {error}")
        if not swap:
            problems.append(
                "this host has no swap: its memory cannot be paged out" if swap is False else _NO_SWAPS
            )
            return
        if "resident_bytes" in seen:
            can.append("pageout")
        path = handle.cgroup()
        if path is not None:
            try:
                if Cgroup.open(path, self._root).can_reclaim:
                    can.append("reclaim")
            except SustainError as error:
                problems.append(f"its cgroup: {error}")

    def _from_monitor(self, handle: Machine, seen: dict[str, Any], problems: list[str]) -> Monitor | None:
        try:
            monitor = handle.monitor()
        except SustainError as error:
            problems.append(f"its hypervisor does not answer: {error}")
            return None
        if monitor.size_bytes is not None:
            seen["size_bytes"] = monitor.size_bytes
        return monitor

    def _from_statistics(self, monitor: Monitor | None, problems: list[str]) -> _Classes:
        """What the balloon's driver says; no time: there is no driver that could be counted on."""
        if monitor is None:
            return _Classes()
        if monitor.statistics is None:
            problems.append("it has no balloon")
            return _Classes()
        if monitor.problem:
            problems.append(monitor.problem)
            return _Classes()
        said, now_s = monitor.statistics, self._now_s()
        if said.updated_s == 0:
            problems.append("its balloon has no driver, or the driver has said nothing yet")
            return _Classes()
        if said.updated_s != self._statistics[0]:
            # By the wall clock of the host, which may have been set meanwhile; it cannot be older than the last ones,
            # nor of the future.
            age_s = self._clock.realtime_ns() / 1e9 - said.updated_s
            self._statistics = said.updated_s, max(self._statistics[1], now_s - max(0.0, age_s))
        at_s = self._statistics[1]
        if now_s - at_s > 3 * monitor.period_s + 2:
            problems.append(
                f"its balloon's driver has said nothing for {now_s - at_s:.0f} s: is the guest paused?"
            )
            return _Classes()
        return _Classes("balloon", at_s, classes.of_balloon(said, monitor.size_bytes))

    def _from_agent(self, handle: Machine, size_bytes: float | None, problems: list[str]) -> None:
        """Ask it, and keep what it says."""
        if not handle.has_agent:
            problems.append("no way to a guest agent is configured")
            return
        try:
            texts = handle.texts(_FILES)
        except SustainError as error:
            problems.append(f"its agent: {error}")
            return
        boot, info, stat, stalls = ((texts[path] or "").strip() for path in _FILES)
        reading = classes.of_guest(
            meminfo.parse(info), vmstat.parse(stat), pressure.parse(stalls), size_bytes
        )
        if not reading.figures:
            problems.extend(reading.problems)
            self._agent = _Classes(boot=boot)
            return
        self._agent = _Classes("guest-agent", self._now_s(), reading, boot)

    def _best(self, handle: Machine, said: _Classes, seen: dict[str, Any], problems: list[str]) -> _Classes:
        now_s = self._now_s()
        if self._agent.at_s is not None and now_s - self._agent.at_s <= self._fresh_s:
            return self._agent
        if said.reading.figures:
            return said
        problems.extend(said.reading.problems)
        try:
            sampled = self._sampled(handle, seen.get("resident_bytes"), problems)
        except SustainError as error:
            hint = f" ({error.hint})" if error.hint else ""
            problems.append(f"nothing is known of what its memory is used for: {error}{hint}")
            sampled = None
        if sampled is not None:
            return sampled
        return self._agent if self._agent.at_s is not None else _Classes()

    def _sampled(self, handle: Machine, resident_bytes: float | None, problems: list[str]) -> _Classes | None:
        """What the host knows of a random sample of its pages."""
        who, areas = handle.process(), handle.areas()
        if who is None or not areas or resident_bytes is None:
            problems.append(
                "nothing is known of what its memory is used for: its RAM is not found on this host"
            )
            return None
        found = self._sampler.look(handle.name, who, areas)
        if found is None:
            problems.append(
                "nothing is known yet of what its memory is used for: its pages have begun to be sampled"
            )
            return None
        return _Classes(
            "sampling", found.at_s, classes.of_sampling(found.used, found.pages, resident_bytes, found.how)
        )

    def _now_s(self) -> float:
        return self._clock.boottime_ns() / 1e9


_KILLED = (
    "its balloon does not give back when it runs out of memory, so more is left to it: add deflate-on-oom=on to the "
    "balloon's device (libvirt: autodeflate='on')"
)
_NO_SWAPS = "whether this host has swap is unknown: its memory is not paged out"
