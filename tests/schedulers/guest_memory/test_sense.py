"""The sensor against guests that answer, hang, lie, die and come back. Their process is this test's own."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.errors import ConfigError
from sustain.host.processes import identify
from sustain.schedulers.guest_memory.config import GuestConfig, GuestsConfig
from sustain.schedulers.guest_memory.model import Guest, Observation
from sustain.schedulers.guest_memory.sense import Sensor
from sustain.testing.guest import FakeAgent, FakeQemu
from tests.host.swap import taking_turns
from tests.schedulers.guest_memory.test_classes import MEMINFO, PRESSURE, VMSTAT

SIZE = 256 << 20
FILES = {
    "/proc/meminfo": MEMINFO,
    "/proc/vmstat": VMSTAT,
    "/proc/pressure/memory": PRESSURE,
    "/proc/sys/kernel/random/boot_id": "one\n",
}
TIMEOUT_S = 2.0  # where somebody is silent
PATIENT_S = 60.0  # where everybody answers, however busy the machine is


class Place:
    """One fake guest."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.qemu = FakeQemu(folder / f"{name}.qmp", SIZE)
        self.agent = FakeAgent(folder / f"{name}.agent", dict(FILES))
        self.says()

    def says(self, **tags: int) -> None:
        """Its balloon's driver sends statistics."""
        self.qemu.updated_s = max(self.qemu.updated_s + 1, int(time.time()))
        usual = {"total-memory": 216180 << 10, "free-memory": 10 << 20}
        self.qemu.statistics = {
            f"stat-{tag.replace('_', '-')}": value for tag, value in (usual | tags).items()
        }

    def config(self) -> GuestConfig:
        return GuestConfig(name=self.name, qmp=self.qemu.path, guest_agent=self.agent.path)

    def close(self) -> None:
        self.qemu.close()
        self.agent.close()


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Place, Place]]:
    pair = Place(tmp_path, "good"), Place(tmp_path, "bad")
    yield pair
    for each in pair:
        each.close()


@contextlib.contextmanager
def sensing(places: tuple[Place, Place], timeout_s: float) -> Iterator[Sensor]:
    sensor = Sensor(GuestsConfig(guests=tuple(each.config() for each in places), timeout_s=timeout_s))
    yield sensor
    for each in sensor._watches.values():
        each.retire()


@pytest.fixture
def sensor(places: tuple[Place, Place]) -> Iterator[Sensor]:
    with sensing(places, PATIENT_S) as opened:
        yield opened


@pytest.fixture
def impatient(places: tuple[Place, Place]) -> Iterator[Sensor]:
    with sensing(places, TIMEOUT_S) as opened:
        yield opened


def of(observation: Observation, name: str) -> Guest:
    return next(each for each in observation.guests if each.name == name)


def test_a_guest_with_everything(places: tuple[Place, Place], sensor: Sensor) -> None:
    observation = sensor.read()
    assert [each.name for each in observation.guests] == ["good", "bad"]
    good = of(observation, "good")
    assert good.source == "guest-agent"
    assert good.boot == "one"
    assert good.life == "{}:{}".format(*identify(os.getpid()) or ())
    assert good.figures.size_bytes == SIZE
    assert good.figures.balloon_bytes == SIZE
    assert good.figures.inactive_buffer_bytes == 40000 << 10
    assert good.figures.resident_bytes
    assert good.figures.classes_at_s == pytest.approx(observation.at_s, abs=5)
    assert "balloon" in good.can
    assert observation.host.total_bytes
    assert observation.host.free_bytes
    assert places[0].agent.left_open == 0


def test_whether_its_balloon_gives_back_before_it_dies_is_told(
    places: tuple[Place, Place], sensor: Sensor
) -> None:
    places[0].qemu.deflates = True
    observation = sensor.read()
    good, bad = of(observation, "good"), of(observation, "bad")
    assert (good.deflates, bad.deflates) == (True, False)
    assert [any("deflate-on-oom=on" in said for said in each.problems) for each in (good, bad)] == [
        False,
        True,
    ]


@pytest.mark.parametrize("most", [511, 0])
def test_a_host_whose_khugepaged_works_against_balloons_says_so(
    places: tuple[Place, Place], tmp_path: Path, most: int
) -> None:
    (tmp_path / "proc").symlink_to("/proc")
    folder = tmp_path / "sys/kernel/mm/transparent_hugepage"
    (folder / "khugepaged").mkdir(parents=True)
    (folder / "enabled").write_text("always [madvise] never\n")
    (folder / "khugepaged/defrag").write_text("1\n")
    (folder / "khugepaged/max_ptes_none").write_text(f"{most}\n")
    sensor = Sensor(GuestsConfig(guests=(places[0].config(),), timeout_s=PATIENT_S), tmp_path)
    assert any("max_ptes_none" in each for each in sensor.read().host.problems) == (most > 0)
    nobody = Sensor(GuestsConfig(), tmp_path)
    assert not any("max_ptes_none" in each for each in nobody.read().host.problems)
    sensor.close()
    nobody.close()


def test_no_swap_is_said(sensor: Sensor) -> None:
    with taking_turns():  # with the tests that switch swap on
        observation = sensor.read()
    without = observation.host.swap_total_bytes == 0
    good = of(observation, "good")
    assert ("pageout" not in good.can) == without
    assert any("no swap" in each for each in good.problems) == without


def read_within(sensor: Sensor, limit_s: float) -> Observation:
    """The first read that takes no longer: a busy machine may hold one up, what waits for a hung guest is slow each
    time."""
    for _ in range(4):
        began_s = time.monotonic()
        seen = sensor.read()
        if time.monotonic() - began_s < limit_s:
            return seen
    raise AssertionError(f"no read within {limit_s:g} s")


def test_the_balloon_is_moved_by_its_handle(places: tuple[Place, Place], sensor: Sensor) -> None:
    handle = sensor.handles["good"]
    assert handle.balloon() == SIZE
    handle.set_balloon(SIZE // 2)
    assert handle.balloon() == SIZE // 2
    assert of(sensor.read(), "good").figures.balloon_bytes == SIZE // 2
    assert handle.resident()
    assert handle.life() == of(sensor.read(), "good").life


def test_a_silent_agent_leaves_what_it_said_and_its_age(
    places: tuple[Place, Place], impatient: Sensor
) -> None:
    before = of(impatient.read(), "bad")
    places[1].agent.silent = True
    bad = of(impatient.read(), "bad")
    assert bad.source == "guest-agent"
    assert bad.figures.classes_at_s == before.figures.classes_at_s
    assert bad.figures.balloon_bytes == SIZE
    assert "balloon" in bad.can
    assert any("agent" in each and "no answer in time" in each for each in bad.problems)
    # Not waited for, but its balloon, which answered the last time, is.
    again = of(read_within(impatient, TIMEOUT_S), "bad")
    assert again.figures.balloon_bytes == SIZE
    assert "balloon" in again.can
    assert again.figures.classes_at_s == before.figures.classes_at_s


def test_a_silent_agent_gives_way_to_the_balloon(places: tuple[Place, Place]) -> None:
    config = GuestsConfig(guests=(places[1].config(),), timeout_s=TIMEOUT_S)
    sensor = Sensor(config, fresh_s=0.0)
    sensor.read()
    places[1].agent.silent = True
    places[1].says(disk_caches=7 << 20)
    bad = of(sensor.read(), "bad")
    assert bad.source == "balloon"
    assert bad.figures.buffer_bytes == 7 << 20
    assert bad.figures.active_anonymous_bytes is None
    assert any("no anonymous memory" in each for each in bad.problems)
    places[1].agent.silent = False
    deadline_s = time.monotonic() + PATIENT_S
    while of(sensor.read(), "bad").source != "guest-agent":  # a busy machine's answer may come too late once
        assert time.monotonic() < deadline_s
    sensor.close()


def test_one_that_hangs_delays_nobody(places: tuple[Place, Place], impatient: Sensor) -> None:
    impatient.read()
    places[1].qemu.silent = places[1].agent.silent = True
    first = impatient.read()  # waits as long as answers may take, and learns
    places[0].agent.files["/proc/meminfo"] = MEMINFO.replace("40000", "39000")
    second = read_within(impatient, 2 * TIMEOUT_S)
    assert of(second, "good").figures.inactive_buffer_bytes == 39000 << 10
    for each in (of(first, "bad"), of(second, "bad")):
        assert each.figures.balloon_bytes is None
        assert each.figures.resident_bytes  # what the host sees does not hang
        assert "balloon" not in each.can
        assert each.problems
    places[1].qemu.silent = places[1].agent.silent = False
    deadline_s = time.monotonic() + 30
    while "balloon" not in of(impatient.read(), "bad").can:
        assert time.monotonic() < deadline_s


def test_one_that_lies_is_not_believed(places: tuple[Place, Place], sensor: Sensor) -> None:
    places[1].agent.files["/proc/meminfo"] = MEMINFO.replace("100000", "99999999")
    places[1].says(free_memory=1 << 40)
    bad = of(sensor.read(), "bad")
    assert bad.figures.free_bytes is None
    assert bad.figures.classes_at_s is None or bad.source == "balloon"
    assert sum("contradict" in each for each in bad.problems) == 2
    assert of(sensor.read(), "good").source == "guest-agent"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/proc/meminfo", MEMINFO.replace("100000", "9" * 400)),
        ("/proc/meminfo", MEMINFO.replace("100000", "9" * 5000)),
        ("/proc/vmstat", f"pswpin {'9' * 400}\n"),
        ("/proc/pressure/memory", f"some total={'9' * 400}\n"),
        ("/proc/pressure/memory", "some total=1\n\nfull total=1\n"),
    ],
)
def test_one_that_makes_up_what_no_kernel_says_harms_nobody(
    places: tuple[Place, Place], sensor: Sensor, path: str, text: str
) -> None:
    places[1].agent.files[path] = text
    seen = sensor.read()
    assert of(seen, "good").source == "guest-agent"
    assert of(seen, "bad").life


def test_a_defect_in_looking_at_one_is_said_of_it_and_of_no_other(
    places: tuple[Place, Place], sensor: Sensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(paths: object) -> dict[str, str | None]:
        raise ZeroDivisionError("by what it said")

    monkeypatch.setattr(sensor.handles["bad"], "texts", broken)
    seen = sensor.read()
    assert [each.name for each in seen.guests] == ["good"]
    (problem,) = (each for each in seen.host.problems if "guest bad" in each)
    assert "unexpected ZeroDivisionError: by what it said (test_sense.py:" in problem


def test_a_guest_that_starts_anew_inside_is_another_boot(places: tuple[Place, Place], sensor: Sensor) -> None:
    before = of(sensor.read(), "good")
    places[0].agent.files["/proc/sys/kernel/random/boot_id"] = "two\n"
    after = of(sensor.read(), "good")
    assert (before.life, before.boot, after.boot) == (after.life, "one", "two")


def test_qmp_that_disappears(places: tuple[Place, Place], sensor: Sensor) -> None:
    sensor.read()
    places[1].qemu.close()
    os.unlink(places[1].qemu.path)
    bad = of(sensor.read(), "bad")  # its process is still there
    assert bad.source == "guest-agent"
    assert bad.figures.balloon_bytes is None
    assert "balloon" not in bad.can
    assert any("hypervisor does not answer" in each for each in bad.problems)


def test_a_guest_that_does_not_run(tmp_path: Path) -> None:
    config = GuestConfig(name="none", qmp=str(tmp_path / "none"))
    sensor = Sensor(GuestsConfig(guests=(config,), timeout_s=PATIENT_S))
    observation = sensor.read()
    assert observation.guests == ()
    assert observation.host.problems == ("guest none: it is not running",)
    sensor.close()


def test_no_driver(places: tuple[Place, Place], sensor: Sensor) -> None:
    places[0].qemu.statistics, places[0].qemu.updated_s = {}, 0
    good = of(sensor.read(), "good")
    assert good.figures.balloon_bytes is None
    assert "balloon" not in good.can
    assert any("no driver" in each for each in good.problems)


def test_a_driver_that_has_fallen_silent(places: tuple[Place, Place], sensor: Sensor) -> None:
    places[0].qemu.updated_s = int(time.time()) - 1000
    good = of(sensor.read(), "good")
    assert "balloon" not in good.can
    assert any("said nothing for" in each for each in good.problems)


def test_no_agent_and_no_driver(places: tuple[Place, Place]) -> None:
    places[0].qemu.balloon = False
    sensor = Sensor(GuestsConfig(guests=(GuestConfig(name="good", qmp=places[0].qemu.path),)))
    good = of(sensor.read(), "good")
    assert good.source == "none"
    assert good.figures.free_bytes is None
    assert good.figures.resident_bytes
    assert any("of what its memory is used for: " in each for each in good.problems)
    sensor.close()


def test_statistics_are_switched_on_and_off_again(places: tuple[Place, Place]) -> None:
    good, bad = places
    bad.qemu.period_s = 7  # somebody else's
    sensor = Sensor(GuestsConfig(guests=(good.config(), bad.config()), statistics_period_s=3))
    sensor.read()
    assert (good.qemu.period_s, bad.qemu.period_s) == (3, 7)
    sensor.close()
    assert (good.qemu.period_s, bad.qemu.period_s) == (0, 7)


def cgroup(root: Path, limit: str = "100000000") -> Path:
    folder = root / "sys/fs/cgroup/box"
    folder.mkdir(parents=True)
    (root / "proc").mkdir()
    (folder / "memory.current").write_text("60000000\n")
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.reclaim").touch()
    (folder / "memory.stat").write_text("inactive_file 30000000\nactive_anon 20000000\nkernel 5000000\n")
    return folder


def test_a_cgroup(tmp_path: Path) -> None:
    folder = cgroup(tmp_path)
    sensor = Sensor(
        GuestsConfig(guests=(GuestConfig(name="box", kind="cgroup", cgroup="/sys/fs/cgroup/box"),)), tmp_path
    )
    box = of(sensor.read(), "box")
    assert (box.kind, box.source, box.can) == ("cgroup", "cgroup", ("reclaim",))
    assert box.life == str(folder.stat().st_ino)
    assert box.figures.size_bytes == 100000000
    assert box.figures.resident_bytes == 60000000
    assert box.figures.free_bytes == 40000000
    assert box.figures.inactive_buffer_bytes == 30000000
    assert sensor.handles["box"].resident() == 60000000
    assert sensor.handles["box"].balloon() is None
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()
    gone = sensor.read()
    assert gone.guests == ()
    assert "guest box: it is not running" in gone.host.problems
    sensor.close()


def test_found_guests_of_one_name_keep_theirs(tmp_path: Path) -> None:
    def starts(pid: int) -> Path:
        folder = tmp_path / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "cwd").symlink_to("/")
        (folder / "stat").write_text(Path("/proc/self/stat").read_text())
        words = ("qemu-system-x86_64", "-name", "vm", "-qmp", f"unix:{tmp_path}/{pid}.qmp")
        (folder / "cmdline").write_text("\0".join((*words, "")))
        return folder

    def sockets() -> dict[str, str]:
        return {
            name: watch.config.qmp.rpartition("/")[2]
            for name, watch in sensor._watches.items()
            if watch.config.qmp is not None
        }

    first = starts(500)
    sensor = Sensor(GuestsConfig(discover=True, timeout_s=TIMEOUT_S), tmp_path)
    assert sockets() == {"vm": "500.qmp"}
    kept = sensor.handles["vm"]
    starts(400)  # numbers begin anew now and then
    sensor.read()
    assert sockets() == {"vm": "500.qmp", "vm.400": "400.qmp"}
    assert sensor.handles["vm"] is kept
    first.rename(tmp_path / "ended")
    sensor.read()
    assert sockets() == {"vm.400": "400.qmp"}
    starts(600)
    sensor.read()
    assert sockets() == {"vm.400": "400.qmp", "vm": "600.qmp"}
    sensor.close()


@pytest.mark.parametrize(
    "bad",
    [
        GuestsConfig(guests=(GuestConfig(name="", qmp="x"),)),
        GuestsConfig(guests=(GuestConfig(name="a", qmp="x"), GuestConfig(name="a", qmp="y"))),
        GuestsConfig(guests=(GuestConfig(name="a"),)),
        GuestsConfig(guests=(GuestConfig(name="a", kind="cgroup"),)),
        GuestsConfig(timeout_s=0),
    ],
)
def test_what_cannot_be_meant(bad: GuestsConfig) -> None:
    with pytest.raises(ConfigError):
        Sensor(bad)
