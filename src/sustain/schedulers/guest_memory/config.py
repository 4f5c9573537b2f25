"""How each guest is reached, as the operator says or as its command line shows. Pure.

Used by `sense`, and by the agent's configuration file, of which it is a part. A guest that is named nowhere is found by
`discover`; what is configured under the same process, socket, domain or cgroup is not found a second time.
"""

import msgspec

from sustain.errors import ConfigError
from sustain.schedulers.guest_memory.model import Kind


class GuestConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ways to one guest. What is not given is not used, and the guest's problems say what is unknown for it."""

    name: str
    kind: Kind = "qemu"
    qmp: str | None = None  # qemu: its QMP socket, not one that libvirt holds
    guest_agent: str | None = None  # qemu: the socket of the guest agent's port; libvirt passes its own on
    domain: str | None = None  # libvirt: name or UUID; None: the guest's name
    uri: str = "qemu:///system"  # libvirt
    cgroup: str | None = None  # its directory; for a virtual machine one that holds nothing but its process
    pid: int | None = None  # qemu: asked of the QMP socket when None


class GuestsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All guests of a host, and how they are asked."""

    guests: tuple[GuestConfig, ...] = ()
    discover: bool = False  # QEMU processes of this host with a QMP socket in their command lines
    timeout_s: float = 2.0  # of one answer; a guest that takes longer delays nobody
    statistics_period_s: int = 5  # of the balloon's statistics, where nobody else has set one


def check(config: GuestsConfig) -> None:
    """Raises ConfigError for what cannot be meant."""
    names: set[str] = set()
    for guest in config.guests:
        if not guest.name or guest.name in names:
            raise ConfigError(
                f"guest {guest.name!r}: the name is empty or there twice", hint="names are unique"
            )
        names.add(guest.name)
        if guest.kind == "cgroup" and guest.cgroup is None:
            raise ConfigError(f"guest {guest.name!r}: a cgroup without `cgroup`", hint="cgroup = DIRECTORY")
        if guest.kind == "qemu" and guest.qmp is None and guest.pid is None:
            raise ConfigError(
                f"guest {guest.name!r}: neither `qmp` nor `pid`",
                hint="start QEMU with -qmp unix:PATH,server=on,wait=off and give PATH",
            )
    if config.timeout_s <= 0 or config.statistics_period_s < 1:
        raise ConfigError("guests: timeout_s and statistics_period_s must be positive", hint="")
