"""What the guests of tests/lab/test_power.py run: `python -m tests.lab.power before|after`, in `/run/lab`.

`before` prepares stores on an NVDIMM with a DAX file system (/run/mnt/pmem) and on a virtual disk (/run/mnt/disk), says
in `before.json` what it found, and makes numbered commits on both until the power is cut; each that returned is
written to a file in the shared directory first. `after` opens what is left in a second boot and says in
`after.json` what it saw. The tests judge, on the host.
"""

import ctypes
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sustain
from sustain import _native
from tests.crash.model import Model, Objects, check, commit_number

PMEM, DISK, SHARED = Path("/run/mnt/pmem"), Path("/run/mnt/disk"), Path("/run/lab")
SIZES = {"size": "8MiB", "log_size": "2MiB"}
MEMORY_COMMITS = 20


def before() -> None:
    """The first boot; does not return but for the power cut."""
    told: dict[str, Any] = {
        "durability_of": {"pmem": _native.durability_of(str(PMEM)), "disk": _native.durability_of(str(DISK))},
        "cpu_flags": sorted(flags() & {"clwb", "clflushopt", "clflush"}),
        "files_map_sync": maps_with_sync(DISK),
    }
    for folder in (PMEM, DISK):
        memory_stores(folder)
    store = sustain.create(PMEM / "auto.sus", **SIZES)  # durability="auto"
    told["chosen"] = store.info()["durability"]
    told["mapped"] = mapping_flags(PMEM / "auto.sus")
    on_disk = sustain.create(DISK / "auto.sus", **SIZES)
    told["chosen_on_disk"] = on_disk.info()["durability"]
    say("before.json", told)
    writers = [(Objects(store), store, acks("pmem.acks")), (Objects(on_disk), on_disk, acks("disk.acks"))]
    n = 0
    while True:
        n += 1
        for objects, each, told_to in writers:
            objects.change(n)
            each.commit()
            os.write(told_to, n.to_bytes(8, "little"))


def memory_stores(folder: Path) -> None:
    """Three `memory` stores: one left open, all of it on the medium; one closed, and then opened again and changed,
    of which the image is on the medium and the superblock not, as the kernel may have it at any time; one just
    closed."""
    store, objects = filled(folder / "open.sus", 1)
    _KEPT.append((store, objects))

    path = folder / "reopened.sus"
    store, objects = filled(path, 1)
    del objects
    store.close()
    os.sync()  # what the kernel does by itself within half a minute; for "open" too
    store, objects = filled(path, MEMORY_COMMITS + 1)
    _KEPT.append((store, objects))
    image = store.info()["image_size"]
    start = path.stat().st_size - image
    write_back(path, start - (2 << 20), image + (2 << 20))  # the sums lie before it

    store, objects = filled(folder / "closed.sus", 1)
    del objects
    store.close()


def filled(path: Path, first: int) -> tuple[sustain.Store, Objects]:
    """The store at `path`, made if there is none, after `MEMORY_COMMITS` more commits."""
    exists = path.exists()
    store = sustain.open(path) if exists else sustain.create(path, durability="memory", **SIZES)
    objects = Objects(store)
    for n in range(first, first + MEMORY_COMMITS):
        objects.change(n)
        store.commit()
    return store, objects


_KEPT: list[Any] = []  # stores that nobody closes


def write_back(path: Path, start: int, length: int) -> None:
    """sync_file_range with WAIT_BEFORE | WRITE | WAIT_AFTER."""
    library = ctypes.CDLL(None, use_errno=True)
    library.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    with path.open("r+b") as file:
        if library.sync_file_range(file.fileno(), start, length, 7) != 0:
            raise OSError(ctypes.get_errno(), "sync_file_range")


def maps_with_sync(folder: Path) -> bool:
    """Whether a file there can be mapped with MAP_SHARED_VALIDATE | MAP_SYNC: the probe of a plain C call."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    path = folder / "probe"
    with path.open("w+b") as file:
        file.truncate(4096)
        got = library.mmap(None, 4096, 3, 0x03 | 0x80000, file.fileno(), 0)
    path.unlink()
    refused = got == ctypes.c_void_p(-1).value
    assert not refused or ctypes.get_errno() == errno.EOPNOTSUPP
    return not refused


def mapping_flags(path: Path) -> list[list[str]]:
    """VmFlags of each writable shared mapping of `path` in this process: "sf" is a synchronous fault (MAP_SYNC)."""
    found: list[list[str]] = []
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            ours = words[-1] == str(path) and words[1] == "rw-s"
        elif ours and words[0] == "VmFlags:":
            found.append(words[1:])
    return found


def flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def acks(name: str) -> int:
    """A file of the shared directory: what is written there is the host's at once."""
    return os.open(SHARED / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)


def say(name: str, told: dict[str, Any]) -> None:
    """A JSON file in the shared directory, there only when it is whole."""
    (SHARED / f"{name}.new").write_text(json.dumps(told, default=str))
    (SHARED / f"{name}.new").rename(SHARED / name)


def after() -> None:
    """The second boot."""
    told: dict[str, Any] = {}
    for kind, folder in (("pmem", PMEM), ("disk", DISK)):
        told[kind] = outcome(lambda folder=folder: state(folder / "auto.sus"))
        for name in ("closed", "open", "reopened"):
            told[f"{kind} memory {name}"] = outcome(
                lambda folder=folder, name=name: state(folder / f"{name}.sus")
            )
    told["verify"] = subprocess.run(
        [sys.executable, "-m", "sustain.cli", "verify", PMEM / "auto.sus", "--json"], check=False
    ).returncode
    say("after.json", told)


def state(path: Path) -> dict[str, Any]:
    """The store, opened for writing, compared whole, and used: it takes one more commit."""
    with sustain.open(path, verify="full") as store:
        n = check(store, Model())
        objects = Objects(store)
        objects.change(n + 1)
        store.commit()
        assert commit_number(store) == n + 1
        del objects
        return {"commit": n, "durability": store.info()["durability"]}


def outcome(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was seen, or the error's class, words and hint."""
    try:
        return look()
    except sustain.SustainError as error:
        return {"error": type(error).__name__, "message": str(error), "hint": error.hint}
    except AssertionError as error:
        return {"wrong": str(error)}


if __name__ == "__main__":
    {"before": before, "after": after}[sys.argv[1]]()
