"""What there is to watch in an observation of guests, as figures. Pure.

Used by `scheduler`, for the agent's metrics. An unknown is not there, rather than zero.
"""

from collections.abc import Iterator

from sustain.schedulers.guest_memory.model import Figures, Host, Observation
from sustain.schedulers.measure import Measure

_GUEST = {
    "size_bytes": "the most that the guest can have",
    "balloon_bytes": "what its balloon leaves the guest",
    "resident_bytes": "of the guest's memory, in the host's",
    "host_swapped_bytes": "of the guest's memory, in the host's swap",
    "huge_bytes": "of the resident memory, mapped large",
    "free_bytes": "free in the guest",
    "inactive_buffer_bytes": "page cache of the guest, not used lately",
    "active_buffer_bytes": "page cache of the guest, in use",
    "inactive_anonymous_bytes": "anonymous memory of the guest, not used lately",
    "active_anonymous_bytes": "anonymous memory of the guest, in use",
    "unreclaimable_bytes": "of the guest's kernel, and locked",
    "swapped_bytes": "in the guest's own swap",
}
_HOST = {
    "total_bytes": "memory of the host",
    "free_bytes": "free memory of the host",
    "available_bytes": "memory that the host could give without swapping",
    "swap_total_bytes": "swap of the host",
    "swap_free_bytes": "free swap of the host",
}


def measures(seen: Observation) -> Iterator[Measure]:
    """Of the host and of each guest, with the age of its page classes."""
    yield from _of(seen.host, _HOST, "sustain_host_memory_", ())
    for guest in seen.guests:
        labels = (("guest", guest.name),)
        yield from _of(guest.figures, _GUEST, "sustain_guest_memory_", labels)
        yield Measure(
            "sustain_guest_problems",
            "things unknown or impossible for the guest",
            len(guest.problems),
            labels,
        )
        at_s = guest.figures.classes_at_s
        if at_s is not None:
            yield Measure(
                "sustain_guest_classes_age_seconds",
                "age of what the guest said of its pages, by where it is from",
                max(0.0, seen.at_s - at_s),
                (*labels, ("source", guest.source)),
            )


def _of(
    values: Figures | Host, fields: dict[str, str], prefix: str, labels: tuple[tuple[str, str], ...]
) -> Iterator[Measure]:
    for name, said in fields.items():
        value = getattr(values, name)
        if value is not None:
            yield Measure(prefix + name, said, value, labels)
