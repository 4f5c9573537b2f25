"""The guest memory scheduler on real guests: what it sees of each, what it does to it, and what befalls them meanwhile.

The guests lie, hang, die and reboot for real. What the scheduler says of them is held against a monitor of the test's
own, the guest's workload, and the kernel of this host.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.schedulers.guest_memory.act import Actuator
from sustain.schedulers.guest_memory.config import GuestConfig, GuestsConfig
from sustain.schedulers.guest_memory.explain import explain
from sustain.schedulers.guest_memory.model import Balloon, Bounds, Effect, Guest, Observation, PageOut, Policy
from sustain.schedulers.guest_memory.sense import Sensor
from sustain.schedulers.journal import Journal
from tests.lab.guests import GuestVm, Images, boot, host_swap, until
from tests.lab.small_host import SmallHost
from tests.lab.vm import LabError

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

MIB = 1 << 20
TIMEOUT_S = 2.0
Boot = Callable[..., GuestVm]


def ways(*guests: GuestVm) -> GuestsConfig:
    return GuestsConfig(
        guests=tuple(
            GuestConfig(
                name=guest.name,
                qmp=str(guest.qmp_path),
                guest_agent=str(guest.agent_path) if guest.agent else None,
            )
            for guest in guests
        ),
        timeout_s=TIMEOUT_S,
        statistics_period_s=1,
    )


def seen(observation: Observation, name: str) -> Guest:
    (guest,) = (each for each in observation.guests if each.name == name)
    return guest


def read_until(sensor: Sensor, condition: Callable[[Observation], bool]) -> Observation:
    last: list[Observation] = []

    def read() -> bool:
        last.append(sensor.read())
        return condition(last[-1])

    until(read)
    return last[-1]


class Scene:
    """A sensor and an actuator for some guests."""

    def __init__(self, place: Path, *guests: GuestVm, limit_s: float = 10.0) -> None:
        self.sensor = Sensor(ways(*guests))
        self.journal = Journal(place / "journal")
        self.actuator = Actuator(self.sensor.handles, self.journal, limit_s=limit_s)

    def life(self, guest: GuestVm) -> str:
        life = self.sensor.handles[guest.name].life()
        assert life is not None
        return life

    def balloon(self, guest: GuestVm, to_bytes: float) -> Balloon:
        now = guest.balloon_bytes()
        return Balloon(
            guest=guest.name, life=self.life(guest), from_bytes=now, to_bytes=to_bytes, reason="a test"
        )

    def page_out(self, guest: GuestVm, amount_bytes: float) -> PageOut:
        return PageOut(guest=guest.name, life=self.life(guest), amount_bytes=amount_bytes, reason="a test")

    def close(self) -> None:
        self.actuator.close()
        self.journal.close()
        self.sensor.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    scenes: list[Scene] = []

    def make(*guests: GuestVm, **options: float) -> Scene:
        scenes.append(Scene(tmp_path, *guests, **options))
        return scenes[-1]

    yield make
    for each in scenes:
        each.close()


@pytest.fixture(scope="module")
def mixed(guest_images: Images) -> Iterator[dict[str, GuestVm]]:
    """One of each kind; tests leave them as they found them."""
    kinds = (
        GuestVm("cache", guest_images, deflate_on_oom=True),
        GuestVm("cold", guest_images),
        GuestVm("busy", guest_images),
        GuestVm("mute", guest_images, agent=False, deflate_on_oom=True),
        GuestVm("bare", guest_images, agent=False, driver=False),
    )
    with boot(*kinds):
        guests = {guest.name: guest for guest in kinds}
        guests["cold"].do("anon", 100 * MIB)
        for _ in range(2):
            guests["cold"].do("age")
        guests["cache"].do("cache", 100 * MIB)
        guests["busy"].do("busy", 120 * MIB)
        guests["mute"].do("cache", 60 * MIB)
        guests["bare"].do("anon", 60 * MIB)
        yield guests


def test_each_guest_is_seen_by_the_best_that_there_is(
    mixed: dict[str, GuestVm], scene: Callable[..., Scene], no_host_swap: None
) -> None:
    began_s = time.clock_gettime(time.CLOCK_BOOTTIME)  # the guests have what they were told to take
    sensor = scene(*mixed.values()).sensor
    now = read_until(
        sensor,
        lambda each: (
            [guest.source for guest in each.guests] == ["guest-agent"] * 3 + ["balloon", "none"]
            and all(guest.can for guest in each.guests[:4])  # once the drivers were asked, and have answered
            # A driver's first statistics are those of its guest's boot, which may be a few seconds ago only.
            and all((guest.figures.classes_at_s or 0) > began_s for guest in each.guests[:4])
        ),
    )
    cache, cold, busy, mute, bare = now.guests
    assert cache.figures.inactive_buffer_bytes == pytest.approx(100 * MIB, abs=12 * MIB)
    assert cold.figures.inactive_anonymous_bytes == pytest.approx(105 * MIB, abs=12 * MIB)
    assert busy.figures.active_anonymous_bytes == pytest.approx(125 * MIB, abs=12 * MIB)
    assert mute.figures.buffer_bytes == pytest.approx(66 * MIB, abs=12 * MIB)
    assert mute.figures.inactive_anonymous_bytes is None
    assert any("no way to a guest agent" in problem for problem in mute.problems)
    assert bare.figures.free_bytes is None
    assert any("no driver" in problem for problem in bare.problems)
    assert [guest.can for guest in now.guests] == [("balloon",)] * 4 + [()]
    assert [guest.deflates for guest in now.guests] == [True, False, False, True, None]
    for guest in now.guests:
        assert guest.figures.size_bytes == 256 * MIB
        assert guest.figures.resident_bytes == pytest.approx(mixed[guest.name].resident_bytes(), abs=24 * MIB)
        assert any("no swap" in problem for problem in guest.problems)
    assert now.host.swap_total_bytes == 0


def test_an_agent_that_hangs_and_one_that_lies_harm_nobody_else(
    mixed: dict[str, GuestVm], scene: Callable[..., Scene]
) -> None:
    sensor = scene(*mixed.values()).sensor
    before = read_until(sensor, lambda each: seen(each, "cold").source == "guest-agent")
    assert seen(before, "cold").figures.classes_at_s is not None
    mixed["cold"].hang_agent()
    try:
        hung_at_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        sensor.read()  # waits for it this once
        now = read_until(
            sensor,
            lambda each: (
                bool(seen(each, "cold").problems)
                and each.at_s - (seen(each, "busy").figures.classes_at_s or 0) < TIMEOUT_S + 3
            ),
        )
        cold = seen(now, "cold")
        if cold.source == "guest-agent":  # what it said last, with its age; later its balloon's driver speaks
            assert cold.figures.classes_at_s is not None
            assert cold.figures.classes_at_s <= hung_at_s + 1
    finally:
        mixed["cold"].resume_agent()
    back = read_until(sensor, lambda each: (seen(each, "cold").figures.classes_at_s or 0) > now.at_s)
    assert seen(back, "cold").source == "guest-agent"


def test_statistics_that_contradict_themselves_are_not_used(
    boot_guest: Boot, scene: Callable[..., Scene]
) -> None:
    guest = boot_guest("liar")
    sensor = scene(guest).sensor
    read_until(sensor, lambda each: seen(each, "liar").source == "guest-agent")
    text = guest.read("/proc/meminfo")
    free = next(line for line in text.splitlines() if line.startswith("MemFree:"))
    guest.forge("/proc/meminfo", text.replace(free, "MemFree: 9999999 kB"))
    now = read_until(sensor, lambda each: seen(each, "liar").source != "guest-agent")
    liar = seen(now, "liar")
    assert any("contradict" in problem for problem in liar.problems)
    assert liar.source == "balloon"  # whose driver asks the kernel itself
    assert liar.figures.free_bytes is not None
    assert liar.figures.free_bytes < 256 * MIB


def test_balloons_move_memory_and_are_put_back(
    mixed: dict[str, GuestVm], scene: Callable[..., Scene]
) -> None:
    stage = scene(*mixed.values(), limit_s=60)
    cache, cold, bare = mixed["cache"], mixed["cold"], mixed["bare"]
    read_until(stage.sensor, lambda each: all(guest.can for guest in each.guests if guest.name != "bare"))
    resident = cache.resident_bytes()
    effects = stage.actuator.carry_out(
        [stage.balloon(cache, 160 * MIB), stage.balloon(bare, 160 * MIB), stage.balloon(cold, 40 * MIB)]
    )
    took, no_driver, too_much = effects
    assert took.done, effects
    assert took.freed_bytes == pytest.approx(resident - cache.resident_bytes(), abs=8 * MIB)
    # A balloon that is near its goal counts as there, and goes on.
    until(lambda: cache.resident_bytes() <= 161 * MIB)
    assert not no_driver.done
    assert "no driver" in (no_driver.problem or "")
    assert not too_much.done, effects  # what it holds it cannot give: it has no swap
    assert "gives no more" in (too_much.problem or "")
    assert cold.balloon_bytes() > 100 * MIB
    report = stage.actuator.restore()
    assert not report.failed
    until(lambda: all(guest.balloon_bytes() == 256 * MIB for guest in mixed.values()))
    assert stage.journal.entries() == ()


def test_pages_go_to_swap_where_there_is_some_and_nowhere_else(
    mixed: dict[str, GuestVm], scene: Callable[..., Scene]
) -> None:
    stage = scene(*mixed.values())
    bare = mixed["bare"]
    with host_swap(512):
        (effect,) = stage.actuator.carry_out([stage.page_out(bare, 40 * MIB)])
        assert effect.done
        assert 30 * MIB < bare.swapped_bytes() < 60 * MIB
        observation = read_until(
            stage.sensor, lambda each: (seen(each, "bare").figures.host_swapped_bytes or 0) > 0
        )
        assert seen(observation, "bare").can == ("pageout",)
        assert bare.do("anon", 70 * MIB) == ""
    assert bare.swapped_bytes() == 0


def test_without_swap_nothing_is_paged_out_and_it_says_so(
    mixed: dict[str, GuestVm], scene: Callable[..., Scene], no_host_swap: None
) -> None:
    stage = scene(*mixed.values())
    resident = mixed["cold"].resident_bytes()
    (effect,) = stage.actuator.carry_out([stage.page_out(mixed["cold"], 40 * MIB)])
    assert not effect.done
    assert "no swap" in (effect.problem or "")
    assert mixed["cold"].resident_bytes() >= resident - MIB


def during(stage: Scene, action: Balloon, what: Callable[[], None]) -> Effect:
    """The effect of an action during which something happens."""
    effects: list[Effect] = []
    thread = threading.Thread(target=lambda: effects.extend(stage.actuator.carry_out([action])))
    thread.start()
    what()
    thread.join(30)
    assert not thread.is_alive()
    return effects[0]


def test_a_guest_that_dies_in_the_middle(boot_guest: Boot, scene: Callable[..., Scene]) -> None:
    guest = boot_guest("dies")
    guest.do("busy", 150 * MIB)  # so that its balloon takes its time
    stage = scene(guest)
    action = stage.balloon(guest, 64 * MIB)

    def crash() -> None:
        until(lambda: guest.balloon_bytes() < 250 * MIB)
        guest.kill()

    effect = during(stage, action, crash)
    assert not effect.done
    assert effect.problem
    assert [each for each in stage.sensor.read().guests if each.name == "dies"] == []
    (again,) = stage.actuator.carry_out([action])
    assert "gone" in (again.problem or "")
    assert not stage.actuator.restore().failed
    assert stage.journal.entries() == ()


def test_a_guest_that_reboots_in_the_middle_is_no_other_guest(
    boot_guest: Boot, scene: Callable[..., Scene]
) -> None:
    guest = boot_guest("reboots")
    guest.do("busy", 150 * MIB)
    stage = scene(guest)
    action = stage.balloon(guest, 100 * MIB)

    def reset() -> None:
        until(lambda: guest.balloon_bytes() < 250 * MIB)
        guest.reset()
        guest.wait_ready()

    effect = during(stage, action, reset)
    assert not effect.done
    assert "the balloon has come from" in (effect.problem or "")
    (effect,) = stage.actuator.carry_out([action])  # the same process: its life goes on
    assert effect.done
    assert guest.resident_bytes() <= 101 * MIB
    observation = read_until(stage.sensor, lambda each: seen(each, "reboots").source == "guest-agent")
    assert seen(observation, "reboots").figures.balloon_bytes == 100 * MIB
    assert not stage.actuator.restore().failed
    until(lambda: guest.balloon_bytes() == 256 * MIB)
    assert guest.work() == 0


def test_qmp_that_disappears_is_said_and_the_rest_goes_on(
    boot_guest: Boot, scene: Callable[..., Scene]
) -> None:
    guest = boot_guest("hidden")
    stage = scene(guest)
    action = stage.balloon(guest, 160 * MIB)
    read_until(stage.sensor, lambda each: seen(each, "hidden").source == "guest-agent")
    (effect,) = stage.actuator.carry_out([action])
    assert effect.done
    guest.hide_qmp()
    now = read_until(stage.sensor, lambda each: "balloon" not in seen(each, "hidden").can)
    hidden = seen(now, "hidden")
    assert any("hypervisor does not answer" in problem for problem in hidden.problems)
    assert hidden.source == "guest-agent"
    assert hidden.figures.resident_bytes == pytest.approx(guest.resident_bytes(), abs=24 * MIB)
    (effect,) = stage.actuator.carry_out([stage.balloon(guest, 128 * MIB)])
    assert not effect.done
    assert "QMP" in (effect.problem or "")
    report = stage.actuator.restore()
    assert [each.outcome for each in report.undone if each.entry.kind == "balloon"] == ["failed"]
    assert [each.kind for each in stage.journal.entries()] != []  # not forgotten: it is still to be put back
    assert guest.work() == 0
    with pytest.raises(HostError, match="QMP"):  # nor can the statistics be switched off
        stage.sensor.close()
    guest.kill()


def rate(guest: GuestVm, seconds: float) -> float:
    """Pages per second that its workload goes through."""
    began_s, before = time.monotonic(), guest.work()
    until(lambda: time.monotonic() > began_s + seconds)
    return (guest.work() - before) / (time.monotonic() - began_s)


def test_memory_moves_to_the_guest_that_needs_it(
    boot_guests: Callable[..., tuple[GuestVm, ...]], tmp_path: Path
) -> None:
    """One guest has read much once; the other works on more than its balloon leaves it, and swaps. The host has no
    room for both."""
    idle, needy = boot_guests({"name": "idle"}, {"name": "needy", "swap_mib": 256})
    idle.do("cache", 170 * MIB)
    needy.do("swapon")
    needy.qmp("balloon", value=110 * MIB)
    until(lambda: needy.balloon_bytes() == 110 * MIB)
    needy.do("busy", 100 * MIB)
    before = rate(needy, seconds=2)
    total = idle.resident_bytes() + needy.resident_bytes() + 30 * MIB
    policy = Policy(goal_free_bytes=30 * MIB, least_change_bytes=4 * MIB, rise_s=2.0, fall_s=10.0)
    host = SmallHost(tmp_path, (idle, needy), ways(idle, needy), total, policy)
    with host.running() as loop:
        try:
            until(lambda: rate(needy, seconds=0.5) > 20 * before, limit_s=90)
        except LabError:
            raise AssertionError(host.story()) from None
        # How much is enough hangs on what the kernels keep to themselves.
        until(lambda: needy.balloon_bytes() > 120 * MIB and idle.balloon_bytes() < 250 * MIB)
        assert loop.failure == ""
    assert {each.__struct_config__.tag for each in host.actions} == {"balloon"}
    taken = [each for each in host.actions if isinstance(each, Balloon) and each.to_bytes < each.from_bytes]
    assert {each.guest for each in taken} == {"idle"}, host.story()
    assert host.least_available_bytes > 0
    # What was changed is put back when it stops.
    until(lambda: idle.balloon_bytes() == 256 * MIB and needy.balloon_bytes() == 110 * MIB)
    assert all(each.reason for each in host.actions)


def test_each_guest_gives_by_the_way_that_suits_it(mixed: dict[str, GuestVm], tmp_path: Path) -> None:
    """The host is short of more than balloons can give. Buffers and free memory go by balloon, cold anonymous memory of
    a guest without swap goes to the host's; of a guest of which nothing is known, nothing goes."""
    for guest in mixed.values():
        assert guest.balloon_bytes() == 256 * MIB
    held = {name: guest.resident_bytes() for name, guest in mixed.items()}
    policy = Policy(goal_free_bytes=380 * MIB, least_change_bytes=4 * MIB, step=0.1)
    with host_swap(1024):
        worked = mixed["busy"].work()
        host = SmallHost(
            tmp_path, tuple(mixed.values()), ways(*mixed.values()), sum(held.values()) + 10 * MIB, policy
        )
        with host.running() as loop:
            try:
                until(lambda: "pageout" in host.used("cold"))
                until(lambda: mixed["cache"].balloon_bytes() < 180 * MIB)
                until(lambda: mixed["mute"].balloon_bytes() < 220 * MIB)
            except LabError:
                raise AssertionError(host.story()) from None
            assert loop.failure == ""
            last = host.plans[-1]
        assert host.used("cache") == {"balloon"}, host.story()
        assert host.used("mute") == {"balloon"}, host.story()
        assert host.used("bare") == set(), host.story()
        assert any("unknown" in each for each in last.guest("bare").reasons)
        assert mixed["bare"].swapped_bytes() == 0
        assert mixed["busy"].work() > worked
        print({name: held[name] - guest.resident_bytes() >> 20 for name, guest in mixed.items()})
        print(explain(last, "cold", policy))
    until(lambda: all(guest.balloon_bytes() == 256 * MIB for guest in mixed.values()))


def test_an_agent_that_hangs_while_the_host_is_low_does_not_cost_its_guest_its_life(
    boot_guests: Callable[..., tuple[GuestVm, ...]], tmp_path: Path
) -> None:
    """What it said stays fresh for a while: it must not be taken twice. The balloon does not deflate by itself."""
    (guest,) = boot_guests({"name": "silent", "swap_mib": 192})
    guest.do("swapon")
    guest.do("busy", 8 * MIB)
    bounds = Bounds(clear_bytes=900 * MIB, soft_bytes=900 * MIB, hard_bytes=900 * MIB, low_bytes=900 * MIB)
    policy = Policy(goal_free_bytes=900 * MIB, bounds=bounds, least_change_bytes=4 * MIB)
    host = SmallHost(tmp_path, (guest,), ways(guest), guest.resident_bytes() + 20 * MIB, policy)
    with host.running() as loop:
        until(lambda: bool(host.plans) and host.plans[-1].sources == ("guest-agent",))
        guest.hang_agent()
        looks = len(host.plans)
        until(lambda: len(host.plans) > looks + 4)
        assert loop.failure == ""
        assert {plan.host_state for plan in host.plans} == {"low"}
        assert guest.balloon_bytes() < 256 * MIB, host.story()
        assert guest.work() > 0
        last = host.plans[-1].guest("silent")
        assert last.kept_bytes is not None
        assert guest.balloon_bytes() >= last.kept_bytes - MIB, host.story()
        guest.resume_agent()
    assert guest.do("anon", 16 * MIB) == ""


SQUEEZE = """
[agent]
listen = ""
state_dir = "{place}"

[guest_memory]
period = "1s"

[[guest_memory.guests]]
name = "{guest.name}"
qmp = "{guest.qmp_path}"
guest_agent = "{guest.agent_path}"

[guest_memory.policy]
goal_free = "1001GiB"
bounds = {{ clear = "1000GiB", soft = "1000GiB", hard = 2, low = 1 }}
"""


def test_a_killed_agent_leaves_a_guest_that_works_and_can_be_put_back(
    boot_guest: Boot, tmp_path: Path
) -> None:
    guest = boot_guest("squeezed")
    guest.do("cache", 120 * MIB)
    config = tmp_path / "agent.toml"
    config.write_text(SQUEEZE.format(place=tmp_path, guest=guest))
    agent = [sys.executable, "-m", "sustain.cli", "agent"]

    def squeeze() -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([*agent, "--config", str(config)])
        try:
            until(lambda: guest.balloon_bytes() < 200 * MIB or process.poll() is not None)
            assert process.poll() is None
        except BaseException:
            process.kill()
            raise
        return process

    def put_back() -> list[str]:
        command = [*agent, "restore", "--config", str(config), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        undone = json.loads(done.stdout)["undone"]
        return [each["outcome"] for each in undone if each["key"].startswith("balloon:")]

    process = squeeze()
    process.kill()  # in the middle of whatever it does
    process.wait(10)
    assert guest.balloon_bytes() < 220 * MIB
    guest.do("anon", 20 * MIB)
    assert put_back() == ["restored"]
    until(lambda: guest.balloon_bytes() == 256 * MIB)
    assert put_back() == []
    process = squeeze()
    process.terminate()
    assert process.wait(40) == 0
    until(lambda: guest.balloon_bytes() == 256 * MIB)
    assert put_back() == []
