"""Device interrupts: how often each has come to each processor (/proc/interrupts), and where it may come (/proc/irq/N).

Documentation/core-api/irq/irq-affinity.rst. Used by the package scheduler. A number may be another device's after a
driver was loaded anew; number and name (/sys/kernel/irq/N/actions) together tell.

Many drivers let the kernel spread their interrupts ("managed": NVMe, virtio-blk); nobody may place these. The kernel
shows them without leave to write, and answers EIO (newer: EPERM) to root.
"""

import errno
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sustain.errors import HostError
from sustain.host import files
from sustain.host.affinity import Outcome, Written

_CPU = re.compile(r"CPU(\d+)")
_MANAGED = frozenset((errno.EIO, errno.EPERM))


class ManagedInterrupt(HostError):
    """The kernel or its driver places this interrupt; nobody else can."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Of all device interrupts, since boot."""

    cpus: tuple[int, ...]  # that are online
    by_irq: dict[int, tuple[int, ...]]  # on each of them, in their order


@dataclass(frozen=True, slots=True)
class Irq:
    """One device interrupt and where it may come."""

    number: int
    name: str  # of who handles it ("virtio2-input.0"); "": nobody does, or the kernel does not say
    cpus: frozenset[int]
    effective: (
        frozenset[int] | None
    )  # the one or few of them that it does come to; None: the kernel does not say
    node: int | None  # of its device; None: none
    managed: bool


def counts(root: Path = Path("/")) -> Counts:
    """How often each has come. Raises HostError."""
    path = root / "proc/interrupts"
    head, *lines = (files.text(path) or "").splitlines() or [""]
    cpus = tuple(int(each) for each in _CPU.findall(head))
    if not cpus:
        raise HostError(f"{path}: no processors", hint="is /proc mounted?")
    found = {}
    for line in lines:
        number, _, rest = line.partition(":")
        if number.strip().isdecimal():
            words = rest.split(None, len(cpus))[: len(cpus)]
            if len(words) == len(cpus) and all(word.isdecimal() for word in words):
                found[int(number)] = tuple(map(int, words))
    return Counts(cpus, found)


def read(root: Path = Path("/")) -> tuple[Irq, ...]:
    """All that there are, by number. Raises HostError."""
    numbers = (int(path.name) for path in (root / "proc/irq").glob("[0-9]*"))
    found = (one(number, root) for number in sorted(numbers))
    return tuple(each for each in found if each is not None)


def one(number: int, root: Path = Path("/")) -> Irq | None:
    """One by its number; None: there is none. Raises HostError."""
    folder = root / f"proc/irq/{number}"
    path = folder / "smp_affinity_list"
    content = files.text(path)
    if content is None:
        return None
    try:
        managed = not path.stat().st_mode & stat.S_IWUSR
    except FileNotFoundError:
        return None
    effective = files.cpus(files.text(folder / "effective_affinity_list"))
    node = files.number(folder / "node")
    return Irq(
        number,
        _name(number, root),
        files.cpus(content),
        effective or None,
        None if node is None or node < 0 else node,
        managed,
    )


def write(
    irq: Irq, cpus: Iterable[int], expected: frozenset[int] | None = None, root: Path = Path("/")
) -> Outcome:
    """Let it come to these only; with `expected` not if it may now come to others than those. The kernel moves it when
    it comes next. Raises HostError: ManagedInterrupt; EINVAL, none of them is online; ENOSPC, they have no vector left.
    """
    wanted = frozenset(cpus)
    now = one(irq.number, root)
    if now is None or now.name != irq.name:
        return Outcome(Written.GONE, None)
    if expected is not None and now.cpus != expected:
        return Outcome(Written.CHANGED, now.cpus)
    if now.cpus == wanted:
        return Outcome(Written.SAME, now.cpus)
    if now.managed:
        raise _managed(irq)
    path = root / f"proc/irq/{irq.number}/smp_affinity_list"
    try:
        files.write(path, files.cpu_list(wanted) + "\n")
    except HostError as error:
        if error.errno == errno.ENOENT:
            return Outcome(Written.GONE, None)
        if error.errno in _MANAGED:
            raise _managed(irq) from None
        raise HostError(
            str(error), hint=error.hint or _HINTS.get(error.errno or 0, ""), errno=error.errno
        ) from None
    now = one(irq.number, root)
    gone = now is None or now.name != irq.name
    return Outcome(Written.GONE, None) if gone or now is None else Outcome(Written.DONE, now.cpus)


_HINTS = {
    errno.EINVAL: "none of these processors is online",
    errno.ERANGE: "this host has no such processor",
    errno.ENOSPC: "these processors have no interrupt vector left; give more of them",
    errno.EBUSY: "the interrupt is being moved; try again",
}


def _name(number: int, root: Path) -> str:
    return (files.text(root / f"sys/kernel/irq/{number}/actions") or "").strip()


def _managed(irq: Irq) -> ManagedInterrupt:
    return ManagedInterrupt(
        f"interrupt {irq.number} ({irq.name}): the kernel places it itself",
        hint="as those of devices with a queue for each processor; leave it out",
        errno=errno.EPERM,
    )
