"""Real programs stand still, and go on; a QEMU without a guest, cgroups where this machine has them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.errors import ConfigError, RegionBusy, RegionIOError
from sustain.host.freezer import CgroupFreezer, Freezer, QmpFreezer, SignalFreezer, open_freezer
from sustain.host.processes import Identity
from sustain.host.qmp import Qmp

# Counts, in two threads and in children (one of them in a process group of its own), and keeps starting new children.
BUSY = """
import mmap, os, struct, subprocess, sys, threading, time
descriptor = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(descriptor, 0)
def count(slot):
    number = 0
    while True:
        number += 1
        view[slot * 8 : slot * 8 + 8] = struct.pack("<Q", number)
if os.fork() == 0:
    count(1)
if os.fork() == 0:
    os.setpgid(0, 0)
    count(2)
threading.Thread(target=count, args=(3,), daemon=True).start()
number = 0
while True:
    child = os.fork()
    if child == 0:
        number += 1
        view[0:8] = struct.pack("<Q", number + struct.unpack("<Q", view[0:8])[0])
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    path = tmp_path / "counts"
    path.write_bytes(bytes(4096))
    return path


@pytest.fixture
def busy(counts: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(counts)], start_new_session=True)
    wait_until_all_count(counts, bytes(4096))
    yield process
    end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill it with all that it has started; a child that it has just reaped is gone already."""
    for each in SignalFreezer(process.pid).members():
        with contextlib.suppress(ProcessLookupError):
            os.kill(each.pid, signal.SIGKILL)
    process.wait(30)


def move(pid: int | str, cgroup: Path) -> None:
    """Into that cgroup, if it is there still."""
    with contextlib.suppress(ProcessLookupError):
        (cgroup / "cgroup.procs").write_text(str(pid))


def wait_until_all_count(counts: Path, before: bytes, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        now = counts.read_bytes()
        if all(now[slot * 8 : slot * 8 + 8] != before[slot * 8 : slot * 8 + 8] for slot in range(4)):
            return
        assert time.monotonic() < deadline, "it does not run"
        time.sleep(0.001)


def check(freezer: Freezer, counts: Path) -> None:
    for _ in range(5):
        freezer.freeze()
        still = counts.read_bytes()
        freezer.freeze()  # once more does no harm
        for _ in range(20):
            os.sched_yield()
            assert counts.read_bytes() == still
        freezer.thaw()
        wait_until_all_count(counts, still)
        freezer.thaw()


def test_a_group_with_threads_children_and_a_session_stands_still(
    busy: subprocess.Popen[bytes], counts: Path
) -> None:
    freezer = SignalFreezer(busy.pid)
    assert len(freezer.members()) >= 3
    check(freezer, counts)
    freezer.freeze()
    SignalFreezer(busy.pid).thaw()  # another process may thaw what a dead one froze
    wait_until_all_count(counts, counts.read_bytes())


def test_others_are_stopped_as_well(busy: subprocess.Popen[bytes], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(4096))
    outsider = subprocess.Popen([sys.executable, "-c", BUSY, str(other)], start_new_session=True)
    try:
        wait_until_all_count(other, bytes(4096))
        freezer = SignalFreezer(busy.pid)
        freezer.others = SignalFreezer(outsider.pid).members()
        freezer.freeze()
        still = other.read_bytes()
        assert other.read_bytes() == still
        freezer.thaw()
        wait_until_all_count(other, still)
    finally:
        end(outsider)


def test_a_program_that_has_ended(counts: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    freezer = SignalFreezer(process.pid)
    process.wait(30)
    freezer.freeze()
    freezer.thaw()


def test_one_that_does_not_stop_is_named(
    busy: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sustain.host.freezer.kill", lambda *_: True)  # signals that do nothing
    with pytest.raises(RegionBusy, match=str(busy.pid)):
        SignalFreezer(busy.pid).freeze(timeout_s=0.05)


class Slow(SignalFreezer):
    """One whose look at all processes takes longer than it may take to stop them, as in an emulated guest."""

    stranger = False
    looks = 0

    def members(self) -> set[Identity]:
        time.sleep(0.06)
        self.looks += 1
        # One that has gone counts as stopped, but it was not there before.
        return super().members() | ({Identity(1, -self.looks)} if self.stranger else set())


def test_a_look_may_take_longer_than_the_time_out(busy: subprocess.Popen[bytes], counts: Path) -> None:
    freezer = Slow(busy.pid)
    freezer.freeze(timeout_s=0.05)
    still = counts.read_bytes()
    for _ in range(20):
        os.sched_yield()
        assert counts.read_bytes() == still
    freezer.thaw()


def test_new_ones_all_the_time_are_told(busy: subprocess.Popen[bytes]) -> None:
    freezer = Slow(busy.pid)
    freezer.stranger = True
    with pytest.raises(RegionBusy, match="new ones all the time"):
        freezer.freeze(timeout_s=0.05)
    freezer.thaw()


def test_nobody_freezes_himself() -> None:
    for group in (os.getpgid(0), os.getsid(0), 0, 1):
        with pytest.raises(ConfigError):
            SignalFreezer(group)


def cgroup_roots() -> list[Path]:
    candidates = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/freezer")]
    return [each for each in candidates if (each / "cgroup.procs").exists()]


@pytest.mark.skipif(os.geteuid() != 0 or not cgroup_roots(), reason="no cgroups that can be changed here")
@pytest.mark.parametrize("root", cgroup_roots(), ids=str)
def test_a_cgroup(root: Path, busy: subprocess.Popen[bytes], counts: Path) -> None:
    folder = root / f"sustain-test-{os.getpid()}"
    folder.mkdir()
    try:
        SignalFreezer(busy.pid).freeze()
        for each in SignalFreezer(busy.pid).members():
            move(each.pid, folder)
        SignalFreezer(busy.pid).thaw()
        check(CgroupFreezer(folder), counts)
    finally:
        for each in SignalFreezer(busy.pid).members():
            move(each.pid, root)
        deadline = time.monotonic() + 30
        while True:  # a child that was just being born may still be in it
            try:
                folder.rmdir()
                break
            except OSError:
                assert time.monotonic() < deadline
                for pid in (folder / "cgroup.procs").read_text().split():
                    move(pid, root)


def test_a_directory_that_is_no_cgroup(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a cgroup"):
        CgroupFreezer(tmp_path)


def test_the_words_of_the_option(tmp_path: Path) -> None:
    nobody = open_freezer("signal", None)
    nobody.freeze()
    nobody.thaw()
    assert isinstance(open_freezer("qmp:/a/socket", None), QmpFreezer)
    for bad in ("", "signal:1", "cgroup", "cgroup:", "qmp:", "stop"):
        with pytest.raises(ConfigError):
            open_freezer(bad, None)


def test_a_guest(qemu: tuple[str, int]) -> None:
    path, _ = qemu
    freezer = QmpFreezer(path)
    for _ in range(3):
        freezer.freeze()
        freezer.freeze()
        with Qmp(path) as talk:
            assert talk.ask("query-status")["status"] == "paused"
        freezer.thaw()
        with Qmp(path) as talk:
            assert talk.ask("query-status")["status"] == "running"


def test_no_qemu(tmp_path: Path) -> None:
    with pytest.raises(RegionIOError, match="QMP"):
        QmpFreezer(str(tmp_path / "none")).freeze()
    QmpFreezer(str(tmp_path / "none")).thaw()
