"""The archiver is killed at random while commits go on: nothing acknowledged is missing, nothing half is listed.

`SUSTAIN_KILLS` and `SUSTAIN_SEED` make it longer and other."""

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import sustain
from sustain._native import Control
from sustain.replication.archive import segment
from sustain.replication.archive.contents import read_contents

from .conftest import Kit, until

SEED = int(os.environ.get("SUSTAIN_SEED", "20260304"))
KILLS = int(os.environ.get("SUSTAIN_KILLS", "6"))


def acked(control: Control) -> int | None:
    """What the application was told that its archive holds."""
    return next((each["acked"] for each in control.destinations() if each["url"].startswith("file")), None)


def arrives(archiver: subprocess.Popen[str], control: Control, before: int) -> None:
    until(lambda: (acked(control) or 0) > before or archiver.poll() is not None, "something arrives")


def begins(restoring: subprocess.Popen[bytes], directory: Path) -> None:
    until(lambda: list(directory.glob("back.sus.part-*")) or restoring.poll() is not None, "it begins")


@pytest.mark.crash
def test_killed_at_random(directory: Kit) -> None:
    kit, rand = directory, random.Random(SEED)
    told = kit.tell()
    told.change(20)
    control = Control(kit.lab.path("a"))
    words = [sys.executable, "-m", "sustain.cli", "ship", kit.lab.path("a"), "--to"]
    words.append(f"{kit.url}?every=1ms&segment=8KiB&snapshot=50ms")
    promised = 0
    for number in range(KILLS):
        archiver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        arrives(archiver, control, promised)
        after_s = rand.random() * 0.3
        timer = threading.Timer(after_s, archiver.send_signal, (signal.SIGKILL,))
        timer.start()
        while archiver.poll() is None:
            told.change(2)
        timer.join()
        _, complaint = archiver.communicate(timeout=30)
        assert archiver.returncode == -signal.SIGKILL, complaint
        assert "Traceback" not in complaint
        promised = acked(control) or 0
        contents = read_contents(kit.place)
        for name in contents.segments():  # all that is listed is whole
            path = kit.directory / name.path
            segment.unpack(path.read_bytes(), name, contents.store, str(path))
        restored = kit.restore()
        assert restored.position >= promised, f"seed {SEED}, kill {number} after {after_s:.3f} s"
        assert kit.held(restored) == told.at(restored.position), f"seed {SEED}, kill {number}"
        told.change(5)
    control.close()
    assert promised
    shipping = kit.ship("every=1ms")
    kit.arrived(told)
    shipping.stop()
    assert kit.held(kit.restore()) == told.states[-1]
    assert not [each for each in kit.objects() if each.name.startswith(".put")], "what was half put is swept"


# `sustain ship` that kills itself when it puts the first pages of a copy: its log is pinned then.
KILLED_IN_A_COPY = """
import os, signal, sys
from sustain.cli import main
from sustain.replication.archive import names
from sustain.replication.archive.directory import Directory
put = Directory.put
def fatal(place, path, data):
    if names.part_name(path):
        os.kill(os.getpid(), signal.SIGKILL)
    put(place, path, data)
Directory.put = fatal
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.crash
@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
def test_what_a_killed_archiver_had_pinned_for_a_copy(directory: Kit, required: bool) -> None:
    """It holds nobody up, whether or not another one is started, unless the archive is required."""
    kit, path = directory, directory.lab.path("a")
    with sustain.create(path, size="8MiB", log_size="2MiB", durability="memory") as store:
        blob = store.file("blob")
        blob.pwrite(os.urandom(100_000), 0)
        position = store.commit()
    store = kit.lab.open("a", log_timeout=0.2)
    options = f"every=1ms&required={int(required)}"
    command = [sys.executable, "-c", KILLED_IN_A_COPY, "ship", path, "--to", f"{kit.url}?{options}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    control = Control(path)
    words = control.words()
    control.close()
    assert words is not None
    assert words["floor"] <= position, "the log was pinned when it died"
    assert not store.shipper_locked()

    def go_on() -> None:
        for _ in range(100):
            store.file("blob").pwrite(os.urandom(100_000), 0)
            store.commit()

    if required:
        with pytest.raises(sustain.LogFull):
            go_on()
    else:
        go_on()
    shipping = kit.ship(options)
    if required:
        until(lambda: [each.acked for each in store.status().destinations] != [None], "it takes the log")
    store.wait(store.commit(), copies=1, timeout=30)
    shipping.stop()
    restored = kit.restore()
    with sustain.open(restored.path) as there:
        assert there.file("blob").pread(100_000, 0) == store.file("blob").pread(100_000, 0)


@pytest.mark.crash
def test_restore_killed(directory: Kit, tmp_path: Path) -> None:
    """A restore that is killed leaves no store under the name that was asked for, and the next one sweeps."""
    kit, rand = directory, random.Random(SEED)
    told = kit.tell(size="64MiB", log_size="16MiB")
    blob = told.store.file("blob")
    for at in range(0, 24 << 20, 4 << 20):
        blob.pwrite(os.urandom(4 << 20), at)
        told.store.commit()
    told.change(5)
    shipping = kit.ship()
    kit.arrived(told)
    shipping.stop()
    target = tmp_path / "back.sus"
    words = [sys.executable, "-m", "sustain.cli", "restore", kit.url, str(target)]
    for _ in range(3):
        restoring = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begins(restoring, tmp_path)
        try:
            restoring.wait(rand.random() * 0.05)
        except subprocess.TimeoutExpired:
            restoring.kill()
            restoring.wait()
        if target.exists():
            target.unlink()  # it was faster
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [each.name for each in tmp_path.glob("back.sus*")] == ["back.sus"]
