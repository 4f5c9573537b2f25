"""What the guest of tests/lab/test_disk_errors.py runs: `python -m tests.lab.disk_errors`, in `/run/lab`.

A `disk` store on ext4 on a device-mapper device, which first passes everything to a RAM disk and then fails every
write (dm-flakey), under the store that is at work. Then the device is sound again, the file system is mounted anew,
and the store opened. Prints one JSON object.
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import sustain
from tests.crash.model import Model, Objects, check

FOLDER, DEVICE, RAM = (
    Path("/run/mnt/errors"),
    "/dev/dm-0",
    "/dev/ram0",
)  # no udev: the name that the kernel gives

TOLD = Path("/run/told.json")


def sh(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def table(target: str) -> str:
    """The device as dm-linear, or as a dm-flakey that never comes up again for writes."""
    sectors = int(Path("/sys/block/ram0/size").read_text())
    tail = {"linear": "", "flakey": " 0 3600 1 error_writes"}[target]
    return f"0 {sectors} {target} {RAM} 0{tail}"


def switch(target: str) -> None:
    """To another table, as soon as what is under way has ended."""
    sh("dmsetup", "suspend", "--noflush", "--nolockfs", "errors")
    sh("dmsetup", "load", "errors", "--table", table(target))
    sh("dmsetup", "resume", "--noudevsync", "errors")


def life() -> None:
    """A store at work when its disk begins to fail. In a process of its own: at its end nothing is mapped."""
    told: dict[str, Any] = {}
    acknowledged: list[int] = []
    with contextlib.ExitStack() as stack:
        store = sustain.open(FOLDER / "app.sus")
        stack.callback(lambda: told.update(close=outcome(store.close)))
        objects = Objects(store)
        n = 0
        while True:
            n += 1
            objects.change(n)
            try:
                store.commit()
            except sustain.SustainError as error:
                told["commit"] = told_by(error)
                break
            acknowledged.append(n)
            if n == 40:
                switch("flakey")
            assert n < 100, "every write fails and commits go on"
        told["poisoned"] = store.status().poisoned
        told["next"] = outcome(store.commit)
        told["acknowledged"] = acknowledged[-1]
        del objects
    TOLD.write_text(json.dumps(told))


def outcome(call: Any) -> dict[str, str]:
    try:
        call()
    except sustain.SustainError as error:
        return told_by(error)
    return {}


def told_by(error: sustain.SustainError) -> dict[str, str]:
    return {"error": type(error).__name__, "message": str(error), "hint": error.hint}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    sh("dmsetup", "create", "errors", "--noudevsync", "--table", table("linear"))
    sh("mkfs.ext4", "-q", "-b", "4096", DEVICE)
    sh("mount", DEVICE, str(FOLDER))
    sustain.create(FOLDER / "app.sus", size="8MiB", log_size="2MiB", durability="disk").close()
    sh(sys.executable, "-m", "tests.lab.disk_errors", "life")
    told = json.loads(TOLD.read_text())
    # The page cache may hold what never reached the disk: it goes with the mount.
    sh("umount", str(FOLDER))
    switch("linear")
    sh("mount", DEVICE, str(FOLDER))
    with sustain.open(FOLDER / "app.sus", verify="full") as store:
        told["reopened"] = check(store, Model())
    print("told:", json.dumps(told))


if __name__ == "__main__":
    life() if sys.argv[1:] == ["life"] else main()
