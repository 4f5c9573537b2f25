"""What supplies a simulated host: mains, a battery behind them, and a source that speaks of both.

The readings are made up here; what they mean is judged by the real `sustain.powerfail`. A battery is one of these:
`honest`: it lasts as long as a drain may count on, or a little longer; `early`: it dies long before; `collapse`: it
says much too much until shortly before its end, and then the truth, and that it is low.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sustain.failover.types import PowerView
from sustain.powerfail.budget import BudgetPolicy, budget_bytes, usable_s
from sustain.powerfail.decide import PowerMemory, PowerPolicy, decide
from sustain.powerfail.readings import PowerReading, unknown

if TYPE_CHECKING:
    from sim.failover.host import Host
    from sim.failover.world import World

POLICY = PowerPolicy(debounce_s=0.3, settle_s=0.5, stale_s=1.0, flap_window_s=1.5)
BUDGET = BudgetPolicy(margin_s=0.6, latency_s=0.6)
POLL_S = 0.1
LOW_S = 0.5  # below it the battery is called low
BANDWIDTH_SHARE = 0.8  # the low percentile that a shipper would have measured
COLLAPSE_S = 2.5  # before its end such a battery says the truth
RECHARGE = 0.5  # seconds of battery per second of mains
TROUBLE_S = 2.5
_FOR_EVER = float("inf")
ANNOUNCED_S = POLICY.debounce_s + 4 * POLL_S  # an outage that is seen is believed so soon


class Feed:
    """One host's supply, and its supervisor's watch of it."""

    def __init__(self, world: World, host: Host) -> None:
        rng = world.power_rng
        self._world, self._host = world, host
        self.kind = rng.choice(("honest", "honest", "honest", "honest", "early", "collapse"))
        self._full_s = rng.uniform(2.5, 6.0)
        self._charge_s = self._full_s  # what the battery really gives, at `_since_s`
        self._since_s = 0.0  # of the last change of the mains
        self.mains = True
        self.forced = False
        self.lost = False  # the source does not answer
        self.troubled_s = 0.0
        self._runs: list[tuple[float, float]] = []  # on battery: from, until
        self._low_said_s: float | None = None  # since when, while it is
        self._low_heard_s = -_FOR_EVER
        self._believed_s: float | None = None  # when the outage that is going on was believed
        self._within = False  # whether there is a budget, and was kept since there is one
        self._death = 0
        self.memory = PowerMemory()
        self.ready = False
        self.outages = self.deaths = 0

    # what happens

    def set_mains(self, on: bool) -> None:
        now_s = self._world.now_s
        if on is self.mains:
            return
        self.troubled_s = now_s
        self._charge_s = self.left_s()
        self.mains, self._since_s, self._believed_s = on, now_s, None
        self._death += 1
        if on:
            self._runs[-1] = (self._runs[-1][0], now_s)
            self.forced = self.forced and self._host.powered
            self._low_said_s = now_s if self.forced else None
            self._world.tell(self._host, "AC is back")
            return
        if self._runs and now_s - self._runs[-1][1] < 2 * POLL_S:
            self._runs[-1] = (self._runs[-1][0], _FOR_EVER)  # who looks now and then did not see AC return
        else:
            self._runs.append((now_s, _FOR_EVER))
        self.outages += 1
        self._world.tell(self._host, f"AC FAILS, {self._says()}")
        # The part that is held back is as likely not there as it is.
        spare_s = self._world.power_rng.uniform(0, 0.3) if self.kind == "honest" else 0.0
        which = self._death
        self._world.after(self._charge_s + spare_s, lambda: self._dies(which))

    def force(self) -> None:
        self.forced = True
        self.troubled_s = self._world.now_s
        self._low_said_s = self._low_said_s or self._world.now_s
        self._world.tell(self._host, "FSD is ordered")

    def forget_orders(self) -> None:
        """The power was cut as ordered, and is back."""
        self.forced, self._low_said_s = False, None

    def found(self) -> None:
        """The source answers again."""
        if self.lost:
            self.lost, self.troubled_s = False, self._world.now_s

    def reset_watch(self) -> None:
        """A new supervisor knows nothing yet."""
        self.memory = PowerMemory()
        self.ready = False

    def _dies(self, which: int) -> None:
        if which != self._death or not self._host.powered:
            return
        self.deaths += 1
        self._world.tell(self._host, "THE BATTERY IS EMPTY")
        self._world.checker.battery_died(self._host, self.promised_s())
        self._host.power_cut()

    # what is true

    def left_s(self) -> float:
        """Seconds that the battery gives from now on."""
        passed_s = self._world.now_s - self._since_s
        if self.mains:
            return min(self._full_s, self._charge_s + passed_s * RECHARGE)
        return self._charge_s - passed_s

    def promised_s(self) -> float | None:
        """Since when an outage goes on that was announced, on a battery that is as good as its word, and that began
        within the budget: whoever had no standby, or has one only just now, was promised nothing."""
        announced = self._believed_s is not None and self._believed_s - self._since_s < ANNOUNCED_S
        return (
            self._since_s
            if announced and self._within and self.kind == "honest" and not self.forced
            else None
        )

    def deserves_an_outage(self) -> bool:
        """Whether one who saw everything would act: long enough on battery, not over for long; or called low."""
        now_s = self._world.now_s
        # A source that is lost leaves an outage standing, for as long as nothing else is heard.
        linger_s = POLICY.settle_s + POLICY.stale_s + 3.0
        if self.forced or now_s - self._low_heard_s < linger_s:
            return True
        return any(
            min(until, now_s) - since > POLICY.debounce_s * 0.95 and now_s - until < linger_s
            for since, until in self._runs[-8:]
        )

    def low_for_s(self) -> float:
        """Seconds since the source, which can be asked, called the battery low."""
        if self._low_said_s is None or self.lost:
            return 0.0
        return self._world.now_s - max(self._low_said_s, self.troubled_s)

    def in_trouble(self) -> bool:
        """Whether something is the matter, or was just now."""
        return (
            not (self.mains and self._host.powered)
            or self.lost
            or self.forced
            or self._world.now_s - self.troubled_s < TROUBLE_S
        )

    # what is seen

    def _says(self) -> str:
        return f"the battery says {self._said_s():.2f} s and is {self.kind}, truly {self.left_s():.2f} s"

    def _said_s(self) -> float:
        left_s = self.left_s()
        match self.kind:
            case "early":
                return left_s * 3
            case "collapse" if left_s > COLLAPSE_S:
                return left_s * 3
            case "collapse":
                return left_s
        return left_s + LOW_S + BUDGET.margin_s if left_s > 0 else 0.0

    def poll(self) -> None:
        """The supervisor's watch looks."""
        limit, store = self.limit(), self._host.store
        if limit is None or store is None:
            self._within = False
        elif len(store.log) <= limit:
            self._within = True
        now_ns = self._host.clock.now_ns()
        if self.lost:
            reading = unknown(now_ns, "the source does not answer")
        else:
            said_s = self._said_s()
            battery = not self.mains or self.forced
            low = self.forced or (not self.mains and self.kind == "collapse" and self.left_s() <= COLLAPSE_S)
            if low:
                self._low_heard_s = self._world.now_s
            if low and self._low_said_s is None:
                self._low_said_s = self._world.now_s
                self._world.tell(self._host, "the battery is called low")
            reading = PowerReading(
                now_ns, on_battery=battery, low=low, forced=self.forced, runtime_s=said_s, runtime_low_s=LOW_S
            )
        before = self.memory
        self.memory = decide(reading, before, POLICY, now_ns)
        if self.memory.power.outage and not self.mains and self._believed_s is None:
            self._believed_s = self._world.now_s
        if self.memory.power is not before.power:
            self._world.tell(self._host, f"sees: {self.memory.power} ({self.memory.reason})")
            self._host.step()

    def view(self) -> PowerView:
        seconds, why = usable_s(self.memory, BUDGET, self._host.clock.now_ns())
        return PowerView(self.memory.power, self.memory.reason, seconds, why)

    def limit(self) -> int | None:
        """How far the store may grow, in commits; None: as far as it likes. As the shipper works it out."""
        host = self._host
        seconds = usable_s(self.memory, BUDGET, host.clock.now_ns())[0]
        if seconds is None or not host.policy.peers:
            return None
        second = BUDGET.second_threshold
        room = [
            acked + int(second * budget_bytes(seconds, self._world.rate(host.name, name) * BANDWIDTH_SHARE))
            for name, acked in host.acked.items()
        ]
        return max(room, default=None)  # nobody to drain to: nothing is held back


def outage(world: World, feed: Feed, back: Callable[[], None]) -> str:
    """An outage of a kind that chance chooses; `back`: the mains return. What it is, in words."""
    rng = world.power_rng
    kind = rng.choice(("flap", "flaps", "short", "short", "long", "long", "long", "long"))
    match kind:
        case "flap":
            spans = [rng.uniform(0.02, 0.25)]
        case "flaps":
            spans = [rng.uniform(0.02, 0.25) for _ in range(rng.randint(3, 6) * 2 - 1)]
        case "short":
            spans = [rng.uniform(0.35, 2.5)]
        case _:
            spans = [feed.left_s() + rng.uniform(0.8, 2.5)]
    feed.set_mains(False)
    at_s = 0.0
    for number, span_s in enumerate(spans):
        at_s += span_s
        last = number == len(spans) - 1
        on = number % 2 == 0
        world.after(at_s, back if last else lambda on=on: feed.set_mains(on))  # type: ignore[misc]
    return f"outage ({kind}, {at_s:.2f} s)"
