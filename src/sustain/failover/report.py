"""What a takeover found and what it cost, as JSON and as one screen of text.

Built by `supervise`, purely, from what was read around the promotion; kept beside the store or in
--report-dir. What cannot be known from here (what the old primary committed after it was last heard) is
said to be unknown: such a report is *open*. It is completed, and written again, when the old primary's host has
returned and said where its log ended (`completion`). What is missing is reckoned in `losses`.
"""

import json
import os
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sustain import wholefile
from sustain.clock import Clock
from sustain.failover.custodian.base import Opened
from sustain.failover.lease.record import LeaseState, LeaseView
from sustain.failover.losses import (
    Held,
    Losses,
    at_least,
    by_account,
    nothing,
    parted_early,
)
from sustain.replication import accounts as spoken
from sustain.replication.wire import Account
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
    held_epoch: int | None = None  # the newest of what this host had
    held_commit_time_ns: int | None = None  # of the last commit that it had, ns since 1970
    primary_commit_time_ns: int | None = None  # of `primary_committed`
    own: bool = False  # this host itself was the old primary, and nobody else since
    accounts: tuple[Account, ...] = ()  # what hosts said that returned later
    completed_realtime_ns: int | None = None

    @property
    def held(self) -> Held:
        return Held(self.held_position, self.start_position, self.commits_held, self.held_commit_time_ns)

    @property
    def last_word(self) -> Account | None:
        """What the old primary's own host says of its log."""
        found = [each for each in self.accounts if self._is_last_word(each)]
        return found[0] if found else None

    def _is_last_word(self, account: Account) -> bool:
        """A copy that was put there by hand is not the log that the old primary had: another host's, or an older one,
        which ends before what was received from it."""
        written = account.writer and account.epoch == self.old_epoch
        return written and account.host == self.old_holder and account.end >= self.start_position

    @property
    def _is_own(self) -> bool:
        return self.own and self.held_epoch == self.old_epoch and self.old_holder == self.name

    @property
    def lost(self) -> Losses:
        """What of the old primary's log is not in the new epoch."""
        if self.kind == "region":
            return Losses()  # seals have no length
        if self.last_word is not None:
            return by_account(self.held, self.last_word)
        if self._is_own:
            return nothing(self.held_position)
        if self.released_position is not None and self.held_position is not None:
            short = self.released_position - self.held_position
            if short <= 0:
                return nothing(self.held_position)
            return Losses(self.start_position, self.released_position, short, at_least_bytes=short)
        return at_least(self.held, self.primary_committed, self.primary_commit_time_ns, self.accounts)

    @property
    def missing_bytes(self) -> int | None:
        """Log bytes that the old primary had committed and that this host lacks; None unless exact."""
        if self.kind == "region":
            known = self.released_position if self.released_position is not None else self.primary_committed
            if known is None or self.held_position is None:
                return None
            return 0 if self.held_position >= known else None
        return self.lost.bytes

    @property
    def complete(self) -> bool | None:
        """Whether nothing is missing: True and False are certain, None is not known."""
        if self.kind == "region":
            return None if self.missing_bytes is None or self.released_position is None else True
        return False if self.lost.at_least_bytes else (True if self.lost.bytes == 0 else None)

    @property
    def state(self) -> str:
        """ "complete" when all that was lost is known exactly; "open" while something may still be learned."""
        if self.kind == "region":
            return "open" if self.complete is None else "complete"
        return "complete" if self.lost.bytes == 0 or self.last_word is not None else "open"

    def with_accounts(self, accounts: list[Account], now_ns: int) -> "Takeover":
        """The same, knowing what these say; `now_ns` since 1970."""
        ours = [each for each in accounts if each not in self.accounts and self._concerned(each)]
        if self.kind == "region" or not ours:
            return self
        found = replace(self, accounts=(*self.accounts, *ours))
        return replace(found, completed_realtime_ns=now_ns) if found.state == "complete" else found

    def _concerned(self, account: Account) -> bool:
        """The old primary's own word, or a copy of its log that holds more than this host had."""
        if self._is_last_word(account):
            return True
        in_between = (self.held_epoch or 0) <= account.epoch <= self.old_epoch
        return in_between and account.end > self.start_position

    def as_dict(self) -> dict[str, Any]:
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            **held,
            "accounts": [spoken.as_dict(each) for each in self.accounts],
            "state": self.state,
            "lost": {each.name: getattr(self.lost, each.name) for each in fields(Losses)},
            "missing_bytes": self.missing_bytes,
            "complete": self.complete,
            "certain": self.certain(),
            "uncertain": self.uncertain(),
            "lease_free_to_acquired_s": _span(self.lease_free_boottime_ns, self.acquired_boottime_ns),
            "acquired_to_promoted_s": _span(self.acquired_boottime_ns, self.promoted_boottime_ns),
            "promoted_to_command_s": _span(self.promoted_boottime_ns, self.command_started_boottime_ns),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Takeover":
        """What `as_dict` gave, also of an older version. Raises KeyError, TypeError, ValueError, AttributeError."""
        held = {each.name: data[each.name] for each in fields(cls) if each.name in data}
        LeaseState(held["old_state"])
        return cls(**held | {"accounts": tuple(map(spoken.from_dict, data.get("accounts", ())))})

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
        if self._is_own:
            said.append("this host was the old primary itself: nothing is missing")
        word = self.last_word
        if word is not None:
            said.append(
                f"{word.host or self.old_holder} returned; its log of epoch {word.epoch} ended at {word.end}"
            )
        if self.lost.at_least_bytes:
            bound = "" if self.lost.bytes is not None else "at least "
            short = format_size(self.lost.at_least_bytes)
            said.append(f"{bound}{short} of the old primary's log are not here")
        return said

    def uncertain(self) -> list[str]:
        if self.last_word is not None:
            return self._not_told(self.last_word)
        if self.released_position is not None or self.state == "complete":
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

    def _not_told(self, word: Account) -> list[str]:
        """What stays unknown although the old primary has returned."""
        said, lost = [], self.lost
        if parted_early(self.held, word):
            said.append(
                f"the histories part at position {word.common} already: up to {self.start_position} both wrote there"
            )
        if lost.commits is None:
            said.append("how many commits these are")
        if lost.seconds is None:
            said.append("how many seconds these are: a clock went back, or the log had forgotten the times")
        if lost.bytes and lost.kept_bytes is not None and lost.kept_bytes < lost.bytes:
            short = format_size(lost.bytes - lost.kept_bytes)
            said.append(f"what was in {short} of them: the old primary's log had no room to keep that")
        return said

    def missing(self) -> str:
        """What is missing, for people."""
        lost = self.lost
        if lost.bytes == 0:
            return "nothing"
        if lost.bytes is not None:
            span = f"positions {lost.start} to {lost.end}"
            seconds = "unknown time" if lost.seconds is None else format_duration(lost.seconds)
            return f"{format_size(lost.bytes)}, {_or_unknown(lost.commits)} commits, {seconds}; {span}"
        if not lost.at_least_bytes:
            return "unknown"
        seconds = "" if lost.at_least_s is None else f", {format_duration(lost.at_least_s)}"
        return f"at least {format_size(lost.at_least_bytes)}{seconds}; unknown how many commits"

    def text(self) -> str:
        when = _when(self.finished_realtime_ns)
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
        missing = self.missing()
        if self.kind == "region":
            missing = "unknown" if self.missing_bytes is None else format_size(self.missing_bytes)
        rows = [
            ("takeover", f"{self.name} took over {self.store} from {self.old_holder or 'nobody'}, {when}"),
            ("why", how),
            (
                "epoch",
                f"{self.old_epoch} -> {self.new_epoch}, which begins at position {self.start_position}",
            ),
            ("held here", held),
            ("old primary", heard),
            ("missing", missing),
            ("report", self._report_state()),
            ("lease free to taken", "unknown" if free is None else format_duration(free)),
            ("taken to promoted", _duration(self.acquired_boottime_ns, self.promoted_boottime_ns)),
            ("promoted to start", _duration(self.promoted_boottime_ns, self.command_started_boottime_ns)),
        ]
        if self.lost.kept_bytes:
            kept = f"{format_size(self.lost.kept_bytes)} beside the store of {self.lost.kept_on or self.old_holder}"
            rows.append(("kept", f"{kept}: `sustain orphan list` there"))
        lines = [f"{name:<20} {value}" for name, value in rows]
        lines += [f"{'certain':<20} {line}" for line in self.certain()]
        lines += [f"{'not certain':<20} {line}" for line in self.uncertain()]
        return "\n".join(lines) + "\n"

    def _report_state(self) -> str:
        if self.completed_realtime_ns is not None:
            return f"complete, since {_when(self.completed_realtime_ns)}"
        return self.state


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
            held_epoch=opened.log_epoch,
            held_commit_time_ns=opened.commit_time_ns,
            primary_commit_time_ns=opened.primary_commit_time_ns,
            own=opened.own,
        )


def save(report: Takeover, directory: str) -> str:
    """Write takeover-EPOCH-NAME.json and .txt; the text's path. Raises OSError."""
    return write(f"takeover-{report.new_epoch}-{report.name}", report.as_dict(), report.text(), directory)


def write(base: str, data: dict[str, Any], text: str, directory: str) -> str:
    """A report as BASE.txt and BASE.json, whole and flushed: what it says may be the last that this host says.
    In this order: whoever completes reports goes by the JSON. The text's path. Raises OSError."""
    os.makedirs(directory, exist_ok=True)
    for suffix, content in (
        (".txt", text),
        (".json", json.dumps(data, indent=2, ensure_ascii=False) + "\n"),
    ):
        wholefile.replace(Path(directory, base + suffix), content.encode(), durable=True)
    return str(Path(directory, base + ".txt"))


def _when(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_ns / 1e9))


def _span(since_ns: int | None, until_ns: int) -> float | None:
    return None if since_ns is None else (until_ns - since_ns) / 1e9


def _duration(since_ns: int, until_ns: int) -> str:
    return format_duration((until_ns - since_ns) / 1e9)


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)
