"""What there is to watch in an observation of guests and in a plan, as figures. Pure.

Used by `scheduler`, for the agent's metrics. An unknown is not there, rather than zero.
"""

import math
from collections.abc import Iterator

from sustain.schedulers.guest_memory.model import Figures, Host, Observation
from sustain.schedulers.guest_memory.plan import Plan
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


_PLAN = {
    "working_set_bytes": "what the guest needs, by estimate",
    "entitlement_bytes": "what the guest would get if all wanted all they may have",
    "target_bytes": "of the host's memory, that the guest is to have",
}


def measures(seen: Observation, plan: Plan) -> Iterator[Measure]:
    """Of the host and of each guest, with the age of its page classes."""
    yield from _of(seen.host, _HOST, "sustain_host_memory_", ())
    for name, said in _PLAN.items():
        for who, value in zip(plan.names, plan.columns[name].tolist(), strict=True):
            if not math.isnan(value):
                yield Measure(f"sustain_guest_memory_{name}", said, value, (("guest", who),))
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
