"""Simulated hosts with simulated guests, for tests and benchmarks: each call makes them anew."""

import math
from collections.abc import Callable, Sequence

from sim.guest_memory.guest import MIB, Load, ModelGuest
from sim.guest_memory.host import ModelHost, Timeline

GIB = 1024 * MIB
Made = tuple[ModelHost, Timeline]


def mixed(total: float = 32 * GIB) -> Made:
    """Twelve guests of 4 GiB: full of buffers, of cold anonymous memory, busy in turns, and mostly idle. Each has a
    gibibyte of swap."""
    guests: list[ModelGuest] = []
    loads: dict[str, Callable[[float], Load]] = {}
    for number in range(3):
        phase = number * 300.0
        made: dict[str, Callable[[float], Load]] = {
            f"cache{number}": lambda _: Load(
                hot_anonymous=300 * MIB, hot_buffer=600 * MIB, stream_per_s=15 * MIB
            ),
            f"cold{number}": lambda _: Load(hot_anonymous=400 * MIB, cold_anonymous=2.2 * GIB),
            f"busy{number}": lambda s, p=phase: Load(  # type: ignore[misc]
                hot_anonymous=2.8 * GIB if (s + p) % 1800 >= 900 else 1 * GIB, hot_buffer=300 * MIB
            ),
            f"idle{number}": lambda s, p=phase: Load(  # type: ignore[misc]
                hot_anonymous=2.5 * GIB if (s + p) % 3600 < 120 else 200 * MIB
            ),
        }
        loads |= made
        guests += [ModelGuest(name, 4 * GIB, swap=GIB) for name in made]
    return ModelHost(total=total, guests=guests, others=GIB, swap=8 * GIB), loads


def idle_tax() -> Made:
    """ESX's experiment, sixteen times as large: two guests of 4 GiB with equal shares on a host with room for about
    5.6; one goes idle and keeps what it has, then the other gets busy."""
    guests = [ModelGuest(name, 4 * GIB, kernel=128 * MIB) for name in ("idle", "busy")]
    idle = Load(hot_anonymous=200 * MIB, cold_anonymous=3.2 * GIB)
    loads: dict[str, Callable[[float], Load]] = {
        "idle": lambda s: Load(hot_anonymous=3.4 * GIB) if s < 300 else idle,
        "busy": lambda s: Load(hot_anonymous=200 * MIB, hot_buffer=0.6 * GIB if s < 900 else 3.3 * GIB),
    }
    return ModelHost(total=6.25 * GIB, guests=guests, others=0.3 * GIB, swap=4 * GIB), loads


def stepped_use_bytes(second: float) -> float:
    """Of ESX's experiment on tracking: 50 to 250 MB in steps of some minutes."""
    steps = (50, 150, 250, 200, 100, 50, 250, 150)
    return steps[int(second // 450) % len(steps)] * 1e6


def stepped() -> Made:
    """One guest that uses `stepped_use_bytes`, on a host with plenty."""
    guests = [ModelGuest("stepped", 512 * MIB, kernel=16 * MIB)]
    loads = {"stepped": lambda s: Load(hot_anonymous=stepped_use_bytes(s))}
    return ModelHost(total=4 * GIB, guests=guests, others=0.0, swap=0.0), loads


def demand(series: Sequence[Sequence[float]], sample_s: float, size: float = 4 * GIB) -> Made:
    """Guests whose use follows series of demand, each a share of its own highest; half of it is anonymous. The host
    has two thirds of what they may have together."""
    guests, loads = [], dict[str, Callable[[float], Load]]()
    for number, values in enumerate(series):
        top = max(values) or 1.0

        def load(second: float, values: Sequence[float] = values, top: float = top) -> Load:
            used = values[min(int(second / sample_s), len(values) - 1)] / top
            hot = size * (0.1 + 0.6 * used)
            return Load(hot_anonymous=hot / 2, hot_buffer=hot / 2, stream_per_s=2 * MIB)

        name = f"vm{number}"
        guests.append(ModelGuest(name, size, swap=size / 4))
        loads[name] = load
    total = size * len(guests) * 2 / 3
    return ModelHost(total=total, guests=guests, others=0.02 * total, swap=total / 4), loads


def waves(count: int = 12, minutes: int = 60) -> list[list[float]]:
    """Made-up demand, a value a minute: waves of different lengths that rarely meet."""
    return [
        [
            0.5 + 0.5 * math.sin(2 * math.pi * (minute / (20 + 3 * number) + number / 7))
            for minute in range(minutes)
        ]
        for number in range(count)
    ]
