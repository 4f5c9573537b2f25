"""The disk of a standby fills up, at each point where it could matter: on real file systems, made small by the tests.

A store's room is reserved when it is made and when it is opened, so a full disk is an error of a call, in one line, and
never a SIGBUS; what could be written before goes on being written.
"""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import sustain
from sustain._native import Control
from sustain.errors import StoreIOError
from sustain.replication.urls import join
from sustain.testing.link import Link

from .conftest import LIMIT_S, LINK, Lab, contents, fill, until
from .test_processes import Processes
from .test_several import go_on, ship, state_of

LOG_OFFSET = 2 << 20
LOG_SIZE = 2 << 20
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
# On a busy machine a connection that is silent for seconds is no failure; another snapshot, where there is no room, is.
PATIENT_S = 30.0
PATIENT, PATIENT_WORDS = replace(LINK, timeout_s=PATIENT_S), ("--timeout", f"{PATIENT_S:.0f}s")


class Disk:
    """A small file system, which can be filled to the last block and given room again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fillers = 0

    def fill(self, leave_bytes: int = 0) -> None:
        """Until nothing more fits, but for `leave_bytes`."""
        self._fillers += 1
        with open(self.path / f"filler-{self._fillers}", "wb", buffering=0) as file:
            if leave_bytes:
                stats = os.statvfs(self.path)
                os.posix_fallocate(file.fileno(), 0, stats.f_bavail * stats.f_frsize - leave_bytes)
                return
            size = 1 << 20
            while size >= 512:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2
            os.fsync(file.fileno())
        assert os.statvfs(self.path).f_bavail == 0

    def free(self) -> None:
        for each in self.path.glob("filler-*"):
            each.unlink()


def mounted(path: Path, *words: str) -> Iterator[Disk]:
    path.mkdir()
    done = subprocess.run(["mount", *words, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Disk]:
    yield from mounted(tmp_path / "memory", "-t", "tmpfs", "-o", "size=40m", "small")


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Disk]:
    image = tmp_path / "ext4"
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    yield from mounted(tmp_path / "disk", "-o", "loop", str(image))


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest) -> Disk:
    made = request.getfixturevalue(request.param)
    assert isinstance(made, Disk)
    return made


def punch(path: Path, start: int, end: int) -> None:
    """Take the room of a part of a file away: what a copy-on-write file system, or a sparse copy, does to a store."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "r+b") as file:
        failed = libc.fallocate(
            file.fileno(),
            FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
            ctypes.c_long(start),
            ctypes.c_long(end - start),
        )
    assert failed == 0, os.strerror(ctypes.get_errno())


def change(store: sustain.Store, logs: int) -> int:
    """Commit so many logs' lengths; the last position."""
    blob, position = store.file("blob"), 0
    for _ in range(logs * LOG_SIZE // 100_000 + 1):
        blob.pwrite(os.urandom(100_000), 0)
        position = store.commit()
    return position


def committed(path: Path) -> int:
    """What a standby says that it holds."""
    control = Control(str(path))
    try:
        words = control.words()
        assert words is not None
        return words["committed"]
    finally:
        control.close()


def receive(
    lab: Lab, store: Path, port: int = 0, *words: str
) -> tuple[Processes, subprocess.Popen[str], int]:
    """`sustain receive` with its store there."""
    processes, port_file = Processes(lab), lab.directory / "port"
    port_file.unlink(missing_ok=True)
    listen = ("--listen", f"127.0.0.1:{port}", "--port-file", str(port_file))
    process = processes.start("receive", "--store", str(store), *listen, *PATIENT_WORDS, *words)
    until(lambda: port_file.exists() or process.poll() is not None, "it listens")
    return processes, process, int(port_file.read_text()) if process.poll() is None else 0


def no_room(line: str) -> bool:
    return "No space left" in line or "has no room" in line


def ended_well(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 0


def same(store: sustain.Store, standby: Path) -> None:
    with sustain.open(standby) as there:
        there.verify()
        assert contents(there) == contents(store)
        assert there.file("blob").pread(100_000, 0) == store.file("blob").pread(100_000, 0)


def test_a_standby_streams_on_where_nothing_is_left_and_starts_there(lab: Lab, disk: Disk) -> None:
    """Its room is its own. Killed in the middle, it recovers without a free block."""
    store, there = lab.create(), disk.path / "b.sus"
    processes, process, port = receive(lab, there)
    try:
        # Commits wait for it: there is no room for a snapshot.
        lab.ship(f"tcp://127.0.0.1:{port}", required=True, link=PATIENT, stall_s=PATIENT_S)
        store.wait(fill(store, 0, 10), copies=1, timeout=LIMIT_S)
        disk.fill()
        store.wait(change(store, 3), copies=1, timeout=LIMIT_S)
        assert os.statvfs(disk.path).f_bavail == 0
        process.kill()
        process.wait(LIMIT_S)
        position = change(store, 0)
        more, process, _ = receive(lab, there, port)
        try:
            store.wait(position, copies=1, timeout=LIMIT_S)
            store.wait(change(store, 3), copies=1, timeout=LIMIT_S)
            assert process.poll() is None
            ended_well(process)
        finally:
            more.end()
    finally:
        processes.end()
    same(store, there)


@pytest.mark.parametrize("late", [False, True], ids=["in time", "when the log has moved on"])
def test_a_write_to_the_log_finds_no_room(lab: Lab, tmpfs: Disk, late: bool) -> None:
    """`sustain receive` goes on with what is durable as soon as there is room, by itself, and ends for nobody."""
    store, there = lab.create(), tmpfs.path / "b.sus"
    processes, process, port = receive(lab, there, 0, "--durability", "disk")
    try:
        url = f"tcp://127.0.0.1:{port}"
        running = lab.ship(url, stall_s=0.3, link=PATIENT)
        before = fill(store, 0, 10)
        store.wait(before, copies=1, timeout=LIMIT_S)

        def snapshots() -> int:
            return sum("gets a snapshot: " in line for line in running.said)

        already = snapshots()
        punch(there, LOG_OFFSET + (before + 8191) // 4096 * 4096, LOG_OFFSET + LOG_SIZE)
        tmpfs.fill()
        position = change(store, 0)
        until(lambda: any("No space left" in line for line in running.said), "the primary is told")

        def status() -> sustain.DestinationStatus:
            (destination,) = store.status().destinations
            return destination

        assert status().acked == committed(there) < position, "what is acknowledged is durable"
        until(lambda: "No space left" in (status().left_alone_why or ""), "and shows it")
        if late:
            position = go_on(store, lambda: state_of(store, url) == "needs-snapshot")
            assert committed(there) == status().acked
        assert process.poll() is None, "it does not end"
        tmpfs.free()
        store.wait(position, copies=1, timeout=LIMIT_S)
        assert (snapshots() > already) is late, f"only where the log has moved on: {running.said}"
        store.wait(change(store, 2), copies=1, timeout=LIMIT_S)
        running.stop()
        ended_well(process)
        complaint = processes.complaint(process)
        assert "No space left" in complaint
        assert "free space on this file system" in complaint
        assert "Traceback" not in complaint
    finally:
        processes.end()
    same(store, there)


def test_the_next_snapshot_has_no_room(lab: Lab, ext4: Disk) -> None:
    """The copy before it stays, and whole; the primary and its other standby go on; then it comes by itself."""
    store, good = lab.create(), lab.receiver("c")
    bad = lab.receiver("b", store=str(ext4.path / "b.sus"))
    with Link(bad.address) as link:
        running = ship(lab, good, link.url, False)
        before = fill(store, 0, 10)
        store.wait(before, copies=2, timeout=LIMIT_S)
        link.down()
        position = go_on(store, lambda: state_of(store, link.url) == "needs-snapshot")
        ext4.fill(leave_bytes=4 << 20)
        link.flow()
        until(lambda: any(map(no_room, running.said)), "the primary is told")
        position = go_on(store, lambda: state_of(store, link.url) in ("needs-snapshot", "snapshot"))
        store.wait(position, copies=1, timeout=LIMIT_S)
        assert bad.failure is None
        assert bad.status()["has_store"]
        copy = lab.directory / "copy.sus"
        shutil.copyfile(ext4.path / "b.sus", copy)
        with sustain.open(copy) as old:
            old.verify()
            assert old.position >= before
            assert contents(old).keys() >= {b"%06d" % number for number in range(10)}
        ext4.free()
        store.wait(change(store, 1), copies=2, timeout=LIMIT_S)
        running.stop()
    good.stop()
    bad.stop()
    same(store, ext4.path / "b.sus")
    same(store, Path(lab.path("c")))


def test_the_disk_fills_while_a_snapshot_comes(lab: Lab, disk: Disk) -> None:
    """What was reserved for it when it began suffices."""
    store = lab.create()
    for at in range(8):
        store.file("blob").pwrite(os.urandom(500_000), at * 500_000)
        store.commit()
    receiver = lab.receiver("b", store=str(disk.path / "b.sus"), timeout_s=PATIENT_S)
    with Link(receiver.address) as link:
        link.slow(400_000)
        # Commits wait for it: there is no room for another.
        running = lab.ship(link.url, required=True, link=PATIENT, stall_s=PATIENT_S)
        until(lambda: receiver.status()["state"] == "snapshot", "it is under way")
        disk.fill()
        assert receiver.status()["state"] == "snapshot"
        link.flow()
        store.wait(change(store, 2), copies=1, timeout=LIMIT_S)
        running.stop()
    receiver.stop()
    same(store, disk.path / "b.sus")


@pytest.mark.parametrize("opened", ["application", "standby"])
def test_a_sparse_copy_of_a_store_is_given_its_room_when_it_is_opened(
    lab: Lab, disk: Disk, opened: str
) -> None:
    """Else a store into a hole would be the process's end, by SIGBUS, once the disk is full."""
    store, there = lab.create(), disk.path / "a.sus"
    fill(store, 0, 10)
    change(store, 1)
    expected = contents(store)
    store.close()
    subprocess.run(["cp", "--sparse=always", lab.path("a"), there], check=True)
    assert there.stat().st_blocks * 512 < there.stat().st_size
    disk.fill()
    if opened == "standby":
        processes, process, _ = receive(lab, there)
        try:
            assert process.wait(LIMIT_S) == 1
            complaint = processes.complaint(process)
        finally:
            processes.end()
        assert complaint.count("error: ") == complaint.count("hint: ") == 1
        assert "No space left" in complaint
    else:
        with pytest.raises(StoreIOError) as caught:
            sustain.open(there)
        assert caught.value.errno == errno.ENOSPC
        assert str(there) in str(caught.value)
        assert caught.value.hint
    disk.free()
    with sustain.open(there) as opening:
        assert there.stat().st_blocks * 512 >= there.stat().st_size
        disk.fill()
        change(opening, 3)
        opening.file("more").pwrite(os.urandom(1 << 20), 0)
        opening.commit()
        assert contents(opening) == expected


@pytest.mark.parametrize("how", ["create", "restore", "receive"])
def test_a_full_disk_where_a_store_is_made(lab: Lab, disk: Disk, how: str) -> None:
    """One error, one hint, and nothing is left there."""
    store = lab.create()
    position = change(store, 1)
    archive = f"file://{lab.directory}/arch"
    running = lab.ship(f"{archive}?every=1ms")
    store.wait(position, copies=1, timeout=LIMIT_S)
    running.stop()
    there = disk.path / "new.sus"
    disk.fill(leave_bytes=3 << 20)
    if how == "receive":
        receiver = lab.receiver("b", store=str(there))
        running = lab.ship(f"tcp://{join(*receiver.address)}")
        until(lambda: any(map(no_room, lab.said)), "the receiver says so")
        until(lambda: any(map(no_room, running.said)), "and the primary")
        running.stop()
        receiver.stop()
        assert receiver.failure is None
    else:
        verb = (
            ["create", str(there), "--size", "8MiB"] if how == "create" else ["restore", archive, str(there)]
        )
        done = subprocess.run(
            [sys.executable, "-m", "sustain.cli", *verb],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1, done
        error, hint = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
        assert "No space left" in error
        assert "new.sus" in error
        assert hint.startswith("hint: ")
    assert [each.name for each in disk.path.iterdir() if each.name.startswith("new")] == []
