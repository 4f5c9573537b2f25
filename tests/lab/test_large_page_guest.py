"""A real guest as a target: its RAM is found in its QEMU process, blocks of it become small and large under it while it
works, and at the end each is as it was found. On the kernel of the machine that runs this."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sustain.clock import SystemClock
from sustain.host import pagemap
from sustain.host.processes import start_ticks
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages.act import Actuator
from sustain.schedulers.large_pages.find import Wanted
from sustain.schedulers.large_pages.model import Collapse, Demote, Observation
from sustain.schedulers.large_pages.sense import Sensor
from tests.lab.guests import GuestVm, until

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not pagemap.has_scan() or os.geteuid() != 0, reason="it needs Linux 6.7 (PAGEMAP_SCAN) and root"
    ),
]
MIB = 1 << 20


def large(seen: Observation) -> dict[int, bool]:
    return dict(zip(seen.blocks.address.tolist(), seen.blocks.large.tolist(), strict=True))


def test_what_the_guest_maps_large_itself(boot_guest: Callable[..., GuestVm]) -> None:
    guest = boot_guest("inside", memory_mib=640)  # below 512 MiB Linux has none
    guest.do("anon", 80 * MIB)
    sensor = Sensor([Wanted(name="vm", guest="inside")], None, SystemClock())
    seen: list[Observation] = []

    def known() -> bool:
        seen.append(sensor.read())
        return -1 not in seen[-1].blocks.guest_large

    until(known, limit_s=120)
    large = int((seen[-1].blocks.guest_large == 1).sum())
    told = guest.meminfo()["AnonHugePages"] // (2 * MIB)
    print(f"{large} blocks, after {len(seen)} readings; the guest says {told}")
    assert told >= 30
    assert abs(large - told) <= 2
    guest.hang_agent()
    seen.append(sensor.read())
    assert any("what its guest maps large is unknown" in each for each in seen[-1].targets[0].problems)
    assert set(seen[-1].blocks.guest_large.tolist()) == {-1}
    sensor.close()


def test_blocks_of_a_working_guest(boot_guest: Callable[..., GuestVm], tmp_path: Path) -> None:
    guest = boot_guest("large", large_pages=True)
    guest.do("anon", 60 * MIB)
    guest.do("busy", 40 * MIB)
    with Journal(tmp_path / "j") as journal:
        sensor = Sensor([Wanted(name="vm", guest="large")], None, SystemClock())
        seen = sensor.read()
        (target,) = seen.targets
        assert (target.name, target.pid, target.counting) == ("vm", guest.pid, "none")
        size = int(guest.qmp("query-memory-size-summary")["base-memory"])
        assert 0 < len(seen.blocks) <= size // (2 * MIB), "its RAM, and nothing else"
        before = large(seen)
        print(f"{sum(before.values())} of {len(before)} blocks are large: {target.problems}")
        if any(before.values()):  # as the machine has it: QEMU advises its RAM MADV_HUGEPAGE
            assert "QEMU advises" in target.problems[0]

        common = {"target": "vm", "pid": guest.pid, "started": start_ticks(guest.pid) or 0, "reason": ""}
        actuator = Actuator(journal, sensor.image, most_per_s=1e6, limit_s=60)
        full = np.flatnonzero(seen.blocks.populated == 512)[:12]
        chosen = seen.blocks.address[full].tolist()
        for kind, is_large in ((Demote, False), (Collapse, True), (Demote, False)):
            effects = actuator.carry_out(
                [
                    kind(address=address, purpose="cold" if kind is Demote else "pays", **common)
                    for address in chosen
                ]  # type: ignore[arg-type]
            )
            print([(each.outcome, each.detail) for each in effects if not each.done])
            # Pages that the emulator holds at that moment stay; the rest must have come off.
            assert sum(each.done for each in effects) >= len(chosen) - 2
            now = large(sensor.read())
            for effect in effects:
                if effect.done:
                    assert now[effect.action.address] == is_large
        worked = guest.work()
        until(lambda: guest.work() > worked)
        assert not actuator.restore().failed
        after = large(sensor.read())
        assert {address: after[address] for address in chosen} == {
            address: before[address] for address in chosen
        }
        assert journal.entries() == ()
        sensor.close()
