"""One plan for 10,000 guests on one core: observation, state and policy in; every figure, action and reason out.

Guests are made up: half of them have memory to give, the host is short, and every tenth guest was started anew since
the plan before. There is no peer that plans for so many; 1,000 and 100 guests stand beside it. Sensing is not in it.
"""

import random
import time

from bench.harness import Answer, interleave, medians
from sustain.schedulers.guest_memory.decide import decide
from sustain.schedulers.guest_memory.model import Figures, Guest, Host, Mechanism, Observation, Policy
from sustain.schedulers.guest_memory.plan import State

QUESTION = "one plan for the memory of 10,000 guests"
_GIB = float(1 << 30)
_REACH_MS = 50.0


def made_up(count: int, at_s: float, seed: int) -> Observation:
    """`count` guests of 4 GiB with an agent, on a host that is in the soft state."""
    rng = random.Random(seed)
    guests = []
    for number in range(count):
        busy = number % 2 == 0
        figures = Figures(
            size_bytes=4 * _GIB,
            balloon_bytes=rng.uniform(3, 4) * _GIB,
            resident_bytes=3 * _GIB,
            host_swapped_bytes=0.0,
            free_bytes=0.05 * _GIB if busy else rng.uniform(0.2, 1) * _GIB,
            inactive_buffer_bytes=0.1 * _GIB,
            active_buffer_bytes=0.8 * _GIB if busy else 0.2 * _GIB,
            inactive_anonymous_bytes=rng.uniform(0, 0.8) * _GIB,
            active_anonymous_bytes=1.2 * _GIB if busy else 0.4 * _GIB,
            unreclaimable_bytes=0.1 * _GIB,
            dirty_bytes=0.0,
            swap_free_bytes=0.0,
            total_bytes=4 * _GIB,
            classes_at_s=at_s,
            stall_us=at_s * 1e6 * (0.05 if number % 50 == 0 else 0.0),
            swap_in_bytes=0.0,
            refault_bytes=0.0,
            host_swap_in_bytes=0.0,
        )
        life = f"{number}:{int(at_s) if number % 10 == 0 else 1}"
        can: tuple[Mechanism, ...] = ("balloon", "pageout")
        guests.append(
            Guest(name=f"g{number}", kind="qemu", life=life, source="guest-agent", figures=figures, can=can)
        )
    total = 3.2 * _GIB * count
    host = Host(
        total_bytes=total, available_bytes=0.05 * total, swap_total_bytes=total, swap_free_bytes=total
    )
    return Observation(at_s=at_s, host=host, guests=tuple(guests))


def answer(quick: bool = False) -> Answer:
    """Milliseconds of one plan, the second of two, with the state of the first."""
    rounds = 3 if quick else 15
    count = 1000 if quick else 10_000
    sizes = (count, 1000, 100)
    policies = {size: Policy(goal_free_bytes=0.07 * 3.2 * _GIB * size) for size in sizes}
    seen = {size: (made_up(size, 100.0, 1), made_up(size, 110.0, 2)) for size in sizes}
    states: dict[int, State] = {
        size: decide(seen[size][0], None, policies[size], 100.0).state for size in sizes
    }

    def measure(size: int) -> float:
        begun = time.perf_counter()
        decide(seen[size][1], states[size], policies[size], 110.0)
        return (time.perf_counter() - begun) * 1e3

    figures = medians(interleave(rounds, {str(size): lambda size=size: measure(size) for size in sizes}))
    plan = decide(seen[count][1], states[count], policies[count], 110.0).plan
    found = Answer(
        question=QUESTION,
        unit="ms",
        ours=figures[str(count)],
        peers={},
        limit={},
        runs=rounds,
        quick=quick,
        details={
            "by number of guests": {f"{size} guests": {"ms": figures[str(size)]} for size in sizes},
            "the plan": {"state of the host": plan.host.state, "actions": len(plan.actions)},
        },
    )
    found.ask(f"10,000 guests within {_REACH_MS:g} ms", found.ours, lambda value: value <= _REACH_MS)
    return found
