"""Two peers' policies for balloons, from their published formulas, as baselines: oVirt's MOM and Proxmox VE.

Written anew from their documentation, with its default figures; both look every 10 s and know of a guest its
balloon and its free memory only. Neither swaps on the host. A guest that tells nothing is left as it is.

MOM (balloon.rules): while less than 20 % of the host is free, guests shrink to what they use and 20 % · host_free /
20 % of what they have, at 5 % and less to host_free − 5 %; otherwise they grow. Steps of 5 % at most, less than
0.25 % is left. Proxmox (PVE::AutoBalloon): works towards 80 % of the host in use, by shares, 100 MiB for each guest
and pass; guests with more than a quarter of their minimum free go first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sustain.schedulers.guest_memory.model import Action, Balloon, Effect, Guest, Observation

_MIN_SHARE = 0.25  # of its size: the operator's minimum of a guest, for both
_MIB = 1 << 20


def _told(seen: Observation) -> list[tuple[Guest, float, float, float, float]]:
    """(guest, balloon, free, minimum, size) of those that tell."""
    found = []
    for guest in seen.guests:
        figures = guest.figures
        if figures.balloon_bytes is None or figures.free_bytes is None or figures.size_bytes is None:
            continue
        size = figures.size_bytes
        found.append((guest, figures.balloon_bytes, figures.free_bytes, _MIN_SHARE * size, size))
    return found


def _set(guest: Guest, now: float, to: float) -> Balloon:
    return Balloon(guest=guest.name, life=guest.life, from_bytes=now, to_bytes=to, reason="a peer's formula")


@dataclass
class Mom:
    """oVirt Memory Overcommitment Manager."""

    threshold: float = 0.20
    critical: float = 0.05
    step: float = 0.05
    least: float = 0.0025

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]:
        host = seen.host
        if host.available_bytes is None or host.total_bytes is None:
            return ()
        free_share = host.available_bytes / host.total_bytes
        shrinks = free_share < self.threshold
        wanted = self.threshold
        if shrinks:
            wanted = self.threshold * (free_share / self.threshold)
            if free_share <= self.critical:
                wanted = free_share - self.critical
        made = []
        for guest, now, free, least, size in _told(seen):
            target = max(least, now - free + wanted * now)
            down, up = max(min(target, now), now * (1 - self.step)), min(size, now * (1 + self.step))
            target = down if shrinks else up
            if abs(target - now) >= self.least * now:
                made.append(_set(guest, now, target))
        return made


@dataclass
class Proxmox:
    """Proxmox VE's automatic ballooning."""

    used_goal: float = 0.80
    most: float = 100.0 * _MIB
    least: float = 10.0 * _MIB

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]:
        host, guests = seen.host, _told(seen)
        if host.available_bytes is None or host.total_bytes is None or not guests:
            return ()
        goal = self.used_goal * host.total_bytes - (host.total_bytes - host.available_bytes)
        if abs(goal) <= self.least:
            return ()
        pool = sum(now - least for _, now, _, least, _ in guests) + goal
        share = 1 / len(guests)  # all have the same shares
        moves = []
        for guest, now, free, least, size in guests:
            wanted = min(max(least + pool * share, least), size)
            moves.append((guest, now, free > 0.25 * least, wanted - now))
        if goal > 0:
            return self._moved([(guest, now, move) for guest, now, _, move in moves if move > 0], goal)
        shrinking = [(guest, now, move) for guest, now, roomy, move in moves if move < 0 and roomy]
        if not shrinking:
            shrinking = [(guest, now, move) for guest, now, _, move in moves if move < 0]
        return self._moved(shrinking, goal)

    def _moved(self, moves: list[tuple[Guest, float, float]], goal: float) -> list[Balloon]:
        made, rest = [], abs(goal)
        for guest, now, move in moves:
            size = min(abs(move), self.most, rest)
            if size < _MIB:
                continue
            rest -= size
            made.append(_set(guest, now, now + size if move > 0 else now - size))
        return made
