"""The scheduler's senses on real guests: what they say is what the guest says of itself, by another way."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sustain.schedulers.guest_memory.config import GuestConfig, GuestsConfig
from sustain.schedulers.guest_memory.model import Guest, Observation
from sustain.schedulers.guest_memory.sense import Sensor
from tests.lab.guests import GuestVm, until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

MIB = 1 << 20
Boot = Callable[..., GuestVm]
Open = Callable[..., Sensor]


@pytest.fixture
def sensor() -> Iterator[Open]:
    opened: list[Sensor] = []

    def begin(*guests: GuestVm, **options: object) -> Sensor:
        configs = tuple(
            GuestConfig(
                name=each.name,
                qmp=str(each.qmp_path),
                guest_agent=str(each.agent_path) if each.agent else None,
            )
            for each in guests
        )
        # Two guests and a test share two processors here: an answer may take its time.
        config = GuestsConfig(guests=configs, timeout_s=4.0, statistics_period_s=1)
        opened.append(Sensor(config, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield begin
    for each in opened:
        for watch in each._watches.values():
            watch.retire()


def of(observation: Observation, guest: GuestVm) -> Guest:
    return next(each for each in observation.guests if each.name == guest.name)


def seen(sensor: Sensor, guest: GuestVm, wanted: Callable[[Guest], bool]) -> Guest:
    """The first observation of it that is as wanted."""
    found: list[Guest] = []

    def there() -> bool:
        found[:] = [each for each in sensor.read().guests if each.name == guest.name]
        return bool(found) and wanted(found[0])

    until(there)
    return found[0]


def test_a_guest_is_known_by_its_agent(boot_guest: Boot, sensor: Open) -> None:
    guest = boot_guest("agent")
    guest.do("cache", 60 * MIB)
    guest.do("anon", 40 * MIB)
    senses = sensor(guest)
    said = seen(senses, guest, lambda each: "balloon" in each.can)
    own = guest.meminfo()
    assert said.source == "guest-agent"
    assert len(said.boot) == 36
    assert said.life.startswith(f"{guest.pid}:")
    for name, field in (
        ("MemFree", said.figures.free_bytes),
        ("Inactive(file)", said.figures.inactive_buffer_bytes),
        ("Active(file)", said.figures.active_buffer_bytes),
        ("Inactive(anon)", said.figures.inactive_anonymous_bytes),
        ("Active(anon)", said.figures.active_anonymous_bytes),
    ):
        assert field == pytest.approx(own[name], abs=8 * MIB), name
    assert said.figures.total_bytes == own["MemTotal"]
    assert said.figures.size_bytes == said.figures.balloon_bytes == 256 * MIB
    assert said.figures.resident_bytes == pytest.approx(guest.resident_bytes(), abs=2 * MIB)
    assert said.figures.stall_us is not None
    assert said.figures.refault_bytes is not None
    handle = senses.handles["agent"]
    handle.set_balloon(128 * MIB)
    until(lambda: handle.balloon() == 128 * MIB)
    assert (handle.resident() or 0) <= 130 * MIB
    senses.close()
    assert guest.qmp("qom-get", path=balloon_of(guest), property="guest-stats-polling-interval") == 0


def balloon_of(guest: GuestVm) -> str:
    for place in ("/machine/peripheral", "/machine/peripheral-anon"):
        for each in guest.qmp("qom-list", path=place):
            if each["type"].startswith("child<virtio-balloon"):
                return f"{place}/{each['name']}"
    raise AssertionError("no balloon")


def test_without_an_agent_by_its_balloon_and_without_both_by_nothing(boot_guest: Boot, sensor: Open) -> None:
    guest = boot_guest("mute", agent=False)
    bare = boot_guest("bare", agent=False, driver=False)
    guest.do("cache", 60 * MIB)
    senses = sensor(guest, bare)
    own = guest.meminfo()
    # The driver speaks at its start, and then once a period.
    free = pytest.approx(own["MemFree"], abs=8 * MIB)
    said = seen(senses, guest, lambda each: each.source == "balloon" and each.figures.free_bytes == free)
    assert said.figures.buffer_bytes == pytest.approx(own["Cached"] + own["Buffers"], abs=8 * MIB)
    assert said.figures.active_anonymous_bytes is None
    nothing = of(senses.read(), bare)
    assert nothing.source in ("none", "sampling")  # by what this machine's kernel can do
    assert "balloon" not in nothing.can
    assert nothing.figures.balloon_bytes is None
    assert nothing.figures.free_bytes is None
    assert nothing.figures.resident_bytes == pytest.approx(bare.resident_bytes(), abs=2 * MIB)
    guest.qmp("stop")  # a guest that stands still grows old
    still = seen(senses, guest, lambda each: "balloon" not in each.can)
    assert any("said nothing for" in each for each in still.problems)


def test_hung_agent_lie_reboot_and_death(boot_guest: Boot, sensor: Open) -> None:
    guest = boot_guest("trouble")
    other = boot_guest("quiet")
    senses = sensor(guest, other)
    before = seen(senses, guest, lambda each: each.source == "guest-agent" and "balloon" in each.can)
    guest.hang_agent()
    hung = seen(senses, guest, lambda each: any("its agent" in problem for problem in each.problems))
    assert hung.figures.classes_at_s is not None

    def goes_on() -> bool:
        """The hung one is not waited for each time, and the other is as fresh as ever."""
        began_s = time.monotonic()
        now = senses.read()
        took_s = time.monotonic() - began_s  # less than what an agent is given
        said = of(now, other)
        return took_s < 4 and said.source == "guest-agent" and now.at_s - (said.figures.classes_at_s or 0) < 5

    until(goes_on)
    guest.resume_agent()
    seen(senses, guest, lambda each: not any("its agent" in problem for problem in each.problems))
    guest.forge("/proc/meminfo", re.sub(r"MemFree: +", "MemFree: 99", guest.read("/proc/meminfo")))
    lies = seen(senses, guest, lambda each: any("contradict" in problem for problem in each.problems))
    assert lies.source == "balloon"  # which another part of it speaks through
    guest.reboot()
    guest.wait_ready()
    anew = seen(senses, guest, lambda each: each.source == "guest-agent" and each.boot != before.boot)
    assert anew.life == before.life
    guest.hide_qmp()
    hidden = of(senses.read(), guest)
    assert hidden.life == before.life
    assert "balloon" not in hidden.can
    guest.kill()
    dead = senses.read()
    assert [each.name for each in dead.guests] == ["quiet"]
    assert "guest trouble: it is not running" in dead.host.problems


def test_guests_are_found_by_their_command_lines(boot_guest: Boot, tmp_path: Path) -> None:
    guest = boot_guest("found")
    (
        tmp_path / "proc"
    ).mkdir()  # of this machine only what is ours: other guests that run here are left alone
    for name in (str(guest.pid), "meminfo", "vmstat", "swaps", "pressure"):
        (tmp_path / "proc" / name).symlink_to(f"/proc/{name}")
    senses = Sensor(GuestsConfig(discover=True, timeout_s=4.0), tmp_path)
    assert list(senses.handles) == ["found"]  # known before anything is read
    found = senses.read().guests
    assert [(each.kind, each.source) for each in found] == [("qemu", "guest-agent")]
    assert found[0].life.startswith(f"{guest.pid}:")
    assert found[0].figures.resident_bytes == pytest.approx(guest.resident_bytes(), abs=2 * MIB)
    guest.kill()
    assert senses.read().guests == ()
    assert senses.handles == {}
    senses.close()
