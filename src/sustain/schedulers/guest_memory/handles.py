"""What can be done to one guest, whatever it is: the ways that `sense` reads by and `act` acts by.

A handle is the guest's place, not its life: QEMU may be started again behind it, and then `life` is another. Each call
takes at most the configured time and raises HostError for what the guest or the host refuses; calls of several threads
to one handle are answered one after the other. A connection lasts for one call: QMP serves one client at a time, and
an operator's tool must get in between.
"""

from typing import Protocol

from sustain.host.processes import Identity
from sustain.schedulers.guest_memory.model import Kind


class GuestHandle(Protocol):
    """A guest, by its name."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    def life(self) -> str | None:
        """What tells this start of it from the one before; None: it is gone."""

    def process(self) -> Identity | None:
        """The process whose memory the guest's is; None: there is none (a cgroup), or it is gone."""

    def cgroup(self) -> str | None:
        """The directory of the cgroup by which its memory can be reclaimed; None: none was given."""

    def balloon(self) -> int | None:
        """Bytes that the balloon leaves the guest now; None: it has no balloon."""

    def set_balloon(self, to_bytes: int) -> None:
        """Ask for it, and return; `balloon` tells how far it has come."""

    def resident(self) -> int | None:
        """Bytes of the guest's memory in the host's; None: unknown."""
