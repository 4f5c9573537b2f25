"""Device interrupts go where groups run, away from packages that are to sleep, and come back.

Used by `act` and `undo`. The model: of each the journal holds where it could come before. It is moved by that, not by
where it can come now, so that who is moved twice is not spread; one that could never come to those processors stays.
Many drivers let the kernel place their interrupts, one for each processor: these stay, and do not come where nothing
that they are for runs.
"""

from pathlib import Path

from sustain.errors import HostError
from sustain.host import files, irqs
from sustain.host.affinity import Written
from sustain.host.irqs import Irq, ManagedInterrupt
from sustain.schedulers.journal import Entry, Journal, Value
from sustain.schedulers.packages.came import Back, Came, words

KIND = "package-interrupt"
_NAMED = 3  # of those that could not be moved

Cpus = frozenset[int]


def move(away: Cpus, cpus: Cpus, journal: Journal, root: Path = Path("/")) -> Came:
    """Let all that may come to `away` come to `cpus`, and all others where they could before. Raises HostError,
    JournalError."""
    moving = _Moving(away, cpus, journal, root)
    for irq in irqs.read(root):
        moving.one(irq)
    return moving.end()


class _Moving:
    def __init__(self, away: Cpus, cpus: Cpus, journal: Journal, root: Path) -> None:
        self._away = away
        self._cpus = cpus
        self._journal = journal
        self._root = root
        self._held = {each.key: each for each in journal.entries() if each.kind == KIND}
        self._written = 0
        self._managed = 0
        self._others = 0
        self._refused: list[str] = []

    def one(self, irq: Irq) -> None:
        held = self._held.get(_key(irq))
        if held is not None and held.target["name"] != irq.name:
            held = None  # another device has its number
        prior = irq.cpus if held is None else files.cpus(str(held.prior))
        if not irq.name or (held is None and not prior & self._away):
            return
        if irq.managed:
            self._managed += 1
            return
        if held is not None and irq.cpus != prior and irq.cpus not in _sets(held):
            self._others += 1
            return
        wanted = self._wanted(prior)
        there = wanted == irq.cpus or self._write(irq, prior, wanted, first=held is None)
        if there and wanted == prior and held is not None:
            self._journal.forget(held.key)

    def _wanted(self, prior: Cpus) -> Cpus:
        return (prior - self._away) & self._cpus or self._cpus if prior & self._away else prior

    def _write(self, irq: Irq, prior: Cpus, wanted: Cpus, *, first: bool) -> bool:
        """Whether there is nothing left to do; else what it was is still needed."""
        target: dict[str, Value] = {"irq": irq.number, "name": irq.name}
        self._journal.note(_key(irq), KIND, target, files.cpu_list(prior), files.cpu_list(wanted))
        try:
            came = irqs.write(irq, wanted, irq.cpus, self._root).written
        except HostError as error:
            if isinstance(error, ManagedInterrupt):
                self._managed += 1
            else:
                self._refused.append(words(error))
            if first:
                self._journal.forget(_key(irq))
            return False
        self._written += came is Written.DONE
        return came is not Written.CHANGED

    def end(self) -> Came:
        details = []
        if self._managed:
            details.append(f"interrupts that the kernel places itself stay: {self._managed}")
        if self._others:
            details.append(f"interrupts that somebody else has set since are left alone: {self._others}")
        if self._refused:
            which = "; ".join(self._refused[:_NAMED])
            details.append(f"interrupts that could not be moved: {len(self._refused)}: {which}")
        refused = bool(self._refused) and not self._written
        return Came("refused" if refused else "done", "; ".join(details), self._written)


def put_back(entry: Entry, root: Path = Path("/")) -> Back:
    """One interrupt. Raises HostError."""
    irq = irqs.one(int(entry.target["irq"]), root)
    if irq is None or irq.name != entry.target["name"]:
        return Back("gone")
    prior = files.cpus(str(entry.prior))
    if irq.cpus == prior:
        return Back("restored")
    if irq.cpus not in _sets(entry):
        return Back("changed", f"interrupt {irq.number} was set by somebody else since")
    came = irqs.write(irq, prior, irq.cpus, root).written
    return Back("gone" if came is Written.GONE else "restored", "", int(came is Written.DONE))


def _sets(entry: Entry) -> list[Cpus]:
    return [files.cpus(str(each)) for each in entry.sets]


def _key(irq: Irq) -> str:
    return f"{KIND}:{irq.number}"
