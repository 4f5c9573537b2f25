"""Variants that are wrong on purpose, to see that the checker catches them. The product's code is not touched: a
variant falsifies what `decide` sees, changes what it answers, or changes a rule of the simulated engine or lease."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sustain.failover.decide import decide
from sustain.failover.lease.record import RATE_MARGIN, LeaseGrant, LeaseState
from sustain.failover.types import (
    Announce,
    Observation,
    Plan,
    Policy,
    ReleaseLease,
    Renew,
    State,
    StopCommand,
    TryAcquire,
)
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
    counts_from_end: bool = False
    hosts: int | None = None  # only runs in which it can show, to find it soon
    finishes: bool = False
    kinds: tuple[str, ...] = ()  # of faults; all, when empty
    within: int = 200  # seeds in which it must be caught


CORRECT = Variant("correct")


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
    """Believes announcements that were made before the lease ran out."""
    version = 0 if observation.lease is None else observation.lease.record.version
    fresh = tuple(
        replace(each, candidate=replace(each.candidate, round=version)) for each in observation.candidates
    )
    return decide(replace(observation, candidates=fresh), state, policy, now_ns)


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


VARIANTS = (
    Variant("no-margin", "clock rates are taken to be equal", margin=0.0),
    Variant("counts-from-end", "the deadline counts from the end of the write", counts_from_end=True),
    Variant("blind-renewal", "renews without comparing", renew=_blind),
    Variant("engine-ignores-fence", "commits are not refused past the deadline", engine_fences=False),
    Variant("carries-on", "the command is never told to stop", decide=_carries_on),
    Variant("takes-incomplete", "takes over with half a snapshot", see=_whole),
    Variant("no-election", "does not look at other standbys", see=_alone, hosts=3),
    Variant("mute", "does not tell others what it holds", decide=_mute, hosts=3),
    Variant("stale-election", "believes what was said before the lease ran out", decide=_stale, hosts=3),
    Variant(
        "old-news",
        "acts on what it read before a pause",
        decide=_old_news,
        hosts=3,
        kinds=("pause",),
        within=600,
    ),
    Variant("releases-first", "gives the lease back before the command is gone", decide=_releases_first),
    Variant("accepts-loss", "takes over although a primary left with more", decide=_accepts_loss),
    Variant("starts-finished", "starts again what was finished", decide=_reruns, finishes=True),
    Variant("never-takes", "leaves a lease that ran out alone", decide=_never_takes),
    Variant("never-renews", "lets its lease run out again and again", decide=_never_renews),
)
