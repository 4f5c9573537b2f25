"""When the next look cannot wait: only while something is done, and whose stalls end the wait."""

from pathlib import Path

import pytest

from sustain.clock import SystemClock
from sustain.errors import ConfigError
from sustain.schedulers.guest_memory.config import GuestConfig, GuestsConfig
from sustain.schedulers.guest_memory.decide import decide
from sustain.schedulers.guest_memory.model import Balloon, Effect, Observation, Policy
from sustain.schedulers.guest_memory.plan import Plan
from sustain.schedulers.guest_memory.scheduler import GuestMemory
from sustain.schedulers.guest_memory.urgency import Urgency, check, wait_s
from tests.schedulers.guest_memory.plans import GIB, MIB, NOW_S, guest, observation

URGENCY = Urgency(period_s=2)
POLICY = Policy(rise_s=0.001)


def plan(*seen: Observation) -> Plan:
    """The last of several observations, one each 10 s."""
    state = None
    for each in seen:
        decision = decide(each, state, POLICY, each.at_s)
        state = decision.state
    return decision.plan


def stalled(available: float, **figures: float) -> Plan:
    """A guest that waits for memory a fifth of the time, with half of it in its balloon."""
    return plan(
        *(
            observation(
                guest(balloon_bytes=2 * GIB, stall_us=stall, classes_at_s=at, **figures),
                available=available,
                at_s=at,
            )
            for stall, at in ((0, NOW_S), (2e6, NOW_S + 10))
        )
    )


def wait(of: Plan, *effects: Effect, period_s: float = 10) -> float:
    return wait_s(of, effects, URGENCY, period_s)


def test_at_ease_it_waits_for_its_period() -> None:
    assert wait(plan(observation(guest(), available=8 * GIB))) == 10


def test_working_towards_the_goal_is_no_hurry() -> None:
    soft = plan(observation(guest(), available=400 * MIB))
    assert soft.host_state == "soft"
    assert soft.actions
    assert wait(soft) == 10


def test_a_guest_that_gets_memory_since_it_waits_for_it_is_looked_at_soon() -> None:
    found = stalled(8 * GIB)
    assert found.guest("a").pressed
    assert found.actions
    assert wait(found) == 2
    assert wait(found, period_s=1) == 1


def test_one_that_nothing_can_be_given_is_not() -> None:
    found = stalled(8 * GIB, size_bytes=2 * GIB)
    assert found.guest("a").pressed
    assert not found.actions
    assert wait(found) == 10


def test_a_host_that_is_short_is_looked_at_soon_while_it_helps() -> None:
    hard = plan(observation(guest(), available=150 * MIB))
    assert hard.host_state == "hard"
    assert wait(hard) == 2
    assert wait(plan(observation(available=150 * MIB))) == 10


def test_an_action_that_is_under_way_is_looked_at_soon() -> None:
    action = Balloon(guest="a", life="1:1", from_bytes=2, to_bytes=1, reason="")
    idle = plan(observation(guest(), available=8 * GIB))
    assert wait(idle, Effect(action=action, done=False, under_way=True)) == 2
    assert wait(idle, Effect(action=action, done=False)) == 10


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        (Urgency(period_s=0.1), "period"),
        (Urgency(window_s=0.1, stall_s=0.05), "window"),
        (Urgency(window_s=20), "window"),
        (Urgency(stall_s=0), "stall"),
        (Urgency(stall_s=3), "stall"),
    ],
)
def test_what_cannot_be_meant(wrong: Urgency, key: str) -> None:
    with pytest.raises(ConfigError, match=f"guest_memory.urgency.{key}") as caught:
        check(wrong)
    assert caught.value.hint
    check(Urgency())


def test_the_host_and_the_containers_that_are_there_are_watched(tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    (box / "memory.current").write_text("0\n")
    ways = GuestsConfig(
        guests=tuple(
            GuestConfig(name=name, kind="cgroup", cgroup=str(tmp_path / name)) for name in ("box", "gone")
        )
    )

    def watched(urgency: Urgency) -> list[tuple[str, Path, float, float, str]]:
        scheduler = GuestMemory(ways, Policy(), 10, SystemClock(), None, urgency)
        try:
            return [tuple(each) for each in scheduler.alarms()]
        finally:
            scheduler.close()

    assert watched(Urgency(stall_s=0.3, window_s=4)) == [
        ("the host", Path("/proc/pressure/memory"), 0.3, 4, ""),
        ("guest box", box / "memory.pressure", 0.3, 4, str(box.stat().st_ino)),
    ]
    assert watched(Urgency(watch=False)) == []
