"""What reading changes on the host is noted, and put back: by whoever did it, or by who comes after one that was
killed. The guests are fakes; DAMON's part is in tests/host/test_damon_kernel.py."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sustain.clock import SystemClock
from sustain.errors import HostError, JournalError
from sustain.host import balloon
from sustain.host.balloon import Statistics
from sustain.host.qmp import Qmp
from sustain.schedulers.changes import Refused
from sustain.schedulers.guest_memory import libvirt_handle
from sustain.schedulers.guest_memory.changes import undo
from sustain.schedulers.guest_memory.config import GuestConfig, GuestsConfig
from sustain.schedulers.guest_memory.handles import QemuHandle
from sustain.schedulers.guest_memory.libvirt_handle import LibvirtHandle
from sustain.schedulers.guest_memory.model import Policy
from sustain.schedulers.guest_memory.scheduler import GuestMemory
from sustain.schedulers.guest_memory.sense import Sensor
from sustain.schedulers.journal import Journal
from sustain.testing.guest import FakeQemu

SIZE = 256 << 20


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[FakeQemu]:
    fake = FakeQemu(tmp_path / "qmp", SIZE)
    fake.statistics = {"stat-total-memory": 250 << 20, "stat-free-memory": 180 << 20}
    fake.updated_s = int(time.time())
    yield fake
    fake.close()


def ways(qemu: FakeQemu) -> GuestsConfig:
    return GuestsConfig(guests=(GuestConfig(name="g", qmp=qemu.path),), statistics_period_s=3)


def test_statistics_are_noted_before_they_are_on_and_forgotten_when_off(
    qemu: FakeQemu, tmp_path: Path
) -> None:
    with Journal(tmp_path / "j") as journal:
        sensor = Sensor(ways(qemu), changes=journal)
        (guest,) = sensor.read().guests
        assert guest.source == "balloon"
        (entry,) = journal.entries()
        assert (entry.key, entry.kind, entry.prior, entry.sets) == ("statistics:g", "statistics", 0, (3,))
        assert entry.target == {"guest": "g", "life": guest.life}
        sensor.read()
        sensor.close()
        assert (journal.entries(), qemu.period_s) == ((), 0)


def test_what_was_on_already_is_neither_noted_nor_switched_off(qemu: FakeQemu, tmp_path: Path) -> None:
    qemu.period_s = 9
    with Journal(tmp_path / "j") as journal:
        sensor = Sensor(ways(qemu), changes=journal)
        sensor.read()
        assert journal.entries() == ()
        sensor.close()
        assert qemu.period_s == 9


@pytest.mark.parametrize(
    ("now", "outcome", "left"), [(3, "restored", 0), (0, "restored", 0), (8, "changed", 8)]
)
def test_after_one_that_was_killed(qemu: FakeQemu, tmp_path: Path, now: int, outcome: str, left: int) -> None:
    with Journal(tmp_path / "j") as journal:
        Sensor(ways(qemu), changes=journal).read()  # and never closed
    qemu.period_s = now
    with Journal(tmp_path / "j") as journal:
        after = Sensor(ways(qemu), changes=journal)
        (undone,) = journal.restore(undo(after.handles)).undone
        assert (undone.outcome, qemu.period_s, journal.entries()) == (outcome, left, ())


def test_a_guest_that_runs_and_cannot_be_reached_stays_noted(qemu: FakeQemu, tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        Sensor(ways(qemu), changes=journal).read()
        (undone,) = journal.restore(undo({})).undone  # its process is this one
        assert undone.outcome == "failed"
        assert "cannot be reached" in undone.problem
        assert len(journal.entries()) == 1


def test_what_cannot_be_noted_is_not_changed(qemu: FakeQemu) -> None:
    sensor = Sensor(ways(qemu), changes=Refused(JournalError("/x: no room", hint="")))
    (guest,) = sensor.read().guests
    assert qemu.period_s == 0
    assert guest.source == "none"
    assert any("statistics are off" in each and "/x: no room" in each for each in guest.problems)
    sensor.close()


def test_each_refusal_is_another_error() -> None:
    why = JournalError("/x: no room", hint="make some")
    refused, found = Refused(why), list[JournalError]()
    for _ in range(2):
        with pytest.raises(JournalError, match="/x: no room") as caught:
            refused.note("k", "k", {}, 0, 1)
        found.append(caught.value)
    assert len({id(each) for each in (*found, why)}) == 3
    assert [each.hint for each in found] == ["make some"] * 2


def test_the_agent_puts_back_what_a_look_has_left(qemu: FakeQemu, tmp_path: Path) -> None:
    with Journal(tmp_path / "looking") as looking:
        Sensor(ways(qemu), changes=looking).read()
        agent = GuestMemory(
            ways(qemu), Policy(), 10.0, SystemClock(), Journal(tmp_path / "j"), left=tmp_path / "looking"
        )
        assert agent.restore().undone == ()  # it looks still
        assert qemu.period_s == 3
    (undone,) = agent.restore().undone
    assert (undone.entry.key, undone.outcome, qemu.period_s) == ("statistics:g", "restored", 0)
    assert agent.restore().undone == ()
    agent.close()


def test_a_look_s_journal_that_is_damaged_keeps_nothing_else_from_being_put_back(
    qemu: FakeQemu, tmp_path: Path
) -> None:
    (tmp_path / "looking").write_text("hello\n")
    agent = GuestMemory(
        ways(qemu), Policy(), 10.0, SystemClock(), Journal(tmp_path / "j"), left=tmp_path / "looking"
    )
    agent.sense()
    assert qemu.period_s == 3
    own, left = agent.restore().undone
    assert (own.entry.key, own.outcome, qemu.period_s) == ("statistics:g", "restored", 0)
    assert (left.entry.key, left.outcome) == ("journal:looking", "failed")
    assert "is damaged" in left.problem
    assert (tmp_path / "looking").read_text() == "hello\n"
    agent.close()


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> "MadeDomain":
    made = MadeDomain()
    monkeypatch.setattr(libvirt_handle, "Domain", lambda *_: made)
    return made


class MadeDomain:
    """As libvirt's, that runs. `at_set` is called while statistics are being switched on."""

    def __init__(self) -> None:
        self.period_s = 0
        self.at_set: Callable[[], object] = lambda: None

    def running(self) -> str:
        return "0d5a1e5c-7c11-4a5f-9f0e-6a1d0a4b7e33:7"

    def size_bytes(self) -> int:
        return SIZE

    def balloon_bytes(self) -> int:
        return SIZE

    def statistics(self) -> Statistics:
        return Statistics(updated_s=1)

    def period(self) -> int:
        return self.period_s

    def memballoon(self) -> tuple[int, bool]:
        return self.period_s, False

    def set_period(self, period_s: int) -> None:
        if period_s:
            self.at_set()
        self.period_s = period_s


def of_domain(journal: Journal) -> LibvirtHandle:
    return LibvirtHandle(GuestConfig(name="g", kind="libvirt"), Path("/"), 2.0, 3, journal)


def of_qemu(qemu: FakeQemu, journal: Journal) -> QemuHandle:
    return QemuHandle(GuestConfig(name="g", qmp=qemu.path), Path("/"), 2.0, 3, journal)


def test_a_look_that_goes_on_switches_nothing_on_after_the_end(
    qemu: FakeQemu, domain: MadeDomain, tmp_path: Path
) -> None:
    with Journal(tmp_path / "j") as journal:
        for handle, guest in ((of_qemu(qemu, journal), qemu), (of_domain(journal), domain)):
            handle.close()
            said = handle.monitor()
            assert (said.period_s, guest.period_s, journal.entries()) == (0, 0, ())
            assert "nobody looks any more" in said.problem


def test_what_is_being_switched_on_at_the_end_is_switched_off(domain: MadeDomain, tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        handle = of_domain(journal)
        closes = threading.Thread(target=handle.close)

        def at_set() -> None:
            closes.start()
            closes.join(0.2)  # it waits for us; were it not to, it would be done before this is

        domain.at_set = at_set
        assert handle.monitor().period_s == 3
        closes.join(30)
        assert (domain.period_s, journal.entries()) == (0, ())


def test_what_was_switched_on_by_a_call_that_failed_is_switched_off(
    qemu: FakeQemu, domain: MadeDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = balloon.set_period

    def late(qmp: Qmp, device: str, period_s: int) -> None:
        real(qmp, device, period_s)
        if period_s:
            raise HostError("no answer in time")

    def late_too() -> None:
        domain.period_s = 3
        raise HostError("no answer in time")

    monkeypatch.setattr(balloon, "set_period", late)
    domain.at_set = late_too
    with Journal(tmp_path / "j") as journal:
        for handle, guest in ((of_qemu(qemu, journal), qemu), (of_domain(journal), domain)):
            with pytest.raises(HostError, match="in time"):
                handle.monitor()
            assert (guest.period_s, len(journal.entries())) == (3, 1)
            handle.close()
            assert (guest.period_s, journal.entries()) == (0, ())
