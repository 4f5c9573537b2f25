"""Regions on device files of an emulated NVDIMM, /dev/pmem0 and /dev/dax0.0: saved, restored, refused when mounted.

A real kernel. What is judged is said by the guest's own tools: a file system on /dev/pmem0 that `cmp` reads again,
and the images of two saves, one from the block device and one from the DAX device it was restored to.
"""

import re
from pathlib import Path

import pytest

from tests.lab import vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SCRIPT = r"""
set -e
cd "$TOP"
sustain() { "$PYTHON" -m sustain.cli "$@"; }
modprobe nfit; modprobe nd_pmem; modprobe ext4; modprobe device_dax || true; modprobe dax_pmem || true
ndctl create-namespace -f -e namespace0.0 -m fsdax > /dev/null 2>&1
mkfs.ext4 -q -b 4096 /dev/pmem0
mkdir -p /run/mnt/pmem
mount -o dax=always /dev/pmem0 /run/mnt/pmem
head -c 3000000 /dev/urandom > /run/mnt/pmem/file
cp /run/mnt/pmem/file /dev/shm/file
umount /run/mnt/pmem
sustain save --region /dev/pmem0 --to file:///dev/shm/saved
echo "image $(stat -c %s /dev/shm/saved/pmem0/image) of $(blockdev --getsize64 /dev/pmem0)"

# Changed past the cache of the block device, by a file system: the next save must see it.
mount -o dax=always /dev/pmem0 /run/mnt/pmem
head -c 3000000 /dev/urandom > /run/mnt/pmem/file
cp /run/mnt/pmem/file /dev/shm/file
sustain restore file:///dev/shm/saved /dev/pmem0 2> /dev/shm/refused && exit 3
cat /dev/shm/refused
umount /run/mnt/pmem
sustain save --region /dev/pmem0 --to file:///dev/shm/saved

dd if=/dev/zero of=/dev/pmem0 bs=1M conv=fsync 2> /dev/null || true
sustain restore file:///dev/shm/saved /dev/pmem0
mount -o dax=always,ro /dev/pmem0 /run/mnt/pmem
cmp /run/mnt/pmem/file /dev/shm/file && echo "the file is back"
umount /run/mnt/pmem

ndctl create-namespace -f -e namespace0.0 -m devdax > /dev/null 2>&1
ls -l /dev/dax0.0
sustain restore file:///dev/shm/saved /dev/dax0.0 --name pmem0
sustain restore file:///dev/shm/saved /dev/dax0.0 --name pmem0 --json
rm /dev/dax0.0.region-id
sustain save --region /dev/dax0.0 --name back --to file:///dev/shm/back
image=/dev/shm/saved/pmem0/image
cmp -n "$(stat -c %s $image)" $image /dev/shm/back/back/image && echo "the DAX device holds it"
"""


def test_pmem_and_dax_devices(kernel: vm.Kernel, tmp_path: Path) -> None:
    share, nvdimm = tmp_path / "share", tmp_path / "nvdimm"
    share.mkdir()
    with nvdimm.open("wb") as file:
        file.truncate(130 << 20)
    guest = vm.Guest(kernel, share, SCRIPT, nvdimm=nvdimm, memory_mib=2048)
    result = guest.run(limit_s=600)
    print(f"{result.seconds:.0f} s\n{result.output}")
    assert result.status == 0, result.output
    said = result.output
    assert "/dev/pmem0: is in use" in said
    assert "the file is back" in said
    assert '"copied_bytes": 0' in said
    assert "the DAX device holds it" in said
    sizes = re.search(r"^image (\d+) of (\d+)$", said, re.MULTILINE)
    assert sizes is not None
    assert int(sizes[1]) == int(sizes[2]) > 64 << 20
