"""What there is to watch of large pages, as figures. Pure.

Used by `scheduler`, for the agent's metrics. An unknown is not there, rather than zero.
"""

from collections.abc import Iterator

from sustain.schedulers.large_pages.model import Observation
from sustain.schedulers.large_pages.plan import Finding, Plan
from sustain.schedulers.measure import Measure

_TARGET = {
    "blocks": "blocks of 2 MiB of which something is in memory",
    "large": "of them, mapped large",
    "wanted": "of them, that are large and stay, or would be without a budget",
    "accessed_pages": "pages accessed in a counting period, by estimate",
    "coverage": "of the accessed pages, by estimate, those in large pages",
    "bloat_bytes": "filled by mapping large, and not accessed",
    "phase": "1: only counted; 2: mapped by priority",
}


def measures(seen: Observation, plan: Plan) -> Iterator[Measure]:
    """Of the host and of each target."""
    if seen.host.free_large_pages is not None:
        yield Measure(
            "sustain_large_pages_free", "runs of 2 MiB that are free now", seen.host.free_large_pages
        )
    if plan.totals.budget is not None:
        yield Measure("sustain_large_pages_budget", "that all targets together may have", plan.totals.budget)
    yield Measure("sustain_large_pages_scarce", "1: memory is scarce, blocks are demoted", plan.totals.scarce)
    yield Measure(
        "sustain_large_pages_collapse_seconds",
        "that mapping one block large is expected to take",
        plan.totals.collapse_s,
    )
    for kind in Finding:
        yield Measure(
            "sustain_large_pages_findings",
            "blocks, by what was found of them",
            plan.count(kind),
            (("finding", kind.name.lower()),),
        )
    for target in plan.targets:
        labels = (("target", target.name), ("counting", target.counting))
        for name, said in _TARGET.items():
            value = getattr(target, name)
            if value is not None:
                yield Measure(f"sustain_large_pages_target_{name}", said, float(value), labels)
