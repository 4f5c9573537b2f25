"""Variants that are wrong on purpose, to see that the checker catches them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sustain.failover.lease.record import RATE_MARGIN

Changes = list[tuple[Any, str, Any]]


@dataclass(frozen=True)
class Variant:
    name: str
    why: str = ""
    changes: Callable[[], Changes] = list
    margin: float = RATE_MARGIN
    engine_fences: bool = True
    hosts: int | None = None
    kinds: tuple[str, ...] = ()
    within: int = 100


CORRECT = Variant("correct")
VARIANTS: tuple[Variant, ...] = ()
