"""A program for the tests: a real QEMU under libvirt's own driver, as in embedded_libvirt, whose parts are pinned.

Prints what was seen as JSON.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from sustain.host import affinity, libvirt_pinning, processes, qemu
from sustain.host.libvirt import Domain
from sustain.host.libvirt_pinning import Part
from tests.host.embedded_libvirt import driver

DOMAIN = """
<domain type='qemu'>
  <name>pinned</name><memory unit='MiB'>64</memory><vcpu>2</vcpu><iothreads>1</iothreads>
  <os><type arch='x86_64'>hvm</type></os>
  <devices><emulator>{emulator}</emulator></devices>
</domain>
"""


def main(emulator: str, folder: str) -> None:
    uri, connection = driver(folder)
    started = connection.createXML(DOMAIN.format(emulator=emulator))
    try:
        domain = Domain(uri, "pinned", timeout_s=30)
        life = domain.running() or ""
        # The pidfile lies where libvirt keeps its state, below the folder of this driver.
        (pid_file,) = Path(folder).glob("run/**/*pinned.pid")
        pid = int(pid_file.read_text())
        before = libvirt_pinning.read(domain)
        only = {min(os.sched_getaffinity(0))}
        parts = (Part("vcpu", 1), Part("emulator"), Part("iothread", 1))
        seen: dict[str, Any] = {
            "everywhere": sorted(os.sched_getaffinity(0)),
            "before": {_name(part): sorted(cpus) for part, cpus in before.items()},
            "vcpus": [each.number for each in libvirt_pinning.vcpus(domain)],
        }
        seen["pinned"] = [
            {"written": libvirt_pinning.write(domain, life, part, only, before[part]).written.value}
            for part in parts
        ]
        seen["threads"] = _threads(pid)
        for part in parts:
            libvirt_pinning.write(domain, life, part, before[part], frozenset(only))
        seen["back"] = _threads(pid)
    finally:
        started.destroy()
    seen["gone"] = libvirt_pinning.write(domain, life, parts[0], only).written.value
    print(json.dumps(seen))


def _threads(pid: int) -> dict[str, list[int]]:
    """Where the kernel lets the process's first thread and its virtual processors run."""
    who = processes.identify(pid)
    assert who is not None
    found = {"process": sorted(affinity.read(who) or ())}
    for number, thread in qemu.vcpus(pid).items():
        found[f"vcpu {number}"] = sorted(affinity.read(thread) or ())
    return found


def _name(part: Part) -> str:
    return f"{part.kind} {part.number}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="lv-", ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o700)
        main(sys.argv[1], place)
