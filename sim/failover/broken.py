"""Variants that are wrong on purpose, to see that the checker catches them. The product's code is not touched: a
variant falsifies what `decide` sees, changes what it answers, or changes a rule of the simulated engine or lease."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from sustain.failover.decide import decide
from sustain.failover.lease.record import RATE_MARGIN, LeaseGrant, LeaseState
from sustain.failover.types import (
    Announce,
    CloseEpoch,
    Observation,
    Plan,
    Policy,
    ReleaseLease,
    Renew,
    Role,
    StartCommand,
    State,
    StopCommand,
    TryAcquire,
)
from sustain.powerfail.decide import Power
from sustain.testing import MemoryLease

Decide = Callable[[Observation, State, Policy, int], Plan]


def _same(observation: Observation) -> Observation:
    return observation


def _renew(
    lease: MemoryLease, grant: LeaseGrant, store_uuid: str, state: LeaseState | None
) -> LeaseGrant | None:
    return lease.renew(grant, store_uuid, state)


@dataclass(frozen=True)
class Variant:
    """How a run differs from what is right."""

    name: str
    why: str = ""
    see: Callable[[Observation], Observation] = _same
    decide: Decide = decide
    renew: Callable[[MemoryLease, LeaseGrant, str, LeaseState | None], LeaseGrant | None] = _renew
    margin: float = RATE_MARGIN
    engine_fences: bool = True
    engine_budgets: bool = True
    power: bool | None = False  # whether power sources are watched, and fail; None: in some of the runs
    counts_from_end: bool = False
    handovers: bool = False  # whether an operator asks for them in all runs
    hosts: int | None = None  # only runs in which it can show, to find it soon
    finishes: bool = False
    kinds: tuple[str, ...] = ()  # of faults; all, when empty
    within: int = 200  # seeds in which it must be caught
    shows: int | None = None  # one of these in which it was caught: what is rare is tried there first


CORRECT = Variant("correct", power=None)


def _blind(
    lease: MemoryLease, grant: LeaseGrant, store_uuid: str, state: LeaseState | None
) -> LeaseGrant | None:
    """Write without comparing."""
    lease._access("write")
    shared = lease._store
    record = replace(
        grant.record,
        version=shared.record.version + 1,
        counter=grant.record.counter + 1,
        store_uuid=store_uuid or grant.record.store_uuid,
        state=state or grant.record.state,
    )
    shared.record = record
    return lease._granted(record, lease._clock.boottime_ns())


def _whole(observation: Observation) -> Observation:
    store = observation.store
    return observation if store is None else replace(observation, store=replace(store, problem=""))


def _alone(observation: Observation) -> Observation:
    return replace(observation, candidates=())


def _stale(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    """Believes announcements that were made before the lease ran out; they are made seldom, so that it shows soon."""
    version = 0 if observation.lease is None else observation.lease.record.version
    fresh = tuple(
        replace(each, candidate=replace(each.candidate, round=version)) for each in observation.candidates
    )
    return decide(replace(observation, candidates=fresh), state, _Seldom(**_fields(policy)), now_ns)


class _Seldom(Policy):
    @property
    def beat_ns(self) -> int:
        return 2 * self.ttl_ns

    @property
    def candidate_life_ns(self) -> int:
        return 4 * self.ttl_ns


def _fields(policy: Policy) -> dict[str, Any]:
    return {each.name: getattr(policy, each.name) for each in fields(policy)}


def _old_news(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    """After a pause, takes what it saw before for what is now."""
    view = observation.lease
    if view is not None:
        observation = replace(observation, lease=replace(view, read_ns=now_ns))
    return decide(observation, state, policy, now_ns)


def _carries_on(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    plan = decide(observation, state, policy, now_ns)
    return replace(plan, actions=tuple(each for each in plan.actions if not isinstance(each, StopCommand)))


def _releases_first(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    """Gives the lease back while the command is still ending."""
    plan = decide(observation, state, policy, now_ns)
    if observation.grant is None or not any(isinstance(each, StopCommand) for each in plan.actions):
        return plan
    if observation.lease_busy:
        return plan
    early = ReleaseLease("too early", LeaseState.RELEASED, None)
    return replace(plan, actions=(*plan.actions, early))


def _accepts_loss(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    return decide(observation, state, replace(policy, accept_loss=True), now_ns)


def _reruns(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    return decide(observation, state, replace(policy, rerun=True), now_ns)


def _mute(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    plan = decide(observation, state, policy, now_ns)
    return replace(plan, actions=tuple(each for each in plan.actions if not isinstance(each, Announce)))


def _never_takes(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    plan = decide(observation, state, policy, now_ns)
    held = observation.lease is not None and observation.lease.record.state.owned
    kept = tuple(each for each in plan.actions if not (isinstance(each, TryAcquire) and held))
    return replace(plan, actions=kept)


def _never_renews(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    plan = decide(observation, state, policy, now_ns)
    kept = tuple(each for each in plan.actions if not isinstance(each, Renew) or each.store_uuid)
    return replace(plan, actions=kept)


def _seen_as(*wrong: Power) -> Callable[[Observation], Observation]:
    """Takes other states of the power for an outage."""

    def see(observation: Observation) -> Observation:
        power = observation.power
        if power is None or power.power not in wrong:
            return observation
        return replace(observation, power=replace(power, power=Power.ON_BATTERY))

    return see


def _saved_early(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    """Says that all is saved as soon as the command is down."""
    plan = decide(observation, state, policy, now_ns)
    leaving = plan.state.leaving
    if leaving is None or not leaving.outage or observation.lease_busy or observation.command.running:
        return plan
    if observation.grant is None or not leaving.drain_from_ns:
        return plan
    return replace(plan, actions=(*plan.actions, ReleaseLease("too early", LeaseState.SAVED, None)))


def _ready_early(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    """Takes the end of the drain for granted."""
    ahead = tuple(
        replace(each, acked=None if observation.store is None else observation.store.end)
        for each in observation.destinations
    )
    outage = state.leaving is not None and state.leaving.outage
    seen = replace(observation, destinations=ahead) if outage else observation
    return decide(seen, state, policy, now_ns)


def _swapless(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    """Goes on in the old epoch when the power is back, whoever has the lease."""
    plan = decide(observation, state, policy, now_ns)
    kept = tuple(each for each in plan.actions if not isinstance(each, CloseEpoch))
    power, outage = observation.power, plan.state.outage
    back = power is not None and not power.fails and outage is not None and outage.down_ns != 0
    done = observation.lease is not None and observation.lease.record.state is LeaseState.DONE
    if (
        back
        and not done
        and plan.state.role in (Role.STANDBY, Role.SAVED)
        and not observation.command.running
    ):
        assert outage is not None
        kept = (*kept, StartCommand("the power is back", outage.epoch, first=False))
    return replace(plan, actions=kept)


def _stays(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    """Does not believe that the power is back."""
    power = observation.power
    if state.role is Role.SAVED and power is not None:
        observation = replace(observation, power=replace(power, power=Power.ON_BATTERY))
    return decide(observation, state, policy, now_ns)


def _low_is_nothing(observation: Observation) -> Observation:
    power = observation.power
    if power is None or not power.ending:
        return observation
    return replace(observation, power=replace(power, power=Power.ON_BATTERY, usable_s=100.0))


def _given_blindly(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    """Takes for granted that the successor holds everything, once the command is told to stop."""
    leaving, store = state.leaving, observation.store
    if leaving is not None and leaving.to and store is not None:
        ahead = tuple(replace(each, acked=store.end) for each in observation.destinations)
        observation = replace(observation, destinations=ahead)
    return decide(observation, state, policy, now_ns)


def _unreserved(observation: Observation) -> Observation:
    view = observation.lease
    if view is None:
        return observation
    return replace(observation, lease=replace(view, record=replace(view.record, successor="")))


def _any_request(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    """Takes a request of an earlier epoch for one that is meant for this one."""
    request, grant = observation.request, observation.grant
    if request is not None and grant is not None:
        request = replace(request, epoch=grant.epoch, holder=policy.name, successor="")
        observation = replace(observation, request=request)
    return decide(observation, state, policy, now_ns)


def _stops_first(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    return decide(observation, state, replace(policy, little_bytes=1 << 40), now_ns)


VARIANTS = (
    Variant("no-margin", "clock rates are taken to be equal", margin=0.0, shows=23),
    Variant(
        "counts-from-end",
        "the deadline counts from the end of the write",
        counts_from_end=True,
        shows=46,
    ),
    Variant("blind-renewal", "renews without comparing", renew=_blind),
    Variant("engine-ignores-fence", "commits are not refused past the deadline", engine_fences=False),
    Variant("carries-on", "the command is never told to stop", decide=_carries_on),
    Variant("takes-incomplete", "takes over with half a snapshot", see=_whole),
    Variant("no-election", "does not look at other standbys", see=_alone, hosts=3),
    Variant("mute", "does not tell others what it holds", decide=_mute, hosts=3),
    Variant(
        "stale-election",
        "believes what was said before the lease ran out",
        decide=_stale,
        hosts=3,
        kinds=("cut-link", "crash"),  # one lags, then the primary dies
        shows=64,
        within=200,
    ),
    Variant(
        "old-news",
        "acts on what it read before a pause",
        decide=_old_news,
        hosts=3,
        kinds=("pause",),
        within=600,
    ),
    Variant("releases-first", "gives the lease back before the command is gone", decide=_releases_first),
    Variant("accepts-loss", "takes over although a primary left with more", decide=_accepts_loss, shows=20),
    Variant("starts-finished", "starts again what was finished", decide=_reruns, finishes=True),
    Variant("never-takes", "leaves a lease that ran out alone", decide=_never_takes),
    Variant("never-renews", "lets its lease run out again and again", decide=_never_renews),
    Variant("acts-on-a-flap", "takes a flap for an outage", see=_seen_as(Power.FLAPPING), power=True),
    Variant("acts-on-silence", "takes a lost source for an outage", see=_seen_as(Power.UNKNOWN), power=True),
    Variant("saved-early", "says SAVED while it drains", decide=_saved_early, power=True),
    Variant("drain-for-granted", "believes that others hold everything", decide=_ready_early, power=True),
    Variant("swapless", "goes back to running without the swap", decide=_swapless, power=True, shows=78),
    Variant("ignores-low", "sits a low battery out", see=_low_is_nothing, power=True, shows=57),
    Variant("stays-saved", "never comes back when AC does", decide=_stays, power=True),
    Variant(
        "given-blindly", "hands over without waiting for the rest", decide=_given_blindly, handovers=True
    ),
    Variant("unreserved", "takes what was handed over to another", see=_unreserved, hosts=3, handovers=True),
    Variant("any-request", "acts on requests of earlier epochs", decide=_any_request, handovers=True),
    Variant(
        "stops-first",
        "stops the command before a successor has caught up",
        decide=_stops_first,
        handovers=True,
        power=None,
    ),
    Variant(
        "no-budget",
        "commits do not wait for the battery's budget",
        engine_budgets=False,
        power=True,
        shows=47,
    ),
)
