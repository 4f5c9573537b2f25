"""Device interrupts: of made files, and those of this machine."""

import errno
import os
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import files, irqs
from sustain.host.affinity import Written
from sustain.host.irqs import Irq, ManagedInterrupt
from tests.host.test_meminfo import put

INTERRUPTS = """\
            CPU0       CPU2       CPU3
   0:         17          0          0   IO-APIC   2-edge      timer
  24:          1          0 4000000000  PCI-MSIX-0000:00:05.0   0-edge      nvme0q0, nvme 0 q1
 130:          5          6          7  ITS-MSI 524288 Edge      eth0
 NMI:          0          0          0   Non-maskable interrupts
 ERR:          0
"""


def made(root: Path) -> Path:
    """One that can be placed, one that is managed, one that nobody handles."""
    put(root, "proc/interrupts", INTERRUPTS)
    for number, name, cpus, node, mode in (
        (24, "eth0", "0-3", "1", 0o644),
        (25, "nvme0q1", "2", "-1", 0o444),
    ):
        put(root, f"proc/irq/{number}/smp_affinity_list", cpus + "\n").chmod(mode)
        put(root, f"proc/irq/{number}/effective_affinity_list", "2\n")
        put(root, f"proc/irq/{number}/node", node + "\n")
        put(root, f"sys/kernel/irq/{number}/actions", name + "\n")
    put(root, "proc/irq/3/smp_affinity_list", "0-3\n")
    put(root, "proc/irq/default_smp_affinity", "f\n")
    return root


def test_counts_of_made_files(tmp_path: Path) -> None:
    found = irqs.counts(made(tmp_path))
    assert found.cpus == (0, 2, 3)
    assert found.by_irq == {0: (17, 0, 0), 24: (1, 0, 4_000_000_000), 130: (5, 6, 7)}
    with pytest.raises(HostError, match="proc/interrupts") as caught:
        irqs.counts(tmp_path / "none")
    assert caught.value.hint


def test_where_they_may_come_of_made_files(tmp_path: Path) -> None:
    bare, wired, managed = irqs.read(made(tmp_path))
    assert bare == Irq(3, "", frozenset(range(4)), None, None, managed=False)
    assert wired == Irq(24, "eth0", frozenset(range(4)), frozenset({2}), 1, managed=False)
    assert managed == Irq(25, "nvme0q1", frozenset({2}), frozenset({2}), None, managed=True)
    assert irqs.one(99, tmp_path) is None


def test_write_to_made_files(tmp_path: Path) -> None:
    _, wired, managed = irqs.read(made(tmp_path))
    assert irqs.write(wired, range(4), root=tmp_path).written is Written.SAME
    assert irqs.write(wired, {0, 1}, expected=frozenset({3}), root=tmp_path) == (Written.CHANGED, wired.cpus)
    assert irqs.write(wired, {0, 1}, expected=wired.cpus, root=tmp_path) == (Written.DONE, {0, 1})
    assert (tmp_path / "proc/irq/24/smp_affinity_list").read_text() == "0-1\n"
    with pytest.raises(ManagedInterrupt, match=r"interrupt 25 \(nvme0q1\)") as caught:
        irqs.write(managed, {0}, root=tmp_path)
    assert caught.value.hint
    assert irqs.write(managed, {2}, root=tmp_path).written is Written.SAME
    put(tmp_path, "sys/kernel/irq/24/actions", "eth1\n")  # another device's by now
    assert irqs.write(wired, {2}, root=tmp_path) == (Written.GONE, None)
    assert (tmp_path / "proc/irq/24/smp_affinity_list").read_text() == "0-1\n"
    assert irqs.write(Irq(99, "", frozenset(), None, None, managed=False), {0}, root=tmp_path).cpus is None


@pytest.mark.parametrize("code", [errno.EIO, errno.EPERM])
def test_a_kernel_that_lets_root_open_what_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    _, wired, _ = irqs.read(made(tmp_path))

    def refuse(path: Path, value: str) -> None:
        raise files.refused(path, OSError(code, os.strerror(code)))

    monkeypatch.setattr(files, "write", refuse)
    with pytest.raises(ManagedInterrupt, match="interrupt 24"):
        irqs.write(wired, {0}, root=tmp_path)


def test_this_machine() -> None:
    if not Path("/proc/irq").exists():
        pytest.skip("this kernel shows no interrupts")
    found = irqs.read()
    counted = irqs.counts()
    online = files.cpus(Path("/sys/devices/system/cpu/online").read_text())
    assert set(counted.cpus) == online
    handled = {each.number for each in found if each.name}
    assert handled <= counted.by_irq.keys()
    assert any(sum(counts) > 0 for counts in counted.by_irq.values())
    for each in found:
        assert each.cpus
        assert each.effective is None or each.effective <= each.cpus


def movable() -> Irq:
    """One that may be placed and hardly ever comes, so that nothing of the machine depends on where."""
    if os.geteuid() != 0 or not Path("/proc/irq").exists():
        pytest.skip("interrupts are placed by root")
    counted = irqs.counts().by_irq
    found = [each for each in irqs.read() if each.name and not each.managed and len(each.cpus) > 1]
    if not found:
        pytest.skip("this machine has no interrupt that can be placed")
    return min(found, key=lambda each: sum(counted.get(each.number, ())))


def test_a_real_one_is_placed_and_put_back() -> None:
    irq = movable()
    only = frozenset({max(irq.cpus)})
    try:
        outcome = irqs.write(irq, only, expected=irq.cpus)
        now = irqs.one(irq.number)
    finally:
        back = irqs.write(irq, irq.cpus)
    assert outcome == (Written.DONE, only)
    assert now is not None
    assert now.cpus == only
    assert back == (Written.DONE, irq.cpus)


def test_processors_that_are_not_there() -> None:
    irq = movable()
    with pytest.raises(HostError, match=f"irq/{irq.number}/smp_affinity_list") as caught:
        irqs.write(irq, {1 << 14})
    assert caught.value.hint
    now = irqs.one(irq.number)
    assert now is not None
    assert now.cpus == irq.cpus


def test_those_that_the_kernel_places() -> None:
    managed = [each for each in irqs.read() if each.managed and each.name]
    if os.geteuid() != 0 or not managed:
        pytest.skip("this machine has no managed interrupt, or we are not root")
    elsewhere = files.cpus(Path("/sys/devices/system/cpu/online").read_text()) - managed[0].cpus
    with pytest.raises(ManagedInterrupt):
        irqs.write(managed[0], elsewhere or {0, 1 << 14})
    # Without a look at its mode, too: the kernel's own word.
    with pytest.raises(HostError) as caught:
        files.write(
            Path(f"/proc/irq/{managed[0].number}/smp_affinity_list"), files.cpu_list(elsewhere or {0})
        )
    assert caught.value.errno in (errno.EIO, errno.EPERM)
