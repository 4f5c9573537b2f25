"""Where the threads of a libvirt guest may run, set through libvirt, so that it knows. Used by the package scheduler.

https://libvirt.org/html/libvirt-libvirt-domain.html: virDomainPinVcpu, PinEmulator, PinIOThread, and what they ask
with. Only the running domain is changed, never its definition. A guest that nobody has pinned may run everywhere;
libvirt has no word for "no longer pinned", so that is put back as a pin on all processors, which is the same in effect.

Past libvirt, by affinity or cpuset, it works too, until libvirt does something with the guest and sets its own again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sustain.errors import HostError
from sustain.host import files
from sustain.host.affinity import Outcome, Written
from sustain.host.libvirt import Domain


class Part(NamedTuple):
    """What is pinned as one: a virtual processor, a thread for disks, or all the rest of QEMU's threads."""

    kind: Literal["vcpu", "emulator", "iothread"]
    number: int = 0


@dataclass(frozen=True, slots=True)
class Vcpu:
    """One virtual processor that is online."""

    number: int
    running: bool
    used_ns: int
    cpu: int | None  # the processor that it ran on last; None: libvirt does not know


def vcpus(domain: Domain) -> tuple[Vcpu, ...]:
    """Of the running domain. Raises HostError: also when it does not run."""
    found, _ = domain.call(lambda it: it.vcpus())
    return tuple(
        Vcpu(number, state == 1, int(used_ns), cpu if cpu >= 0 else None)
        for number, state, used_ns, cpu in found
    )


def read(domain: Domain) -> dict[Part, frozenset[int]]:
    """The processors that each part of the running domain may use. Raises HostError: also when it does not run."""
    return domain.call(_pins)


def write(
    domain: Domain, life: str, part: Part, cpus: Iterable[int], expected: frozenset[int] | None = None
) -> Outcome:
    """Have a part of the domain in that life (`Domain.running`) run on these only; with `expected` not if it may now
    run on others than those. Raises HostError."""
    wanted = frozenset(cpus)
    if not wanted:
        raise HostError(f"{domain.uri} {domain.name}: no processor to run on", hint="give at least one")

    def change(it: Any) -> Outcome:
        if _life(it) != life:
            return Outcome(Written.GONE, None)
        now = _pins(it).get(part)
        if now is None:
            return Outcome(Written.GONE, None)
        if expected is not None and now != expected:
            return Outcome(Written.CHANGED, now)
        if now == wanted:
            return Outcome(Written.SAME, now)
        _pin(it, part, wanted)
        now = _pins(it).get(part)
        return Outcome(Written.GONE if now is None else Written.DONE, now)

    try:
        return domain.call(change)
    except HostError as error:
        if domain.running() != life:
            return Outcome(Written.GONE, None)
        text = f"{error} (pinning to {files.cpu_list(wanted)})"
        raise HostError(text, hint=error.hint, errno=error.errno) from error


def _life(it: Any) -> str | None:
    """As `Domain.running`; a domain that is not running has the number −1."""
    number = it.ID()
    return f"{it.UUIDString()}:{number}" if number >= 0 else None


def _pins(it: Any) -> dict[Part, frozenset[int]]:
    live = _live()
    masks: dict[Part, Any] = {Part("emulator"): it.emulatorPinInfo(live)}
    masks |= {Part("vcpu", number): mask for number, mask in enumerate(it.vcpuPinInfo(live))}
    masks |= {Part("iothread", number): mask for number, mask in _iothreads(it, live)}
    return _sets(masks)


def _iothreads(it: Any, live: int) -> list[tuple[int, Any]]:
    import libvirt

    try:
        return list(it.ioThreadInfo(live))
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_CONFIG_UNSUPPORTED):
            return []  # a hypervisor that has no such threads
        raise


def _sets(masks: Mapping[Part, Any]) -> dict[Part, frozenset[int]]:
    return {part: frozenset(cpu for cpu, may in enumerate(mask) if may) for part, mask in masks.items()}


def _pin(it: Any, part: Part, cpus: frozenset[int]) -> None:
    known = it.connect().getCPUMap(0)[0]
    mask = tuple(cpu in cpus for cpu in range(max(known, max(cpus) + 1)))
    if part.kind == "vcpu":
        it.pinVcpu(part.number, mask)  # of the running domain; the call with flags is not every driver's
    elif part.kind == "emulator":
        it.pinEmulator(mask, _live())
    else:
        it.pinIOThread(part.number, mask, _live())


def _live() -> int:
    import libvirt

    return int(libvirt.VIR_DOMAIN_AFFECT_LIVE)
