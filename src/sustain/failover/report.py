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

from sustain import wholefile
from sustain.clock import Clock
from sustain.failover.custodian.base import Opened
from sustain.failover.lease.record import LeaseState, LeaseView
from sustain.units import format_duration, format_size


@dataclass(frozen=True, slots=True)
class Takeover:
    """One takeover. Positions are LSN; `_boottime_ns` of this host's clock; None is unknown."""

    name: str
    store: str
    store_uuid: str
    old_epoch: int
    old_holder: str
    old_state: str  # of the lease: "held", "claimed", "saving" (it ran out); "saved", "released", "done"
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
    kind: str = "store"  # or "region", whose positions are numbers of seals

    @property
    def missing_bytes(self) -> int | None:
        """Log bytes that the old primary had committed, by what is known, and that this host lacks."""
        known = self.released_position if self.released_position is not None else self.primary_committed
        if known is None or self.held_position is None:
            return None
        if self.kind == "region":
            return 0 if self.held_position >= known else None  # seals have no length
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
        if self.kind == "region":
            if self.old_holder == self.name:
                return ["the region is this host's own, as its program left it"]
            return [f"the region is as seal {self.held_position} has it, every page of it verified"]
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
        if self.kind == "region":
            own = self.old_holder == self.name
            return [] if own else [f"what {self.old_holder} changed after that seal, if it ran on"]
        if self.old_state == LeaseState.SAVING:
            said = "it was saving on its battery and was not heard to finish"
            return [f"what {self.old_holder} had committed beyond what this host holds: {said}"]
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
            f"its lease ran out ({self.old_state})"
            if LeaseState(self.old_state).owned
            else f"it gave the lease back ({self.old_state}): {self.old_reason}"
        )
        free = _span(self.lease_free_boottime_ns, self.acquired_boottime_ns)
        held = f"position {_or_unknown(self.held_position)}, {_or_unknown(self.commits_held)} commits"
        heard = f"position {_or_unknown(self.primary_committed)} as last heard"
        if self.kind == "region":
            held, heard = f"seal {_or_unknown(self.held_position)}", self.old_state
        rows = [
            ("takeover", f"{self.name} took over {self.store} from {self.old_holder or 'nobody'}, {when}"),
            ("why", how),
            (
                "epoch",
                f"{self.old_epoch} -> {self.new_epoch}, which begins at position {self.start_position}",
            ),
            ("held here", held),
            ("old primary", heard),
            ("missing", "unknown" if self.missing_bytes is None else format_size(self.missing_bytes)),
            ("lease free to taken", "unknown" if free is None else format_duration(free)),
            ("taken to promoted", _duration(self.acquired_boottime_ns, self.promoted_boottime_ns)),
            ("promoted to start", _duration(self.promoted_boottime_ns, self.command_started_boottime_ns)),
        ]
        lines = [f"{name:<20} {value}" for name, value in rows]
        lines += [f"{'certain':<20} {line}" for line in self.certain()]
        lines += [f"{'not certain':<20} {line}" for line in self.uncertain()]
        return "\n".join(lines) + "\n"


class Taken:
    """What is known of a takeover while it goes on."""

    def __init__(self, view: LeaseView, began_ns: int) -> None:
        self.view = view
        self.began_ns = began_ns
        self._promoted_ns = 0
        self._opened = Opened(None, None, 0, None, None)

    def promoted(self, now_ns: int, opened: Opened) -> None:
        """The state is open in the new epoch."""
        self._promoted_ns, self._opened = now_ns, opened

    def report(self, name: str, path: str, epoch: int, clock: Clock, kind: str = "store") -> Takeover:
        """All of it; the command has just been started."""
        old, opened = self.view.record, self._opened
        now_ns = clock.boottime_ns()
        return Takeover(
            name=name,
            store=path,
            store_uuid=old.store_uuid,
            old_epoch=old.epoch,
            old_holder=old.holder,
            old_state=str(old.state),
            old_reason=old.reason,
            new_epoch=epoch,
            held_position=opened.held,
            start_position=opened.start,
            commits_held=opened.commits,
            primary_committed=opened.primary_committed,
            primary_heard_boottime_ns=opened.primary_heard_ns,
            released_position=old.position if old.state.left else None,
            lease_free_boottime_ns=self.view.takeable_at_ns or None,
            acquired_boottime_ns=self.began_ns,
            promoted_boottime_ns=self._promoted_ns or now_ns,
            command_started_boottime_ns=now_ns,
            finished_realtime_ns=clock.realtime_ns(),
            kind=kind,
        )


def save(report: Takeover, directory: str) -> str:
    """Write takeover-EPOCH-NAME.json and .txt; the text's path. Raises OSError."""
    return write(f"takeover-{report.new_epoch}-{report.name}", report.as_dict(), report.text(), directory)


def write(base: str, data: dict[str, Any], text: str, directory: str) -> str:
    """A report as BASE.json and BASE.txt, whole and flushed: what it says may be the last that this host says.
    The text's path. Raises OSError."""
    os.makedirs(directory, exist_ok=True)
    for suffix, content in (
        (".json", json.dumps(data, indent=2, ensure_ascii=False) + "\n"),
        (".txt", text),
    ):
        wholefile.replace(Path(directory, base + suffix), content.encode(), durable=True)
    return str(Path(directory, base + ".txt"))


def _span(since_ns: int | None, until_ns: int) -> float | None:
    return None if since_ns is None else (until_ns - since_ns) / 1e9


def _duration(since_ns: int, until_ns: int) -> str:
    return format_duration((until_ns - since_ns) / 1e9)


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)
