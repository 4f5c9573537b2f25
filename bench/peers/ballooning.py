"""Two peers' policies for balloons, from their published formulas, as baselines: oVirt's MOM and Proxmox VE.

Written anew from their documentation, with its default figures; both look every 10 s and know of a guest its
balloon and its free memory only. Neither swaps on the host. A guest that tells nothing is left as it is.

MOM (balloon.rules): while less than 20 % of the host is free, guests shrink to what they use and 20 % · host_free /
20 % of what they have, at 5 % and less to host_free − 5 %, by 5 % at most. Otherwise they grow by 5 %, or at once to
what they use and 20 % of their size. Less than 0.25 % is left. It averages its last samples; that is left out here, so
that it sees at once what is, to its advantage.

Proxmox (PVE::AutoBalloon): works towards 80 % of the host in use, by shares above the minimum, 100 MiB for each guest
and pass. Guests with more than a quarter of their minimum free shrink first, the others grow first, and only when
these cannot move all do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sustain.schedulers.guest_memory.model import Action, Balloon, Effect, Guest, Observation

MIN_SHARE = 0.25  # of its size: the operator's minimum of a guest, for both
_MIB = 1 << 20


def _told(seen: Observation, min_share: float) -> list[tuple[Guest, float, float, float, float]]:
    """(guest, balloon, free, minimum, size) of those that tell."""
    found = []
    for guest in seen.guests:
        figures = guest.figures
        if figures.balloon_bytes is None or figures.free_bytes is None or figures.size_bytes is None:
            continue
        size = figures.size_bytes
        found.append((guest, figures.balloon_bytes, figures.free_bytes, min_share * size, size))
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
    min_share: float = MIN_SHARE

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
        for guest, now, free, least, size in _told(seen, self.min_share):
            used = now - free
            if shrinks:
                target = max(min(max(least, used + wanted * now), now), now * (1 - self.step))
            else:
                target = min(size, max(now * (1 + self.step), used + wanted * size))
            if abs(target - now) >= self.least * now:
                made.append(_set(guest, now, target))
        return made


@dataclass
class Proxmox:
    """Proxmox VE's automatic ballooning. All guests have the same shares."""

    used_goal: float = 0.80
    most: float = 100.0 * _MIB
    least: float = 10.0 * _MIB
    min_share: float = MIN_SHARE

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]:
        host, guests = seen.host, _told(seen, self.min_share)
        if host.available_bytes is None or host.total_bytes is None or not guests:
            return ()
        goal = self.used_goal * host.total_bytes - (host.total_bytes - host.available_bytes)
        if abs(goal) <= self.least:
            return ()
        roomy = [each for each in guests if each[2] > 0.25 * each[3] and each[1] >= each[3]]
        pressed = [each for each in guests if each not in roomy]
        made = self._moved(pressed if goal > 0 else roomy, goal)
        return made or self._moved(guests, goal)

    def _moved(self, guests: list[tuple[Guest, float, float, float, float]], goal: float) -> list[Balloon]:
        """What is above the minimum of all, and `goal` more, by shares; as long as anything moves."""
        to = {guest.name: now for guest, now, *_ in guests}
        rest, resting = goal, set[str]()
        while abs(rest) >= _MIB:
            moving = [each for each in guests if each[0].name not in resting]
            if not moving:
                break
            pool = sum(to[guest.name] - least for guest, _, _, least, _ in moving) + rest
            changed = progress = 0.0
            for guest, now, _, least, size in moving:
                wanted = min(max(least + pool / len(moving), least), size)
                if wanted > now and goal > 0:
                    found = min(wanted, now + self.most)
                elif wanted < now:
                    found = max(wanted, now - self.most)
                else:
                    resting.add(guest.name)
                    continue
                changed += found - to[guest.name]
                progress += abs(found - to[guest.name])
                resting |= {guest.name} if found == to[guest.name] else set()
                to[guest.name] = found
            if progress < _MIB:
                break
            rest -= changed
        return [_set(guest, now, to[guest.name]) for guest, now, *_ in guests if to[guest.name] != now]
