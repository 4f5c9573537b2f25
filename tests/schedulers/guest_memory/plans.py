"""Observations for tests of decisions."""

from typing import Any

from sustain.schedulers.guest_memory.model import Figures, Guest, Host, Observation

MIB = float(1 << 20)
GIB = 1024 * MIB
NOW_S = 1000.0


def figures(**changes: Any) -> Figures:
    """4 GiB with an agent: 1 GiB free, 1 GiB of cold buffers, 512 MiB of cold anonymous memory, the rest in use."""
    usual: dict[str, Any] = {
        "size_bytes": 4 * GIB,
        "balloon_bytes": 4 * GIB,
        "resident_bytes": 4 * GIB,
        "host_swapped_bytes": 0.0,
        "free_bytes": GIB,
        "inactive_buffer_bytes": GIB,
        "active_buffer_bytes": 512 * MIB,
        "inactive_anonymous_bytes": 512 * MIB,
        "active_anonymous_bytes": 896 * MIB,
        "unreclaimable_bytes": 128 * MIB,
        "dirty_bytes": 0.0,
        "swap_free_bytes": 0.0,
        "total_bytes": 4 * GIB,
        "classes_at_s": NOW_S,
        "stall_us": 0.0,
        "swap_in_bytes": 0.0,
        "refault_bytes": 0.0,
        "host_swap_in_bytes": 0.0,
    }
    return Figures(**usual | changes)


def guest(name: str = "a", **changes: Any) -> Guest:
    """Its `can`, `source`, `kind`, `life`, `problems`; what else is given are figures."""
    own = {key: changes.pop(key) for key in ("can", "source", "kind", "life", "problems") if key in changes}
    usual: dict[str, Any] = {
        "kind": "qemu",
        "life": "1:1",
        "source": "guest-agent",
        "can": ("balloon", "pageout"),
    }
    return Guest(name=name, figures=figures(**changes), **usual | own)


def observation(
    *guests: Guest, available: float | None = 100 * MIB, at_s: float = NOW_S, **host: Any
) -> Observation:
    """A host of 16 GiB, whose minFree is about 655 MiB: soft below 419, hard below 210, low below 105 MiB."""
    usual: dict[str, Any] = {
        "total_bytes": 16 * GIB,
        "available_bytes": available,
        "free_bytes": available,
        "swap_total_bytes": 8 * GIB,
        "swap_free_bytes": 8 * GIB,
    }
    return Observation(at_s=at_s, host=Host(**usual | host), guests=guests)
