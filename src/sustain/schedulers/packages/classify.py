"""What kind of package one is: by its load, and by how much of its idle time it spends in independent states. Pure.

Used by `decide`. A package that is lightly loaded and sits in its independent state most of its idle time gains little
from being emptied; one that is lightly loaded and hardly gets there is the one to empty. Each bound has a second one
for leaving, so that a load between them changes nothing.
"""

from enum import StrEnum

from sustain.schedulers.packages.policy import Policy


class Class(StrEnum):
    """high load; medium load; light and power-efficient; light and power-inefficient; parked; light, and nothing is
    known of its idle states."""

    HIGH = "high load"
    MEDIUM = "medium load"
    EFFICIENT = "power-efficient"
    INEFFICIENT = "power-inefficient"
    PARKED = "parked"
    LIGHT = "light load"


def classify(load: float, independent: float | None, before: Class | None, policy: Policy) -> Class:
    """`load`: share of its capacity in use; `independent`: share of all time in states that it enters whatever other
    packages do, None: unknown; `before`: what it was."""
    if load >= (policy.high_leave if before is Class.HIGH else policy.high):
        return Class.HIGH
    busy = (Class.HIGH, Class.MEDIUM)
    if load >= (policy.medium_leave if before in busy else policy.medium):
        return Class.MEDIUM
    if independent is None:
        return Class.LIGHT
    if load <= policy.parked_load and independent >= policy.parked:
        return Class.PARKED
    of_idle = independent / max(1 - min(load, 1.0), 1e-9)
    calm = (Class.EFFICIENT, Class.PARKED)
    if of_idle >= (policy.efficient_leave if before in calm else policy.efficient):
        return Class.EFFICIENT
    return Class.INEFFICIENT
