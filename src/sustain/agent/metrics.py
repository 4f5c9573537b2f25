"""What the agent is doing, in Prometheus' words.

Used by `agent` for `/metrics`. Figures are read from the loops when they are asked for; nothing is counted twice. The
text is made by prometheus_client, docs/decisions/0018-agent.md.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from sustain.agent.http import Page
from sustain.schedulers.loop import Counts, Loop

AnyLoop = Loop[Any, Any, Any, Any]

_COUNTERS = {
    "ticks": "ticks made",
    "failed": "ticks that failed",
    "skipped": "periods skipped because a tick took longer than one",
    "hurried": "ticks before their time, because of pressure or an unfinished action",
    "actions": "actions carried out or tried",
    "refused": "actions that did not come off",
    "restores": "times that everything was put back because nothing could be seen",
}


class Metrics(Collector):
    """The page for Prometheus."""

    def __init__(self, loops: Sequence[AnyLoop]) -> None:
        self._loops = loops
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def page(self) -> Page:
        return Page(generate_latest(self._registry), CONTENT_TYPE_LATEST)

    def collect(self) -> Iterable[Metric]:
        for field, said in _COUNTERS.items():
            family = CounterMetricFamily(f"sustain_scheduler_{field}", said, labels=["scheduler"])
            for loop in self._loops:
                family.add_metric([loop.scheduler.name], getattr(loop.counts, field))
            yield family
        yield self._gauge(
            "acts", "1 when plans are carried out, 0 in a dry run", lambda loop: float(loop.acts)
        )
        yield self._gauge("blind_seconds", "time since a tick last came off", lambda loop: loop.blind_s)
        yield self._spent()
        yield from self._of_schedulers()

    def _gauge(self, name: str, said: str, read: Any) -> Metric:
        family = GaugeMetricFamily(f"sustain_scheduler_{name}", said, labels=["scheduler"])
        for loop in self._loops:
            family.add_metric([loop.scheduler.name], read(loop))
        return family

    def _spent(self) -> Metric:
        family = GaugeMetricFamily(
            "sustain_scheduler_tick_seconds",
            "time that the last good tick took",
            labels=["scheduler", "step"],
        )
        for loop in self._loops:
            tick = loop.good
            for step in ("sense", "decide", "act") if tick else ():
                spent_s = getattr(tick, f"{step}_s")
                if spent_s is not None:
                    family.add_metric([loop.scheduler.name, step], spent_s)
        return family

    def _of_schedulers(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for loop in self._loops:
            tick = loop.good
            if tick is None:
                continue
            for each in loop.scheduler.measures(tick.observation, tick.plan):
                family = families.get(each.name)
                if family is None:
                    names = [name for name, _ in each.labels]
                    family = families[each.name] = GaugeMetricFamily(each.name, each.help, labels=names)
                family.add_metric([value for _, value in each.labels], each.value)
        return families.values()


assert set(_COUNTERS) == set(Counts.__slots__)
