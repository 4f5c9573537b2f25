"""A machine of two packages with memory of their own, and a program of ours in it: what moving threads and memory
between packages is tried on. The kernel is a distribution's, the machine an emulator's.

    program = "from sustain.host import topology; answer(len(topology.read().packages))"
    assert two_sockets.run(kernel, tmp_path, program) == 2

Processors 0 and 1 are package 0 and node 0, 2 and 3 are 1. The guest has cgroups of version 2 with cpuset, cpu and
memory enabled for the children of the root, no automatic NUMA balancing, and an empty disk (/dev/vda) whose interrupts
the kernel places itself. The program runs in the checkout, as root, with its own Python; what it passes to `answer`
comes back. What it raises fails the test that started it, with all it printed.

All four processors share one thread of the emulator: a busy thread has at most a quarter of a core, so nothing is
timed here. To let a test act between two steps of the program, use `guest` and files in the shared directory, which
is `/run/lab` in the guest (`vm.Guest.wait_for`).
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.lab import vm

# Minutes each, of what others show in part: the suite is to end within half an hour or so.
more = pytest.mark.skipif(
    not os.environ.get("SUSTAIN_LAB_MORE"), reason="takes minutes under emulation; SUSTAIN_LAB_MORE=1 runs it"
)

PACKAGES = {0: frozenset((0, 1)), 1: frozenset((2, 3))}
_DISK_BYTES = 64 << 20

_SCRIPT = """
cd "$TOP"
export PATH="$PATH:/usr/sbin:/sbin" PYTHONPATH="$TOP" PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
modprobe virtio_blk
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
echo "+cpuset +cpu +memory" > /sys/fs/cgroup/cgroup.subtree_control || exit
echo 0 > /proc/sys/kernel/numa_balancing
exec "$PYTHON" -m tests.lab.two_sockets_guest /run/lab/program.py
"""


def guest(
    kernel: vm.Kernel,
    share: Path,
    program: str,
    *,
    memory_mib: int = 1536,
    environment: dict[str, str] | None = None,
) -> vm.Guest:
    """The machine, not started. `program` is Python; `share` an empty directory."""
    (share / "program.py").write_text(program)
    (share / "answer").unlink(missing_ok=True)
    disk = share / "disk"
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    half = memory_mib // 2
    return vm.Guest(
        kernel,
        share,
        _SCRIPT,
        disk=disk,
        memory_mib=2 * half,
        environment=environment or {},
        processors="4,sockets=2,cores=2,threads=1",
        one_thread=True,
        devices=tuple(_nodes(half)),
    )


def run(
    kernel: vm.Kernel,
    share: Path,
    program: str,
    *,
    limit_s: float = 300,
    memory_mib: int = 1536,
    environment: dict[str, str] | None = None,
) -> Any:
    """Boot, run the program, and what it answered (None: nothing). AssertionError with its output when it failed."""
    machine = guest(kernel, share, program, memory_mib=memory_mib, environment=environment)
    return answer_of(machine, machine.run(limit_s))


def answer_of(machine: vm.Guest, result: vm.Result) -> Any:
    """What the program answered, once the machine has ended."""
    print(f"Linux {machine.kernel.release}, two sockets: {result.seconds:.0f} s\n{result.output}")
    assert result.status == 0, machine.report()
    path = machine.share / "answer"
    return json.loads(path.read_text()) if path.exists() else None


def _nodes(size_mib: int) -> list[str]:
    options = []
    for number, cpus in PACKAGES.items():
        options += [
            *("-object", f"memory-backend-ram,id=m{number},size={size_mib}M"),
            *("-numa", f"node,cpus={min(cpus)}-{max(cpus)},nodeid={number},memdev=m{number}"),
        ]
    return [*options, "-numa", "dist,src=0,dst=1,val=21"]
