"""A program for the tests: a real QEMU under libvirt's own driver, without a daemon, seen by the scheduler's senses.

Prints what was seen as JSON. Runs in a user namespace in which it is not root (`unshare --user --map-user=1000`), since
for root the driver wants a user that only libvirt's daemon package makes. `qemu:///embed` needs an event loop in the
process that uses it.
"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import libvirt
import msgspec

from sustain.errors import HostError
from sustain.schedulers.guest_memory.config import GuestConfig, GuestsConfig
from sustain.schedulers.guest_memory.libvirt_handle import LibvirtHandle
from sustain.schedulers.guest_memory.sense import Sensor

DOMAIN = """
<domain type='qemu'>
  <name>small</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <emulator>{emulator}</emulator>
    <memballoon model='virtio' autodeflate='on'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>
"""


class Changes:
    """What is noted now, in order."""

    def __init__(self) -> None:
        self.noted: dict[str, object] = {}

    def note(
        self, key: str, kind: str, target: Mapping[str, Any], prior: Any, new: Any, aside: Any = None
    ) -> None:
        self.noted[key] = (kind, dict(target), prior, new)

    def forget(self, key: str) -> None:
        self.noted.pop(key, None)


def driver(folder: str) -> tuple[str, Any]:
    """The URI of libvirt's QEMU driver in this process, and the connection that keeps it: its domains end with that."""
    libvirt.virEventRegisterDefaultImpl()

    def loop() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=loop, daemon=True).start()
    uri = f"qemu:///embed?root={folder}"
    # Otherwise its output goes to virtlogd, a daemon.
    (Path(folder) / "etc").mkdir(mode=0o700)
    (Path(folder) / "etc/qemu.conf").write_text('stdio_handler = "file"\n')
    return uri, libvirt.open(uri)


def main(emulator: str, folder: str) -> None:
    uri, connection = driver(folder)
    domain = connection.createXML(DOMAIN.format(emulator=emulator))
    try:
        guest = GuestConfig(name="small", kind="libvirt", uri=uri)
        absent = GuestConfig(name="absent", kind="libvirt", uri=uri)
        changes = Changes()
        sensor = Sensor(GuestsConfig(guests=(guest, absent), discover=True, timeout_s=10), changes=changes)
        first = sensor.read()
        handle = sensor.handles["small"]
        assert isinstance(handle, LibvirtHandle)
        period: dict[str, Any] = {
            "noted": [each for each in changes.noted if each != "damon"],
            "while": handle.period(),
        }
        frames = handle.frames()
        assert frames is not None
        who = handle.process()
        handle.set_balloon(32 << 20)
        stranger = Sensor(GuestsConfig(discover=True)).read()
        by_uuid = Sensor(
            GuestsConfig(guests=(GuestConfig(name="u", kind="libvirt", uri=uri, domain=domain.UUIDString()),))
        )
        seen = {
            "first": msgspec.to_builtins(first),
            "pid": who and who.pid,
            "resident": handle.resident(),
            "deflates": handle.monitor().deflates,
            "balloon": handle.balloon(),  # its guest has no driver
            "strangers": stranger.host.problems,
            "areas": [(each.start, each.end) for each in handle.areas()],
            "place": frames.place(16 << 20),
            "by_uuid": [each.life for each in by_uuid.read().guests],
        }
        sensor.close()
        seen["period"] = {**period, "after": handle.period(), "left": list(changes.noted)}
    finally:
        domain.destroy()
    deadline = time.monotonic() + 30
    while handle.life() is not None:
        assert time.monotonic() < deadline
    try:
        handle.set_balloon(64 << 20)
    except HostError as error:
        seen["after"] = str(error)
    print(json.dumps(seen))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="lv-", ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o700)
        main(sys.argv[1], place)
