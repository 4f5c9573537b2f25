"""What the supervisor says: lines for people on stderr, and every event as a JSON line in a file.

Used by `supervise`. A plan asks again for what has not happened yet; the same thing is said once.
"""

import contextlib
import json
import sys
from typing import Any, TextIO

from sustain.clock import Clock
from sustain.errors import ConfigError
from sustain.failover.outage_report import OutageReport
from sustain.failover.report import Takeover
from sustain.failover.types import (
    Announce,
    AnswerRequest,
    ChildState,
    ChildView,
    Exit,
    Observation,
    Plan,
    ReadyForPowerOff,
    ReleaseLease,
    Renew,
    Role,
    StartCommand,
    StopCommand,
)
from sustain.units import format_duration

_QUIET = (Renew, Announce, ReadyForPowerOff)  # several a second, or as good as
_SAID_TO_PEOPLE = (StartCommand, StopCommand, ReleaseLease, AnswerRequest, Exit)


class Journal:
    """One supervisor's voice."""

    def __init__(self, name: str, event_log: str | None, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._said: dict[str, str] = {}
        self._ended: dict[str, int] = {}
        self._out_of_reach = False
        self._file: TextIO | None = None
        if event_log:
            try:
                self._file = open(event_log, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - kept open
            except OSError as error:
                raise ConfigError(
                    f"--event-log {event_log}: {error.strerror}", hint="give a file that can be written"
                ) from error

    def tell(self, text: str) -> None:
        """A line for people, and an event."""
        self._print(text)
        self._event("message", text=text)

    def once(self, key: str, text: str) -> None:
        """As `tell`, but the same is not said again while nothing else is."""
        self._once(key, text, "")

    def note(self, before: Role, plan: Plan, seen: Observation) -> None:
        """What a step has changed."""
        role = plan.state.role
        for name, child in (
            ("command", seen.command),
            ("shipper", seen.shipper),
            ("receiver", seen.receiver),
            ("fetcher", seen.fetcher),
        ):
            self._child(name, child)
        if role is not before:
            power = self._said.pop("power", "")
            self._said.clear()
            self._said["power"] = power
            epoch = None if seen.grant is None else seen.grant.epoch
            self._event("role", role=str(role), before=str(before), epoch=epoch)
            self._print(f"{role}{'' if epoch is None else f', epoch {epoch}'}")
        self._once("waiting", plan.note, "waiting: ")
        self._lease_outage(seen)
        if seen.power is not None and self._said.get("power") != seen.power.power:
            self._said["power"] = seen.power.power
            self._event("power", state=str(seen.power.power), reason=seen.power.reason)
            self._print(f"power: {seen.power.power}: {seen.power.reason}")
        for action in plan.actions:
            kind = type(action).__name__
            if isinstance(action, _QUIET) or self._said.get(kind) == action.reason:
                continue
            self._said[kind] = action.reason
            fields = {slot: getattr(action, slot) for slot in type(action).__slots__ if isinstance(slot, str)}
            self._event("action", action=kind, reason=action.reason, **fields)
            if isinstance(action, _SAID_TO_PEOPLE):
                self._print(f"{_VERBS[kind]}: {action.reason}")

    def takeover(self, found: Takeover, path: str) -> None:
        self._event("takeover", **found.as_dict())
        span = found.command_started_boottime_ns - (
            found.lease_free_boottime_ns or found.acquired_boottime_ns
        )
        self._print(
            f"took over from {found.old_holder}: epoch {found.new_epoch} begins at position "
            f"{found.start_position}, missing {found.missing()}, command started {format_duration(span / 1e9)} after "
            f"the lease was free{f'; {path}' if path else ''}"
        )

    def completed(self, found: Takeover, path: str) -> None:
        """A takeover's report has learned what it could not know."""
        self._event("takeover-report", **found.as_dict())
        self._print(
            f"the report of the takeover in epoch {found.new_epoch} is {found.state}: missing {found.missing()}; {path}"
        )

    def outage(self, found: OutageReport, path: str) -> None:
        data = found.as_dict()
        self._event("outage", **data)
        said = f"outage: {found.outage.outcome}, complete: {data['complete']}"
        if self._said.get("outage") != said:
            self._said["outage"] = said
            self._print(f"{said}{f'; {path}' if path else ''}")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _child(self, name: str, child: ChildView) -> None:
        if child.state is ChildState.EXITED and self._ended.get(name) != child.changed_ns:
            self._ended[name] = child.changed_ns
            self._event("exit", child=name, status=child.status, asked=child.asked)
            if not child.asked:
                self._print(f"the {name} ended with {_how(child.status)}")

    def _once(self, key: str, text: str, prefix: str) -> None:
        if self._said.get(key, "") == text:
            return
        self._said[key] = text
        if text:
            self._event(key, text=text)
            self._print(prefix + text)

    def _lease_outage(self, seen: Observation) -> None:
        """One line when the lease store fails, one when it answers again."""
        if bool(seen.lease_error) == self._out_of_reach:
            return
        self._out_of_reach = bool(seen.lease_error)
        text = seen.lease_error or "the lease store answers again"
        self._event("lease-error", text=seen.lease_error)
        self._print(text)

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads; the workload goes on
            print(f"sustain run {self._name}: {text}", file=sys.stderr, flush=True)

    def _event(self, event: str, /, **fields: Any) -> None:
        if self._file is None:
            return
        entry = {
            "event": event,
            "name": self._name,
            "boottime_ns": self._clock.boottime_ns(),
            "realtime_ns": self._clock.realtime_ns(),
            **fields,
        }
        try:
            self._file.write(json.dumps(entry, default=str, ensure_ascii=False) + "\n")
        except OSError:
            self._file = None


_VERBS = {
    "StartCommand": "start the command",
    "StopCommand": "stop the command",
    "ReleaseLease": "give the lease back",
    "AnswerRequest": "a handover was asked for",
    "Exit": "end",
}


def _how(status: int | None) -> str:
    if status is not None and status < 0:
        return f"signal {-status}"
    return f"status {status}"
