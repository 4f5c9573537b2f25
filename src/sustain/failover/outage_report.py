"""What an outage was, what was brought away, and what is missing: as JSON and as one screen of text.

Built by `supervise`, purely, from what `decide` remembers and what the destinations hold; written when an outage's
work begins, every second while it goes on, and at its end. So a host whose battery dies too early has left a
report that names what was still on its way. Positions that nobody acknowledged are missing *as far as this host
knows*: an acknowledgement may have been lost with the power, never invented.
"""

import time
from dataclasses import dataclass
from typing import Any

from sustain.failover import report
from sustain.failover.outage import proven
from sustain.failover.types import DestinationView, Outage, PowerView
from sustain.units import format_duration, format_size

_SHOWN_RUNS = 16


@dataclass(frozen=True, slots=True)
class OutageReport:
    """One outage as one host lived it. Positions as `StoreView` counts them; None is unknown."""

    name: str
    path: str
    outage: Outage
    power: PowerView
    end: int | None  # of the state, now
    destinations: tuple[DestinationView, ...]
    now_ns: int  # CLOCK_BOOTTIME
    now_realtime_ns: int

    @property
    def complete(self) -> bool | None:
        """Whether the end is held where it must be; None: it cannot be known."""
        if self.end is None:
            return None
        return proven(self.destinations, self.end)

    def missing(self) -> list[dict[str, Any]]:
        """Per destination the positions (from, to] that it is not known to hold; of a region also the pages."""
        if self.end is None:
            return []
        return [
            {
                "url": each.url,
                "from": each.acked,
                "to": self.end,
                "bytes": each.lacks_bytes(self.end),
                **_pages(each),
            }
            for each in self.destinations
            if each.acked is None or each.acked < self.end
        ]

    def as_dict(self) -> dict[str, Any]:
        outage = self.outage
        held = max((each.acked for each in self.destinations if each.acked is not None), default=None)
        shipped = None if any(each.seals for each in self.destinations) else _less(held, outage.held)
        # The command of a store is stopped, then the rest drained. A region is away before its program is ended.
        stop, drain = (outage.began_ns, outage.down_ns), (outage.down_ns, outage.drained_ns)
        if 0 < outage.drained_ns < outage.down_ns:
            stop, drain = (outage.drained_ns, outage.down_ns), (outage.began_ns, outage.drained_ns)
        return {
            "name": self.name,
            "path": self.path,
            "epoch": outage.epoch,
            "outcome": outage.outcome,
            "why": outage.why,
            "power": str(self.power.power),
            "power_reason": self.power.reason,
            "complete": self.complete,
            "committed_at_begin": outage.committed,
            "held_at_begin": outage.held,
            "end": self.end,
            "shipped_bytes": shipped,
            "destinations": [
                {"url": each.url, "state": each.state, "required": each.required, "acked": each.acked}
                for each in self.destinations
            ],
            "missing": self.missing(),
            "began_boottime_ns": outage.began_ns,
            "written_realtime_ns": self.now_realtime_ns,
            "stop_s": _span(*stop),
            "drain_s": _span(*drain),
            "whole_s": _span(outage.began_ns, outage.done_ns),
            "usable_at_begin_s": outage.usable_s,
            "usable_at_end_s": outage.usable_end_s if outage.done_ns else self.power.usable_s,
        }

    def text(self) -> str:
        data, outage = self.as_dict(), self.outage
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.now_realtime_ns / 1e9))
        rows = [
            ("outage", f"{self.name}, {self.path}, epoch {outage.epoch}, written {when}"),
            ("outcome", f"{outage.outcome}{'' if outage.done_ns else ', not finished yet'}"),
            ("why", outage.why),
            ("power now", f"{self.power.power}: {self.power.reason}"),
            ("state", f"ends at position {_or_unknown(self.end)}"),
            ("shipped", _size(data["shipped_bytes"])),
            ("took", f"{_time(data['stop_s'])} to stop, {_time(data['drain_s'])} to drain"),
            ("battery", f"{_time(data['usable_at_begin_s'])} usable at the beginning"),
            ("", f"{_time(data['usable_at_end_s'])} usable at the end"),
        ]
        rows += [
            (f"on {each.url}", f"position {_or_unknown(each.acked)}, {each.state}")
            for each in self.destinations
        ]
        rows += [("MISSING", _missing_text(each)) for each in data["missing"]]
        said = {True: "yes", False: "NO", None: "unknown"}[self.complete]
        rows.append(("complete", said if self.destinations else f"{said}: this host ships to nobody"))
        width = max(len(name) for name, _ in rows) + 2
        return "".join(f"{name:<{width}}{value}\n" for name, value in rows)

    def save(self, directory: str) -> str:
        """Write outage-EPOCH-NAME.json and .txt; the text's path. Raises OSError."""
        base = f"outage-{self.outage.epoch}-{self.name}"
        return report.write(base, self.as_dict(), self.text(), directory)


def _pages(destination: DestinationView) -> dict[str, Any]:
    """What a region's destination lacks. Nothing for a store, whose positions say it."""
    if not destination.seals:
        return {}
    return {"pages": [list(run) for run in destination.missing_pages], "more_pages": destination.missing_more}


def _missing_text(missing: dict[str, Any]) -> str:
    if "pages" not in missing:
        return f"({_or_unknown(missing['from'])}, {missing['to']}] on {missing['url']}"
    runs = [f"{first}-{first + count - 1}" if count > 1 else str(first) for first, count in missing["pages"]]
    more = ", …" if missing["more_pages"] or len(runs) > _SHOWN_RUNS else ""
    named = f", pages {', '.join(runs[:_SHOWN_RUNS])}{more}" if runs else ""
    return f"seal {missing['to']} on {missing['url']}: {_size(missing['bytes'])}{named}"


def _less(more: int | None, less: int | None) -> int | None:
    return None if more is None or less is None else max(0, more - less)


def _span(since_ns: int, until_ns: int) -> float | None:
    return (until_ns - since_ns) / 1e9 if since_ns and until_ns else None


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _time(value: float | None) -> str:
    return "unknown" if value is None else format_duration(value)


def _size(value: int | None) -> str:
    return "unknown" if value is None else format_size(value)
