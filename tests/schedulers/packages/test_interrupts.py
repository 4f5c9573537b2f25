"""Interrupts go away from packages that are to sleep and come back, on a made /proc/irq; on a real one in the lab."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sustain.errors import HostError
from sustain.host import affinity, irqs
from sustain.host.irqs import Irq
from sustain.schedulers.journal import Journal
from sustain.schedulers.packages.act import Actuator
from sustain.schedulers.packages.model import Effect, Interrupts
from tests.host.test_meminfo import put
from tests.schedulers.packages.groups import Located

NAMES = {1: "disk-0", 2: "disk-1", 3: "net", 4: "", 5: "bound"}
BEFORE = {1: "0-3", 2: "2-3", 3: "0-1", 4: "0-3", 5: "3"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, cpus in BEFORE.items():
        put(tmp_path, f"proc/irq/{number}/smp_affinity_list", f"{cpus}\n")
        put(tmp_path, f"sys/kernel/irq/{number}/actions", f"{NAMES[number]}\n")
    return tmp_path


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "j") as held:
        yield held


@pytest.fixture
def actuator(journal: Journal, root: Path) -> Actuator:
    return Actuator(journal, Located(), root=root)


def away(*cpus: int, to: tuple[int, ...] = (0, 1)) -> Interrupts:
    return Interrupts(away=cpus, cpus=to, purpose="pack", reason="a test")


def now(root: Path) -> dict[int, str]:
    return {each: (root / f"proc/irq/{each}/smp_affinity_list").read_text().strip() for each in BEFORE}


def one(actuator: Actuator, action: Interrupts) -> Effect:
    (effect,) = actuator.carry_out([action])
    return effect


def test_they_go_and_come_back(actuator: Actuator, journal: Journal, root: Path) -> None:
    effect = one(actuator, away(2, 3))
    assert (effect.outcome, effect.written, effect.detail) == ("done", 3, "")
    assert now(root) == {1: "0-1", 2: "0-1", 3: "0-1", 4: "0-3", 5: "0-1"}
    assert one(actuator, away(2, 3)).written == 0
    effect = one(actuator, away())
    assert (effect.outcome, effect.written) == ("done", 3)
    assert now(root) == BEFORE
    assert journal.entries() == ()
    assert one(actuator, away()).outcome == "done"


def test_where_they_go_next_is_by_where_they_were_first(
    actuator: Actuator, journal: Journal, root: Path
) -> None:
    one(actuator, away(2, 3))
    effect = one(actuator, away(0, 1, to=(2, 3)))
    assert effect.outcome == "done"
    assert now(root) == {1: "2-3", 2: "2-3", 3: "2-3", 4: "0-3", 5: "3"}
    assert {each.key for each in journal.entries()} == {"package-interrupt:1", "package-interrupt:3"}
    report = actuator.restore()
    assert {each.outcome for each in report.undone} == {"restored"}
    assert now(root) == BEFORE


def test_one_that_cannot_be_brought_back_yet_is_brought_back_later(
    actuator: Actuator, journal: Journal, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one(actuator, away(2, 3))
    write = irqs.write

    def full(irq: Irq, *rest: Any) -> affinity.Outcome:
        if irq.number == 2:
            raise HostError("no vector left", hint="give more", errno=errno.ENOSPC)
        return write(irq, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(irqs, "write", full)
        assert "could not be moved: 1" in one(actuator, away(0, 1, to=(2, 3))).detail
    assert now(root)[2] == "0-1"
    assert {each.entry.key: each.outcome for each in actuator.restore().undone}[
        "package-interrupt:2"
    ] == "restored"
    assert now(root) == BEFORE
    assert journal.entries() == ()


def test_what_somebody_else_sets_or_the_kernel_places_stays(
    actuator: Actuator, journal: Journal, root: Path
) -> None:
    os.chmod(root / "proc/irq/1/smp_affinity_list", 0o444)
    effect = one(actuator, away(2, 3))
    assert (effect.written, effect.detail) == (2, "interrupts that the kernel places itself stay: 1")
    (root / "proc/irq/2/smp_affinity_list").write_text("1\n")
    effect = one(actuator, away(2, 3))
    assert (effect.written, effect.outcome) == (0, "done")
    assert "set since are left alone: 1" in effect.detail
    assert {each.entry.key: each.outcome for each in actuator.restore().undone} == {
        "package-interrupt:2": "changed",
        "package-interrupt:5": "restored",
    }
    assert now(root) == {**BEFORE, 2: "1"}
    assert journal.entries() == ()


def test_another_device_has_the_number_by_now(actuator: Actuator, journal: Journal, root: Path) -> None:
    one(actuator, away(2, 3))
    put(root, "sys/kernel/irq/2/actions", "another\n")
    assert {each.entry.key: each.outcome for each in actuator.restore().undone}[
        "package-interrupt:2"
    ] == "gone"
    assert now(root)[2] == "0-1", "it is not the one that we have set"
    assert journal.entries() == ()


def test_nowhere_to_go(actuator: Actuator, root: Path) -> None:
    assert one(actuator, away(2, 3, to=(3,))).outcome == "refused"
    assert now(root) == BEFORE
