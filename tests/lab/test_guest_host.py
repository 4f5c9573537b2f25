"""The host layer on real guests: what it says of them is what a monitor of the test's own and the guest itself say."""

import time
from collections.abc import Callable
from contextlib import closing

import pytest

from sustain.errors import HostError
from sustain.host import balloon, guest_agent, maps, processes
from sustain.host.guest_agent import GuestAgent
from sustain.host.madvise import Advice, Advisor
from sustain.host.pagemap import Pagemap
from sustain.host.qmp import Qmp
from tests.lab.guests import GuestVm, host_swap, until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

MIB = 1 << 20
Boot = Callable[..., GuestVm]


def fresh_statistics(guest: GuestVm, since_s: int) -> balloon.Statistics:
    found: list[balloon.Statistics] = []

    def came() -> bool:
        with Qmp(str(guest.qmp_path)) as qmp:
            device = balloon.find(qmp)
            assert device is not None
            found.append(balloon.statistics(qmp, device))
        return found[-1].updated_s > since_s

    until(came)
    return found[-1]


def set_period(guest: GuestVm) -> str:
    with Qmp(str(guest.qmp_path)) as qmp:
        device = balloon.find(qmp)
        assert device is not None
        assert balloon.period(qmp, device) == 0
        balloon.set_period(qmp, device, 1)
        assert balloon.period(qmp, device) == 1
        return device


def test_balloon_statistics_are_the_guests_own_and_grow_old_when_it_stands_still(boot_guest: Boot) -> None:
    guest = boot_guest("statistics")
    device = set_period(guest)
    guest.do("cache", 50 * MIB)
    said = fresh_statistics(guest, int(time.time()))
    own = guest.meminfo()
    assert said.total_bytes == own["MemTotal"]
    assert said.free_bytes == pytest.approx(own["MemFree"], abs=8 * MIB)
    assert said.disk_caches_bytes == pytest.approx(own["Cached"] + own["Buffers"], abs=8 * MIB)
    assert (said.swap_in_bytes, said.major_faults) == (0, 0)
    guest.qmp("stop")
    with Qmp(str(guest.qmp_path)) as qmp:
        last = balloon.statistics(qmp, device).updated_s
    until(lambda: time.time() > last + 3)
    with Qmp(str(guest.qmp_path)) as qmp:
        assert balloon.statistics(qmp, device).updated_s == last
    guest.qmp("cont")
    fresh_statistics(guest, last)


def test_a_balloon_without_a_driver_never_has_statistics(boot_guest: Boot) -> None:
    guest = boot_guest("silent", driver=False)
    device = set_period(guest)
    started = time.time()
    until(lambda: time.time() > started + 3)
    with Qmp(str(guest.qmp_path)) as qmp:
        said = balloon.statistics(qmp, device)
    assert (said.updated_s, said.free_bytes, said.total_bytes) == (0, None, None)


def test_the_balloon_moves_memory_that_the_host_can_count(boot_guest: Boot) -> None:
    guest = boot_guest("moves")
    guest.do("anon", 120 * MIB)
    guest.do("anon", 0)
    areas = maps.guest_ram(guest.pid)
    assert areas is not None
    assert sum(area.size_bytes for area in areas) == guest.memory_mib * MIB
    (area,) = areas
    with closing(Pagemap(guest.pid)) as pagemap:
        before = pagemap.census(area.start, area.end)
        assert before.zero_bytes is not None
        assert before.present_bytes - before.zero_bytes == guest.resident_bytes()
        with Qmp(str(guest.qmp_path)) as qmp:
            assert balloon.size(qmp) == guest.memory_mib * MIB
            balloon.set_target(qmp, 160 * MIB)
            until(lambda: balloon.actual(qmp) == 160 * MIB)
        # zero pages among them
        until(lambda: pagemap.census(area.start, area.end).present_bytes <= 161 * MIB)
    assert guest.balloon_bytes() == 160 * MIB
    guest.qmp("stop")  # so that what is counted twice is the same twice
    with host_swap(512):
        who = processes.identify(guest.pid)
        assert who is not None
        with closing(Pagemap(guest.pid)) as pagemap, Advisor(who) as advisor:
            runs = pagemap.census(area.start, area.end).present
            assert advisor.advise(runs, Advice.PAGEOUT).problem is None
            after = pagemap.census(area.start, area.end)
            assert after.swapped_bytes > 40 * MIB
            assert after.swapped_bytes == guest.swapped_bytes()
            memory = processes.memory(guest.pid)
            assert memory is not None
            assert memory.swapped is not None
            assert memory.swapped >= after.swapped_bytes
        guest.qmp("cont")
        assert guest.do("anon", 60 * MIB) == ""  # it goes on, slower


def test_page_out_without_swap_says_yes_and_swaps_nothing(boot_guest: Boot, no_host_swap: None) -> None:
    guest = boot_guest("stays")
    guest.do("anon", 100 * MIB)
    areas = maps.guest_ram(guest.pid)
    who = processes.identify(guest.pid)
    assert areas is not None
    assert who is not None
    with Advisor(who) as advisor:
        said = advisor.advise([(area.start, area.end) for area in areas], Advice.PAGEOUT)
    assert said.taken_bytes == guest.memory_mib * MIB
    assert guest.swapped_bytes() == 0
    # Not "unchanged": since Linux 6.12 huge pages that are split on the way lose their pages that hold only zeros.
    assert guest.resident_bytes() >= 100 * MIB


def test_the_guest_agent_reads_the_guests_files_and_a_hanging_one_costs_its_time_only(
    boot_guest: Boot,
) -> None:
    guest = boot_guest("files")
    guest.do("cache", 30 * MIB)
    path = str(guest.agent_path)
    wanted = ("/proc/meminfo", "/proc/vmstat", "/proc/pressure/memory", "/no/such/file")
    with GuestAgent(path, timeout_s=20) as agent:
        texts = guest_agent.read_texts(agent, wanted)
    assert texts["/no/such/file"] is None
    meminfo = texts["/proc/meminfo"]
    assert meminfo is not None
    assert meminfo.splitlines()[0] == guest.read("/proc/meminfo").splitlines()[0]
    assert "workingset_refault_file" in (texts["/proc/vmstat"] or "")
    assert "some avg10" in (texts["/proc/pressure/memory"] or "")
    guest.hang_agent()
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(HostError, match="no answer in time"):
            GuestAgent(path, timeout_s=0.3)
    assert time.monotonic() - began < 10
    guest.resume_agent()  # and answers what was asked before, to whoever comes next
    with GuestAgent(path, timeout_s=20) as agent:
        assert guest_agent.read_texts(agent, ["/proc/meminfo"])["/proc/meminfo"] is not None
    guest.forge("/proc/meminfo", "MemTotal: 1 kB\n")
    with GuestAgent(path, timeout_s=20) as agent:
        assert guest_agent.read_texts(agent, ["/proc/meminfo"]) == {"/proc/meminfo": "MemTotal: 1 kB\n"}


def test_a_guest_that_dies_under_a_connection_is_an_error_at_once(boot_guest: Boot) -> None:
    guest = boot_guest("dies")
    with Qmp(str(guest.qmp_path)) as qmp, GuestAgent(str(guest.agent_path), timeout_s=20) as agent:
        guest.hide_qmp()
        with pytest.raises(HostError, match="QMP"):
            Qmp(str(guest.qmp_path))
        assert balloon.actual(qmp) == guest.memory_mib * MIB
        guest.kill()
        with pytest.raises(HostError):
            balloon.actual(qmp)
        with pytest.raises(HostError):
            agent.ask("guest-ping")
