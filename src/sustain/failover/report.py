"""What a takeover found and what it cost, as JSON and as one screen of text.

Built by `supervise`, purely, from what was read around the promotion; kept beside the store or in
--report-dir. What cannot be known from here (what the old primary committed after it was last heard) is
said to be unknown.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sustain.units import format_duration, format_size


@dataclass(frozen=True, slots=True)
class Takeover:
    """One takeover. Positions are LSN; `_boottime_ns` of this host's clock; None is unknown."""

    name: str
    store: str
    store_uuid: str
    old_epoch: int
    old_holder: str
    old_state: str  # of the lease: "held" (it ran out), "released"
    old_reason: str
    new_epoch: int
    held_position: int | None  # the end of what this host had
    start_position: int  # where the new epoch begins
    commits_held: int | None
    primary_committed: int | None  # what the old primary had committed, as last heard
    primary_heard_boottime_ns: int | None
    released_position: int | None  # what it noted when it left in good order
    lease_free_boottime_ns: int | None
    acquired_boottime_ns: int
    promoted_boottime_ns: int
    command_started_boottime_ns: int
    finished_realtime_ns: int

    @property
    def missing_bytes(self) -> int | None:
        """Log bytes that the old primary had committed, by what is known, and that this host lacks."""
        known = self.released_position if self.released_position is not None else self.primary_committed
        if known is None or self.held_position is None:
            return None
        return max(0, known - self.held_position)

    @property
    def complete(self) -> bool | None:
        """Whether nothing is missing: True and False are certain, None is not known."""
        if self.missing_bytes:
            return False
        return True if self.released_position is not None else None

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "missing_bytes": self.missing_bytes,
            "complete": self.complete,
            "certain": self.certain(),
            "uncertain": self.uncertain(),
            "lease_free_to_acquired_s": _span(self.lease_free_boottime_ns, self.acquired_boottime_ns),
            "acquired_to_promoted_s": _span(self.acquired_boottime_ns, self.promoted_boottime_ns),
            "promoted_to_command_s": _span(self.promoted_boottime_ns, self.command_started_boottime_ns),
        }

    def certain(self) -> list[str]:
        said = [
            f"every commit up to position {self.held_position} is here, and everything that this host ever "
            "acknowledged"
        ]
        if self.released_position is not None:
            said.append(f"{self.old_holder} left in good order at position {self.released_position}")
        if self.missing_bytes:
            said.append(f"{format_size(self.missing_bytes)} of the old primary's log are not here")
        return said

    def uncertain(self) -> list[str]:
        if self.released_position is not None:
            return []
        if self.primary_committed is None or self.primary_heard_boottime_ns is None:
            return ["this host never heard how far the old primary was: unknown whether commits are missing"]
        ago = _span(self.primary_heard_boottime_ns, self.acquired_boottime_ns) or 0.0
        return [
            f"what the old primary committed in the {format_duration(ago)} after it was last heard and did not "
            "send; it keeps such commits in a file beside its store when it returns as a standby"
        ]

    def text(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.finished_realtime_ns / 1e9))
        how = (
            "its lease ran out" if self.old_state == "held" else f"it gave the lease back: {self.old_reason}"
        )
        free = _span(self.lease_free_boottime_ns, self.acquired_boottime_ns)
        rows = [
            ("takeover", f"{self.name} took over {self.store} from {self.old_holder or 'nobody'}, {when}"),
            ("why", how),
            (
                "epoch",
                f"{self.old_epoch} -> {self.new_epoch}, which begins at position {self.start_position}",
            ),
            (
                "held here",
                f"position {_or_unknown(self.held_position)}, {_or_unknown(self.commits_held)} commits",
            ),
            ("old primary", f"position {_or_unknown(self.primary_committed)} as last heard"),
            ("missing", "unknown" if self.missing_bytes is None else format_size(self.missing_bytes)),
            ("lease free to taken", "unknown" if free is None else format_duration(free)),
            ("taken to promoted", _duration(self.acquired_boottime_ns, self.promoted_boottime_ns)),
            ("promoted to start", _duration(self.promoted_boottime_ns, self.command_started_boottime_ns)),
        ]
        lines = [f"{name:<20} {value}" for name, value in rows]
        lines += [f"{'certain':<20} {line}" for line in self.certain()]
        lines += [f"{'not certain':<20} {line}" for line in self.uncertain()]
        return "\n".join(lines) + "\n"


def save(report: Takeover, directory: str) -> str:
    """Write takeover-EPOCH-NAME.json and .txt; the text's path. Raises OSError."""
    os.makedirs(directory, exist_ok=True)
    base = Path(directory, f"takeover-{report.new_epoch}-{report.name}")
    for suffix, content in (
        (".json", json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n"),
        (".txt", report.text()),
    ):
        target = base.with_name(base.name + suffix)
        draft = target.with_name(target.name + ".new")
        draft.write_text(content, encoding="utf-8")
        os.replace(draft, target)
    return str(base) + ".txt"


def _span(since_ns: int | None, until_ns: int) -> float | None:
    return None if since_ns is None else (until_ns - since_ns) / 1e9


def _duration(since_ns: int, until_ns: int) -> str:
    return format_duration((until_ns - since_ns) / 1e9)


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)
