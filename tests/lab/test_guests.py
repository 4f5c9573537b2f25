"""What the memory guests of this folder do, seen by a monitor of the test's own: the ground that the tests of the guest
memory scheduler stand on. Their balloons move this host's memory, and what is said of each failure is true."""

import json
import socket
from collections.abc import Callable

import pytest

from tests.lab.guests import GuestVm, host_swap, until
from tests.lab.vm import LabError

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

MIB = 1 << 20
Boot = Callable[..., GuestVm]


def ping(guest: GuestVm, limit_s: float) -> bool:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.settimeout(limit_s)
        agent.connect(str(guest.agent_path))
        agent.sendall(b'{"execute": "guest-ping"}\n')
        try:
            return bool(json.loads(agent.recv(1 << 16)) == {"return": {}})
        except TimeoutError:
            return False


def test_the_classes_of_memory_are_what_the_workload_made_of_it(boot_guest: Boot) -> None:
    guest = boot_guest("classes")
    before = guest.meminfo()
    guest.do("cache", 60 * MIB)
    guest.do("anon", 40 * MIB)
    guest.do("age")
    guest.do("age")  # what nobody has used since is inactive now
    guest.do("busy", 20 * MIB)
    after = guest.meminfo()
    assert 55 * MIB < after["Inactive(file)"] - before["Inactive(file)"] < 65 * MIB
    assert 35 * MIB < after["Inactive(anon)"] - before["Inactive(anon)"] < 50 * MIB
    assert 15 * MIB < after["Active(anon)"] < 30 * MIB
    worked = guest.work()
    until(lambda: guest.work() > worked + 10_000)


def test_an_inflating_balloon_gives_memory_to_the_host(boot_guest: Boot) -> None:
    guest = boot_guest("inflates")
    guest.do("anon", 100 * MIB)
    guest.do("anon", 0)
    resident = guest.resident_bytes()
    guest.qmp("balloon", value=128 * MIB)
    until(lambda: guest.balloon_bytes() == 128 * MIB)
    until(lambda: guest.resident_bytes() <= 130 * MIB)
    assert guest.resident_bytes() < resident - 50 * MIB
    guest.qmp("balloon", value=256 * MIB)
    until(lambda: guest.balloon_bytes() == 256 * MIB)
    assert guest.resident_bytes() <= 140 * MIB  # given back to the guest is not yet used by it


def test_a_guest_without_the_driver_has_a_balloon_that_does_nothing(boot_guest: Boot) -> None:
    guest = boot_guest("no-driver", driver=False, agent=False)
    guest.qmp("balloon", value=128 * MIB)
    guest.do("cache", 10 * MIB)
    assert guest.balloon_bytes() == 256 * MIB
    assert not ping(guest, limit_s=0.5)


def test_what_is_swapped_out_by_this_host_is_counted_and_comes_back(boot_guest: Boot) -> None:
    guest = boot_guest("no-balloon", balloon=False)
    guest.do("anon", 50 * MIB)
    with host_swap(512):
        assert guest.swapped_bytes() == 0
        guest.page_out()
        assert guest.swapped_bytes() > 100 * MIB
        guest.do("anon", 60 * MIB)
    assert guest.swapped_bytes() == 0
    assert guest.work() == 0


def test_a_guest_agent_that_hangs_and_one_that_lies(boot_guest: Boot) -> None:
    guest = boot_guest("agent")
    assert ping(guest, limit_s=60)
    guest.hang_agent()
    assert not ping(guest, limit_s=0.5)
    guest.resume_agent()
    guest.forge("/proc/meminfo", "MemTotal: 1 kB\n")
    assert guest.read("/proc/meminfo") == "MemTotal: 1 kB\n"


def test_a_guest_that_reboots_and_crashes_and_runs_out_of_memory(boot_guest: Boot) -> None:
    guest = boot_guest("reboots", swap_mib=64)
    guest.do("swapon")
    guest.do("anon", 170 * MIB)
    with pytest.raises(LabError, match="killed"):
        guest.do("busy", 170 * MIB)
    guest.do("busy", 10 * MIB)
    guest.reboot()
    guest.wait_ready()
    assert guest.work() == 0
    guest.kill()
    with pytest.raises(LabError, match="QEMU ended"):
        guest.do("work")
