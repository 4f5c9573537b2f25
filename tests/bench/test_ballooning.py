"""The peers' formulas, one step at a time."""

from typing import Any

import pytest
from bench.peers.ballooning import Mom, Proxmox

from sustain.schedulers.guest_memory.model import Balloon
from tests.schedulers.guest_memory.plans import GIB, MIB, guest, observation


def moved(peer: Any, *guests: Any, available: float) -> dict[str, float]:
    """MiB by guest; the host has 16 GiB."""
    made = peer.plan(observation(*guests, available=available * GIB), ())
    return {each.guest: (each.to_bytes - each.from_bytes) / MIB for each in made if isinstance(each, Balloon)}


def of(name: str, now: float, free: float) -> Any:
    return guest(name, balloon_bytes=now * GIB, free_bytes=free * GIB)


def test_mom_shrinks_by_a_twentieth_at_most_and_keeps_what_is_used() -> None:
    assert moved(Mom(), of("a", 4, 3), available=1.6) == {"a": pytest.approx(-0.05 * 4096)}
    assert moved(Mom(), of("a", 4, 0.45), available=1.6) == {"a": pytest.approx(-0.05 * 1024)}
    assert moved(Mom(), of("a", 4, 0.2), available=1.6) == {}


def test_mom_takes_used_memory_when_it_is_critical() -> None:
    assert moved(Mom(), of("a", 4, 0.0), available=0.16) == {"a": pytest.approx(-0.04 * 4096)}


def test_mom_grows_slowly_or_at_once_to_a_fifth_free() -> None:
    assert moved(Mom(), of("a", 2, 1.5), available=8) == {"a": pytest.approx(0.05 * 2048)}
    assert moved(Mom(), of("a", 2, 0.0), available=8) == {"a": pytest.approx(0.2 * 4096)}
    assert moved(Mom(), of("a", 4, 0.0), available=8) == {}


def test_proxmox_takes_from_who_has_free_memory_first() -> None:
    assert moved(Proxmox(), of("a", 4, 2), of("b", 4, 0.1), available=1) == {"a": -100}
    assert moved(Proxmox(), of("a", 4, 0.1), of("b", 4, 0.1), available=1) == {"a": -100, "b": -100}


def test_proxmox_gives_to_who_lacks_memory_first() -> None:
    assert moved(Proxmox(), of("a", 2, 1), of("b", 2, 0.1), available=8) == {"b": 100}


def test_proxmox_works_by_shares_and_stops_at_the_goal() -> None:
    found = moved(Proxmox(), of("a", 4, 2), of("b", 2, 1), available=3.2 - 0.05)
    assert sum(found.values()) == pytest.approx(-0.05 * 1024, abs=1)
    assert moved(Proxmox(), of("a", 4, 2), available=3.2 - 0.005) == {}
