"""What test_packages_host does in its guest, and what it sees there, as JSON."""

import errno
import os
from pathlib import Path
from typing import Any

from sustain.errors import HostError
from sustain.host import affinity, files, irqs, numa_memory, threads, topology
from sustain.host.cpuset import Cpuset
from sustain.host.processes import Identity
from tests.host.cpusets import enter, own_cpuset
from tests.host.held import MIB, Holder
from tests.host.threaded import Program, wait_until

_SWITCH = Path("/sys/devices/system/cpu/cpu3/online")


def look() -> dict[str, Any]:
    return {"moves": moves(), "hotplug": hotplug(), "interrupts": interrupts()}


def moves() -> dict[str, Any]:
    """A cgroup of busy threads goes from package to package, then its memory."""
    packages = topology.read().packages
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, packages[0])  # so that the holder's memory is on node 0
    with own_cpuset() as group, Holder(24 * MIB) as holder, Program() as program:
        os.sched_setaffinity(0, everywhere)
        busy = [program.start(busy=True) for _ in range(3)]
        for each in (*(threads.read(program.pid) or ()), *(threads.read(holder.who.pid) or ())):
            affinity.write(each.who, everywhere)  # they had it from us
        for pid in (holder.who.pid, program.pid):
            enter(group, pid)
        seen: dict[str, Any] = {"own": sorted(group.own_cpus() or ()), "before": _by_node(holder)}
        seen["ran"] = []
        for number in (1, 0, 1):
            group.set_cpus(packages[number])
            wait_until(lambda number=number: _run_on(busy, packages[number]))  # type: ignore[misc]
            wait_until(_works(group))
            seen["ran"].append(_run_on(busy, packages[number]))
        group.set_mems({1})
        seen["after"] = _by_node(holder)
        group.set_mems(())
        group.set_cpus(())
        wait_until(lambda: any(_run_on([each], packages[0]) for each in busy))
        seen["put back"] = [sorted(each or ()) for each in (group.own_cpus(), group.own_mems(), group.cpus())]
        seen["whole"] = holder.touch()
    return seen


def hotplug() -> dict[str, Any]:
    """Processor 3 goes offline and comes back, under threads that may run there."""
    with (
        own_cpuset(name="both") as both,
        own_cpuset(name="last") as last,
        Program() as first,
        Program() as second,
        Program() as free,
    ):
        enter(both, first.pid)
        enter(last, second.pid)
        both.set_cpus({2, 3})
        last.set_cpus({3})
        who = [_thread(program.start(busy=True)) for program in (free, free, first, second)]
        affinity.write(who[0], {2, 3})
        affinity.write(who[1], {3})

        def now() -> dict[str, Any]:
            return {
                "packages": [sorted(cpus) for _, cpus in sorted(topology.read().packages.items())],
                "affinities": [sorted(affinity.read(each) or ()) for each in who],
                "groups": [
                    [sorted(each.own_cpus() or ()), sorted(each.cpus() or ())] for each in (both, last)
                ],
            }

        seen: dict[str, Any] = {"before": now()}
        _SWITCH.write_text("0")
        try:
            seen["without"] = now()
            seen["refused"] = [_refusal(each) for each in (who[0], who[2])]
        finally:
            _SWITCH.write_text("1")
        seen["again"] = now()
    return seen


def interrupts() -> dict[str, Any]:
    """Those of the shared directory come to another package; those of the disk's queues cannot be placed."""
    found = irqs.read()
    share = next(each for each in found if each.name == _share_interrupt())
    seen: dict[str, Any] = {"on": []}
    for cpu in (0, 2):
        irqs.write(share, {cpu})
        _use_share()  # the next one is what moves it
        before = irqs.counts()
        _use_share()
        after = irqs.counts()
        pairs = zip(before.by_irq[share.number], after.by_irq[share.number], strict=True)
        seen["on"].append([which for which, (old, new) in zip(after.cpus, pairs, strict=True) if new > old])
    seen["back"] = irqs.write(share, share.cpus).cpus == share.cpus
    managed = [each for each in found if each.managed and "req." in each.name]
    seen["managed"] = sorted(sorted(each.cpus) for each in managed)
    try:
        irqs.write(managed[0], set(range(4)) - managed[0].cpus)
    except irqs.ManagedInterrupt as error:
        seen["refused"] = str(error)
    try:
        files.write(Path(f"/proc/irq/{managed[0].number}/smp_affinity_list"), "0-3")
    except HostError as error:
        seen["kernel"] = errno.errorcode[error.errno or 0]
    return seen


def _share_interrupt() -> str:
    """Which one comes when the shared directory is used."""
    before = irqs.counts().by_irq
    _use_share()
    after = irqs.counts().by_irq
    names = {each.number: each.name for each in irqs.read()}
    return names[max(after, key=lambda number: sum(after[number]) - sum(before.get(number, ())))]


def _use_share() -> None:
    for round_trip in range(20):
        Path("/run/lab/scratch").write_text("x" * round_trip)


def _thread(tid: int) -> Identity:
    thread = threads.one(tid)
    assert thread is not None
    return thread.who


def _run_on(tids: list[int], cpus: frozenset[int]) -> bool:
    return all((thread := threads.one(tid)) is not None and thread.cpu in cpus for tid in tids)


def _works(group: Cpuset) -> Any:
    """Whether it uses time, from now on."""
    before_us = group.used_us() or 0
    return lambda: (group.used_us() or 0) > before_us + 50_000


def _by_node(holder: Holder) -> dict[int, int] | None:
    return numa_memory.of_process(holder.who.pid)


def _refusal(who: Identity) -> str:
    try:
        affinity.write(who, {3})
    except HostError as error:
        return f"{errno.errorcode[error.errno or 0]}: {error.hint}"
    return "it was set"
