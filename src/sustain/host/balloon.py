"""The virtio balloon of a QEMU guest, over QMP: how much it leaves the guest, and what the guest's driver says of it.

Documentation: QEMU's docs/interop/virtio-balloon-stats.rst. Statistics come only while a period is set, and stay what
they were when the guest stops, so they carry the time of the last one (whole seconds of the host's wall clock). A
value that the driver does not send is -1, which some versions show as 2^64 - 1; tags that are not known are left out.
The device answers also when no driver runs in the guest: that its target is reached, or statistics come, tells.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from sustain.errors import HostError
from sustain.host.qmp import Qmp, QmpRefused

_PLACES = ("/machine/peripheral", "/machine/peripheral-anon")
_SIZE_LIMIT_BYTES = 1 << 52  # of a processor's addresses
_UNSET = (-1, (1 << 64) - 1)


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver said at `updated_s` (0: never). Bytes since the guest's boot, or now; None: it did not say."""

    updated_s: int
    free_bytes: int | None = None
    total_bytes: int | None = None
    available_bytes: int | None = None
    disk_caches_bytes: int | None = None  # page cache, shared memory and all
    swap_in_bytes: int | None = None
    swap_out_bytes: int | None = None
    major_faults: int | None = None


def find(qmp: Qmp) -> str | None:
    """The device's place in the object model; None: this guest has no balloon."""
    for place in _PLACES:
        for each in qmp.ask("qom-list", path=place):
            if each["type"].startswith("child<virtio-balloon"):
                return f"{place}/{each['name']}"
    return None


def actual(qmp: Qmp) -> int | None:
    """Bytes that the balloon leaves the guest now; None: there is no balloon."""
    try:
        return int(qmp.ask("query-balloon")["actual"])
    except QmpRefused as error:
        if error.kind in ("DeviceNotActive", "KVMMissingCap"):
            return None
        raise


def set_target(qmp: Qmp, to_bytes: int) -> None:
    """Ask the guest's driver to leave it so much. QEMU reckons in pages of 4 KiB."""
    qmp.ask("balloon", value=to_bytes)


def size(qmp: Qmp) -> int:
    """Bytes of RAM that the guest was given, hot-plugged ones too. Raises HostError for what is no size: any user may
    start something that looks like QEMU."""
    answer = qmp.ask("query-memory-size-summary")
    try:
        found = int(answer["base-memory"]) + int(answer.get("plugged-memory", 0))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        found = -1
    if not 0 <= found < _SIZE_LIMIT_BYTES:
        raise HostError(f"{str(answer)[:200]} is no size of memory", hint="is that QEMU?")
    return found


def period(qmp: Qmp, device: str) -> int:
    """Seconds between two statistics; 0: none are asked for."""
    return int(qmp.ask("qom-get", path=device, property="guest-stats-polling-interval"))


def set_period(qmp: Qmp, device: str, period_s: int) -> None:
    qmp.ask("qom-set", path=device, property="guest-stats-polling-interval", value=period_s)


def deflates(qmp: Qmp, device: str) -> bool | None:
    """Whether the guest's driver may take back what it needs when the guest runs out of memory, and nothing else is
    left (`deflate-on-oom`); None: this QEMU does not say."""
    try:
        found = qmp.ask("qom-get", path=device, property="deflate-on-oom")
    except QmpRefused:
        return None
    return found if isinstance(found, bool) else None


def statistics(qmp: Qmp, device: str) -> Statistics:
    """The last ones that came."""
    answer = qmp.ask("qom-get", path=device, property="guest-stats")
    try:
        return parse(answer["stats"], int(answer["last-update"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise HostError(f"{device}: {str(answer)[:200]} are not statistics", hint="") from None


def parse(stats: Mapping[str, Any], updated_s: int) -> Statistics:
    """QEMU's words for what the driver sent."""

    def value(tag: str) -> int | None:
        number = stats.get(tag, -1)
        return number if isinstance(number, int) and number not in _UNSET and number >= 0 else None

    return Statistics(
        updated_s=updated_s,
        free_bytes=value("stat-free-memory"),
        total_bytes=value("stat-total-memory"),
        available_bytes=value("stat-available-memory"),
        disk_caches_bytes=value("stat-disk-caches"),
        swap_in_bytes=value("stat-swap-in"),
        swap_out_bytes=value("stat-swap-out"),
        major_faults=value("stat-major-faults"),
    )
