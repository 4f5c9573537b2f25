"""One figure for those who watch: what a scheduler tells of a tick, before anybody decides how it is shown. Pure.

Used by schedulers, which yield them, and by `agent.metrics`, which shows them to Prometheus.
"""

from typing import NamedTuple


class Measure(NamedTuple):
    """`name` has its unit last, as Prometheus has it. An unknown is not yielded at all."""

    name: str
    help: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()
