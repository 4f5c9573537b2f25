"""The plan while it is being made: the one mutable thing in a decision. Pure.

Used by `decide`, `contend` and `handover`. Actions keep their order; the wake time only moves closer.
"""

from dataclasses import replace
from typing import Any

from sustain.failover.types import (
    Action,
    ChildView,
    Observation,
    Plan,
    Policy,
    Role,
    State,
    StopCommand,
    StopFetcher,
    StopReceiver,
    StopShipper,
)
from sustain.units import to_ns

_AT_LEAST_EVERY_NS = to_ns(1.0)
_KILLED_POLL_NS = to_ns(0.05)
_SHIPPER_GRACE_NS = to_ns(5.0)
_RECEIVER_GRACE_NS = to_ns(1.0)  # a takeover waits for it, and a killed one loses nothing


class Draft:
    """What is seen, what is remembered, and what has been decided so far."""

    def __init__(self, seen: Observation, state: State, policy: Policy, now_ns: int) -> None:
        self.seen = seen
        self.state = state
        self.policy = policy
        self.now_ns = now_ns
        self._actions: list[Action] = []
        self._wake_ns = now_ns + _AT_LEAST_EVERY_NS
        self._poll_ns = policy.poll_ns
        self._note = ""

    def plan(self) -> Plan:
        return Plan(tuple(self._actions), self.state, self._wake_ns, self._poll_ns, self._note)

    def do(self, action: Action) -> None:
        self._actions.append(action)

    def remember(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    def become(self, role: Role, **changes: Any) -> None:
        self.remember(role=role, **changes)

    def note(self, text: str) -> None:
        """What is being waited for."""
        self._note = text

    def wake_at(self, at_ns: int) -> None:
        self._wake_ns = min(self._wake_ns, max(at_ns, self.now_ns))

    def poll_fast(self) -> None:
        self._poll_ns = self.policy.busy_poll_ns

    def due(self, at_ns: int) -> bool:
        """Whether that moment has come; if not, wake then."""
        if self.now_ns >= at_ns:
            return True
        self.wake_at(at_ns)
        return False

    def backoff(self, failures: int) -> int:
        """Nanoseconds to wait after so many failures in a row."""
        doubled = self.policy.backoff_ns << min(max(failures - 1, 0), 20)
        return min(doubled, self.policy.backoff_limit_ns)

    def stop_command(self, reason: str, kill_at_ns: int) -> bool:
        """Ask for its end; True once it is gone."""
        if not self.seen.command.running:
            return True
        self.do(StopCommand(reason, kill_at_ns))
        self._look_again(kill_at_ns)
        return False

    def stop_shipper(self, reason: str) -> bool:
        if not self.seen.shipper.running:
            return True
        self.do(StopShipper(reason, self._grace(self.seen.shipper, _SHIPPER_GRACE_NS)))
        return False

    def stop_fetcher(self, reason: str) -> bool:
        if not self.seen.fetcher.running:
            return True
        self.do(StopFetcher(reason, self._grace(self.seen.fetcher, _SHIPPER_GRACE_NS)))
        return False

    def stop_receiver(self, reason: str) -> bool:
        if not self.seen.receiver.running:
            return True
        self.do(StopReceiver(reason, self._grace(self.seen.receiver, _RECEIVER_GRACE_NS)))
        return False

    def _grace(self, child: ChildView, grace_ns: int) -> int:
        kill_at_ns = (child.asked_ns or self.now_ns) + grace_ns
        self._look_again(kill_at_ns)
        return kill_at_ns

    def _look_again(self, kill_at_ns: int) -> None:
        """When it must be killed; later, if it has been: one that hangs in the kernel must not keep us busy."""
        self.wake_at(kill_at_ns if kill_at_ns > self.now_ns else self.now_ns + _KILLED_POLL_NS)
