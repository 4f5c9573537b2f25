"""The power of a host with persistent memory is cut in the middle of commits; the next boot finds them.

A real kernel, an emulated NVDIMM with ext4 and `dax=always`, a virtual disk with ext4. The cut is a SIGKILL of the
emulator: the guest's memory and page cache are gone, the NVDIMM's file and the disk's hold what had reached them.
The emulator has no CPU cache, so a missing `clwb` cannot lose data here: that is shown by the engine's simulated
medium. What is real here is MAP_SYNC: the file system's own blocks under a mapped store, and a new boot.
"""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab import vm
from tests.lab.power import MEMORY_COMMITS

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

MOUNT = """
set -e
modprobe nfit; modprobe nd_pmem; modprobe virtio_blk; modprobe ext4
mkdir -p /run/mnt/pmem /run/mnt/disk
if [ $1 = before ]; then
    ndctl create-namespace -f -e namespace0.0 -m fsdax > /dev/null 2>&1
    mkfs.ext4 -q -b 4096 /dev/pmem0
    mkfs.ext4 -q -b 4096 /dev/vda
fi
mount -o dax=always /dev/pmem0 /run/mnt/pmem
mount /dev/vda /run/mnt/disk
cd "$TOP"
exec "$PYTHON" -m tests.lab.power $1
"""


@dataclass
class Seen:
    """What both boots said, and the commits that had returned before the cut."""

    before: dict[str, Any]
    after: dict[str, Any]
    acknowledged: dict[str, int]


@pytest.fixture(scope="module")
def seen(kernel: vm.Kernel, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Boot, commit, cut the power, boot again, look."""
    folder = tmp_path_factory.mktemp("power")
    share, nvdimm, disk = folder / "share", folder / "nvdimm", folder / "disk"
    share.mkdir()
    for path in (nvdimm, disk):
        with path.open("wb") as file:
            file.truncate(256 << 20)

    def guest(when: str) -> vm.Guest:
        return vm.Guest(kernel, share, f"set {when}\n{MOUNT}", nvdimm=nvdimm, disk=disk)

    first = guest("before")
    first.start()
    try:
        first.wait_for("before.json", limit_s=300)
        first.wait_for("disk.acks", limit_s=120, at_least=8 * 300)
    finally:
        first.kill()
    # Whole numbers only: a write of eight bytes to the shared file is one request.
    acknowledged = {name: (share / f"{name}.acks").stat().st_size // 8 for name in ("pmem", "disk")}
    result = guest("after").run(limit_s=300)
    assert result.status == 0, result.output
    print(f"acknowledged before the cut: {acknowledged}; second boot took {result.seconds:.0f} s")
    return Seen(
        json.loads((share / "before.json").read_text()),
        json.loads((share / "after.json").read_text()),
        acknowledged,
    )


def test_auto_picks_what_the_medium_offers(seen: Seen) -> None:
    assert seen.before["durability_of"] == {"pmem": "pmem", "disk": "disk"}
    assert seen.before["chosen"] == "pmem"
    assert seen.before["chosen_on_disk"] == "disk"
    assert not seen.before["files_map_sync"], "the probe must tell a disk from an NVDIMM"


def test_the_store_is_mapped_with_map_sync(seen: Seen) -> None:
    """The kernel's own word: `sf` among the flags of every writable mapping of the file."""
    assert seen.before["mapped"]
    assert all("sf" in flags for flags in seen.before["mapped"]), seen.before["mapped"]


def test_the_processor_has_clwb(seen: Seen) -> None:
    """So the engine's `clwb` is what really ran: an instruction that it lacks would have ended the process."""
    assert "clwb" in seen.before["cpu_flags"]


@pytest.mark.parametrize("kind", ["pmem", "disk"])
def test_every_acknowledged_commit_is_there_after_the_cut(seen: Seen, kind: str) -> None:
    found, acknowledged = seen.after[kind], seen.acknowledged[kind]
    assert acknowledged >= 300
    assert "commit" in found, found
    assert acknowledged <= found["commit"] <= acknowledged + 1
    assert found["durability"] == kind


def test_verify_agrees(seen: Seen) -> None:
    assert seen.after["verify"] == 0


@pytest.mark.parametrize("kind", ["pmem", "disk"])
@pytest.mark.parametrize("name", ["open", "reopened"])
def test_a_memory_store_is_refused_after_an_unclean_reboot(seen: Seen, kind: str, name: str) -> None:
    found = seen.after[f"{kind} memory {name}"]
    assert found.get("error") == "StoreUntrusted", found
    assert found["hint"]


@pytest.mark.parametrize("kind", ["pmem", "disk"])
def test_a_memory_store_closed_in_order_is_accepted(seen: Seen, kind: str) -> None:
    """Also when the power was cut right after: closing makes it durable."""
    found = seen.after[f"{kind} memory closed"]
    assert found.get("commit") == MEMORY_COMMITS, found
