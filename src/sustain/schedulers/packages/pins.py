"""A guest of libvirt's, placed by its pins and put back.

Used by `act` and `undo`. The model: virtual processors, threads for disks, and the rest of QEMU are pinned each for
itself, through libvirt, which would else set its own again some day. What somebody has pinned more narrowly keeps to
that, as threads of other processes do (`per_thread`).
"""

from sustain.errors import HostError
from sustain.host import files, libvirt_pinning
from sustain.host.affinity import Written
from sustain.host.libvirt import Domain
from sustain.host.libvirt_pinning import Part
from sustain.schedulers.journal import Entry, Journal, Value
from sustain.schedulers.packages.came import Back, Came, passes, words
from sustain.schedulers.packages.handles import DomainHandle
from sustain.schedulers.packages.model import Outcome

KIND = "package-pin"

Cpus = frozenset[int]


def place(group: str, life: str, handle: DomainHandle, wanted: Cpus, journal: Journal) -> Came:
    """Raises HostError, when libvirt cannot be asked; JournalError: then nothing was done."""
    domain = Domain(handle.uri, handle.name)
    if domain.running() != handle.running:
        return Came("gone", "the guest has ended, or was started anew")
    return _Placing(group, life, handle, domain, wanted, journal).carry_out(libvirt_pinning.read(domain))


class _Placing:
    def __init__(
        self, group: str, life: str, handle: DomainHandle, domain: Domain, wanted: Cpus, journal: Journal
    ) -> None:
        self._group = group
        self._life = life
        self._handle = handle
        self._domain = domain
        self._wanted = wanted
        self._journal = journal
        self._held = {each.key: each for each in journal.entries() if each.kind == KIND}

    def carry_out(self, now: dict[Part, Cpus]) -> Came:
        prior = {part: self._prior(part, cpus) for part, cpus in now.items()}
        changed = [part for part, cpus in now.items() if not self._ours(part, cpus, prior[part])]
        if changed and len(changed) == sum(self._key(part) in self._held for part in now):
            return Came("changed", "somebody else has pinned all of it since")
        if not any(self._wanted <= cpus for cpus in prior.values()):
            where = files.cpu_list(frozenset().union(*prior.values()))
            return Came("refused", f"somebody else has pinned it to processors {where}")
        to = {
            part: cpus & self._wanted or cpus
            for part, cpus in prior.items()
            if part not in changed and (cpus & self._wanted or cpus) != now[part]
        }
        for part, cpus in to.items():
            self._note(part, prior[part], cpus)
        written, refused = 0, []
        outcome: Outcome = "done"
        for part, cpus in to.items():
            try:
                came = libvirt_pinning.write(self._domain, self._handle.running, part, cpus, now[part])
            except HostError as error:
                refused.append(f"{part.kind} {part.number}: {words(error)}")
                outcome = "again later" if passes(error) and outcome != "refused" else "refused"
            else:
                written += came.written is Written.DONE
        return Came(outcome, self._detail(prior, len(changed), refused), written)

    def _detail(self, prior: dict[Part, Cpus], changed: int, refused: list[str]) -> str:
        stay = sum(not cpus & self._wanted for cpus in prior.values())
        details = [
            f"parts that somebody has pinned elsewhere stay there: {stay}" if stay else "",
            f"parts that somebody else has pinned since are left alone: {changed}" if changed else "",
            f"parts that could not be pinned: {'; '.join(refused)}" if refused else "",
        ]
        return "; ".join(each for each in details if each)

    def _key(self, part: Part) -> str:
        return f"{KIND}:{self._handle.uri}:{self._handle.running}:{part.kind}{part.number}"

    def _prior(self, part: Part, now: Cpus) -> Cpus:
        held = self._held.get(self._key(part))
        return now if held is None else files.cpus(str(held.prior))

    def _ours(self, part: Part, now: Cpus, prior: Cpus) -> bool:
        held = self._held.get(self._key(part))
        return held is None or now == prior or now in _sets(held)

    def _note(self, part: Part, prior: Cpus, cpus: Cpus) -> None:
        target: dict[str, Value] = {
            "group": self._group,
            "life": self._life,
            "uri": self._handle.uri,
            "domain": self._handle.name,
            "running": self._handle.running,
            "part": part.kind,
            "number": part.number,
        }
        self._journal.note(self._key(part), KIND, target, files.cpu_list(prior), files.cpu_list(cpus))


def put_back(entry: Entry) -> Back:
    """One part. Raises HostError."""
    target = entry.target
    domain = Domain(str(target["uri"]), str(target["domain"]))
    running = str(target["running"])
    if domain.running() != running:
        return Back("gone")
    pins = libvirt_pinning.read(domain)
    part = next((each for each in pins if _is(each, entry)), None)
    if part is None:
        return Back("gone")
    now = pins[part]
    prior = files.cpus(str(entry.prior))
    if now == prior:
        return Back("restored")
    if now not in _sets(entry):
        return Back("changed", f"{part.kind} {part.number} was pinned by somebody else since")
    came = libvirt_pinning.write(domain, running, part, prior, now).written
    return Back("gone" if came is Written.GONE else "restored", "", int(came is Written.DONE))


def _is(part: Part, entry: Entry) -> bool:
    return (part.kind, part.number) == (entry.target["part"], entry.target["number"])


def _sets(entry: Entry) -> list[Cpus]:
    return [files.cpus(str(each)) for each in entry.sets]
