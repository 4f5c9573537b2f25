"""Saving and restoring regions: several places, faults in the middle, kills, resuming, and what must be refused."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import pytest

from sustain import PeerRefused, RegionBusy, RegionCorrupt, RegionError, RegionFull, RegionIOError
from sustain.errors import NotARegion, RegionUnsealed, WrongGeneration
from sustain.powerfail.regions import identity, marker
from sustain.powerfail.regions import medium as media
from sustain.powerfail.regions.background import STEP_PAGES
from sustain.powerfail.regions.directory import DirectorySink, DirectorySource
from sustain.powerfail.regions.manifest import PAGE_BYTES, RegionIdentity, Seal
from sustain.powerfail.regions.restore import Report as Restored
from sustain.powerfail.regions.restore import restore
from sustain.powerfail.regions.save import Outcome, Report, Request, default_name, save
from sustain.powerfail.regions.sink import Held, Sink

NAME = "vm1"
PAGES = 2000
SIZE = PAGES * PAGE_BYTES - 1000
UUID = b"u" * 16


def make_region(path: Path, seed: int = 1, size: int = SIZE) -> bytes:
    draw = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for _ in range(60):
            file.seek(draw.randrange(size - 100_000))
            file.write(draw.randbytes(draw.choice([1, 4096, 65536])))
        file.truncate(size)
    return path.read_bytes()


def change(path: Path, pages: list[int]) -> None:
    with path.open("r+b") as file:
        for page in pages:
            file.seek(page * PAGE_BYTES + 7)
            file.write(random.Random(page).randbytes(20))


def request(path: Path, number: int = 1, epoch: int = 1) -> Request:
    return Request(
        str(path), RegionIdentity(UUID, path.stat().st_size, NAME), epoch, number, "host-a", "test", 1
    )


def save_to(path: Path, *sinks: Sink, number: int = 1, epoch: int = 1) -> Report:
    return save(request(path, number, epoch), sinks)


def at(root: Path) -> DirectorySink:
    return DirectorySink(root, NAME)


def restore_from(root: Path, path: Path, **options: int | bool) -> Restored:
    with DirectorySource(root, NAME) as source:
        return restore(source, path, **options)  # type: ignore[arg-type]


def test_a_region_is_restored_as_it_was(tmp_path: Path) -> None:
    region = tmp_path / "region"
    data = make_region(region)
    report = save_to(region, at(tmp_path / "s"))
    assert report.complete
    assert report.number == 1
    assert report.outcomes[0].error is None
    restored = restore_from(tmp_path / "s", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data == region.read_bytes()
    assert restored.copied_bytes == report.outcomes[0].written_bytes < SIZE
    assert not marker.path_of(tmp_path / "back").exists()
    known = identity.load(tmp_path / "back")
    assert known is not None
    assert known == identity.load(region)
    assert (known.region(SIZE).uuid, known.epoch, known.number) == (UUID, 1, 1)


def test_the_second_save_writes_what_changed(tmp_path: Path) -> None:
    region = tmp_path / "region"
    make_region(region)
    save_to(region, at(tmp_path / "s"))
    change(region, [3, 4, 5, 1000, PAGES - 1])
    report = save_to(region, at(tmp_path / "s"))
    assert report.number == 2
    assert report.outcomes[0].written_bytes == 5 * PAGE_BYTES
    restored = restore_from(tmp_path / "s", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == region.read_bytes()
    assert restored.seal.number == 2
    # A restore onto the state before copies the difference, too.
    change(region, [7, 8])
    save_to(region, at(tmp_path / "s"))
    assert restore_from(tmp_path / "s", tmp_path / "back").copied_bytes == 2 * PAGE_BYTES
    assert (tmp_path / "back").read_bytes() == region.read_bytes()


def test_holes_and_zeros_are_taken_back(tmp_path: Path) -> None:
    region = tmp_path / "region"
    make_region(region)
    save_to(region, at(tmp_path / "s"))
    os.truncate(region, 0)
    os.truncate(region, SIZE)
    save_to(region, at(tmp_path / "s"))
    make_region(tmp_path / "back", seed=9)
    restore_from(tmp_path / "s", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == bytes(SIZE)


def test_to_a_larger_target(tmp_path: Path) -> None:
    region = tmp_path / "region"
    data = make_region(region)
    save_to(region, at(tmp_path / "s"))
    target = tmp_path / "larger"
    target.write_bytes(b"x" * (SIZE + 50 * PAGE_BYTES))
    report = restore_from(tmp_path / "s", target)
    assert target.read_bytes()[:SIZE] == data
    assert report.target_bytes == target.stat().st_size == SIZE + 50 * PAGE_BYTES
    assert restore_from(tmp_path / "s", target).copied_bytes == 0


class Broken(Sink):
    """A directory that goes wrong in one way, in the middle."""

    def __init__(self, root: Path, way: str) -> None:
        self._real = DirectorySink(root, NAME)
        self.url = f"broken:{way}"
        self._way = way
        self._writes = 0

    def begin(self, identity: RegionIdentity, epoch: int) -> Held:
        if self._way == "dead":
            raise RegionIOError("nobody there", hint="")
        return self._real.begin(identity, epoch)

    def write(self, first_page: int, data: bytes | memoryview, digests: bytes) -> None:
        self._writes += 1
        if self._writes == 5 and self._way == "full":
            raise RegionFull("no room", hint="")
        if self._writes == 5 and self._way == "dies":
            raise RegionIOError("gone", hint="")
        if self._writes == 5 and self._way == "defect":
            raise KeyError("a defect")
        if self._writes == 5 and self._way == "corrupts":
            data = bytes([data[0] ^ 1]) + bytes(data[1:])
        self._real.write(first_page, data, digests)

    def flush(self) -> None:
        self._real.flush()

    def seal(self, seal: Seal) -> None:
        if self._way == "never seals":
            raise RegionIOError("gone before the seal", hint="")
        self._real.seal(seal)

    def close(self) -> None:
        self._real.close()


@pytest.mark.parametrize("way", ["dead", "full", "dies", "defect", "corrupts", "never seals"])
def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, way: str) -> None:
    region = tmp_path / "region"
    data = make_region(region)
    report = save_to(region, at(tmp_path / "a"), Broken(tmp_path / "b", way), at(tmp_path / "c"))
    assert not report.complete
    assert [each.sealed for each in report.outcomes] == [1, None, 1]
    assert report.outcomes[1].error is not None
    if way == "corrupts":
        assert isinstance(report.outcomes[1].error, RegionCorrupt)
    for name in "ac":
        restore_from(tmp_path / name, tmp_path / f"from-{name}")
        assert (tmp_path / f"from-{name}").read_bytes() == data
    if way != "dead":
        with pytest.raises(RegionUnsealed):
            restore_from(tmp_path / "b", tmp_path / "from-b")
        assert not (tmp_path / "from-b").exists()
    report = save_to(region, at(tmp_path / "a"), at(tmp_path / "b"))
    assert report.complete
    assert report.number == 2
    restore_from(tmp_path / "b", tmp_path / "from-b", number=2)
    assert (tmp_path / "from-b").read_bytes() == data


class Hangs(DirectorySink):
    """Takes nothing before it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, NAME)
        self.go_on = threading.Event()

    def write(self, first_page: int, data: bytes | memoryview, digests: bytes) -> None:
        assert self.go_on.wait(30)
        super().write(first_page, data, digests)


def test_one_that_hangs_does_not_keep_the_others_from_their_seal(tmp_path: Path) -> None:
    region = tmp_path / "region"
    data = make_region(region)
    hanging = Hangs(tmp_path / "a")

    def watch(outcomes: list[Outcome]) -> None:
        if outcomes[1].sealed is not None and not hanging.go_on.is_set():
            assert outcomes[0].sealed is None
            hanging.go_on.set()

    assert save(request(region), [hanging, at(tmp_path / "b")], watch).complete
    for name in "ab":
        restore_from(tmp_path / name, tmp_path / f"from-{name}")
        assert (tmp_path / f"from-{name}").read_bytes() == data


def test_a_save_that_is_interrupted_ends_at_once_and_unsealed(tmp_path: Path) -> None:
    region = tmp_path / "region"
    make_region(region)

    def interrupt(outcomes: list[Outcome]) -> None:
        hanging.go_on.set()
        raise KeyboardInterrupt

    hanging = Hangs(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        save(request(region), [hanging], interrupt)
    with pytest.raises((RegionUnsealed, NotARegion)):
        restore_from(tmp_path / "a", tmp_path / "back")
    assert save_to(region, at(tmp_path / "a")).complete


def run(*words: object) -> bool:
    return subprocess.run([str(word) for word in words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    if not run("mount", "-t", "tmpfs", "-o", "size=4m", "small", path):
        pytest.skip("mounting needs root")
    yield path
    run("umount", "-l", path)


def test_a_destination_that_is_full_goes_on_when_it_has_room(tmp_path: Path, small: Path) -> None:
    region = tmp_path / "region"
    region.write_bytes(random.Random(1).randbytes(SIZE))
    report = save_to(region, at(small), at(tmp_path / "other"))
    assert [each.sealed for each in report.outcomes] == [None, 1]
    assert isinstance(report.outcomes[0].error, RegionFull)
    assert "No space left" in str(report.outcomes[0].error)
    with pytest.raises(RegionUnsealed):
        restore_from(small, tmp_path / "back")
    assert run("mount", "-o", "remount,size=64m", small)
    report = save_to(region, at(small))
    assert report.complete
    assert 0 < report.outcomes[0].written_bytes <= SIZE - 3 * 1024 * 1024
    restore_from(small, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == region.read_bytes()


def test_a_target_that_is_full_goes_on_when_it_has_room(tmp_path: Path, small: Path) -> None:
    region = tmp_path / "region"
    region.write_bytes(random.Random(1).randbytes(SIZE))
    save_to(region, at(tmp_path / "s"))
    with pytest.raises(RegionFull, match="No space left"):
        restore_from(tmp_path / "s", small / "back")
    assert marker.path_of(small / "back").exists()
    assert run("mount", "-o", "remount,size=64m", small)
    assert 0 < restore_from(tmp_path / "s", small / "back").copied_bytes <= SIZE - 3 * 1024 * 1024
    assert (small / "back").read_bytes() == region.read_bytes()


def test_numbers_rise_over_all_destinations(tmp_path: Path) -> None:
    region = tmp_path / "region"
    make_region(region)
    assert save_to(region, at(tmp_path / "a"), number=7).number == 7
    assert save_to(region, at(tmp_path / "b"), at(tmp_path / "a")).number == 8
    known = identity.load(region)
    assert known is not None
    assert known.number == 8


def test_a_former_primary_cannot_save(tmp_path: Path) -> None:
    region = tmp_path / "region"
    make_region(region)
    save_to(region, at(tmp_path / "a"), epoch=3)
    report = save_to(region, at(tmp_path / "a"), epoch=2)
    assert isinstance(report.outcomes[0].error, PeerRefused)
    assert report.number is None
    assert "epoch 2 is over" in str(report.outcomes[0].error)


class Writes(DirectorySink):
    """While this is saved to, a program changes a page: after `when`."""

    def __init__(self, root: Path, region: Path, when: str, page: int) -> None:
        super().__init__(root, NAME)
        self._region, self._when, self._page = region, when, page

    def write(self, first_page: int, data: bytes | memoryview, digests: bytes) -> None:
        super().write(first_page, data, digests)
        if self._when == "write" and first_page > self._page:
            change(self._region, [self._page])
            self._when = ""

    def flush(self) -> None:
        if self._when == "pass":
            change(self._region, [self._page])
        super().flush()


def test_only_a_region_that_somebody_may_write_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = tmp_path / "region"
    region.write_bytes(random.Random(1).randbytes(SIZE))
    pages: list[int] = []
    real = media.FileMedium.read

    def read(self: media.FileMedium, first_page: int, buffer: bytearray | memoryview) -> None:
        pages.append(len(buffer) // PAGE_BYTES)
        real(self, first_page, buffer)

    monkeypatch.setattr(media.FileMedium, "read", read)
    assert save_to(region, at(tmp_path / "s")).complete
    assert sum(pages) == PAGES
    with region.open("r+b"):
        assert save_to(region, at(tmp_path / "t")).complete
    assert sum(pages) == 3 * PAGES


@pytest.mark.parametrize("when", ["write", "pass"])
def test_a_region_that_changes_meanwhile_is_never_sealed(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = tmp_path / "region"
    region.write_bytes(random.Random(1).randbytes(SIZE))
    start = threading_start_after_flush(monkeypatch)
    with region.open("r+b"):  # as a program has it
        report = save_to(region, Writes(tmp_path / "s", region, when, 17))
    assert isinstance(report.outcomes[0].error, RegionBusy)
    assert "page 17 changed" in str(report.outcomes[0].error)
    assert start
    with pytest.raises(RegionUnsealed):
        restore_from(tmp_path / "s", tmp_path / "back")
    assert save_to(region, at(tmp_path / "s")).complete
    restore_from(tmp_path / "s", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == region.read_bytes()


def threading_start_after_flush(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The second reading runs beside the flush; here it comes behind it, so that the change is always before it."""
    from sustain.powerfail.regions import save as module

    ran: list[int] = []
    real = module._Recheck.result

    def enter(self: object) -> object:
        return self

    def result(self: module._Recheck) -> None:
        ran.append(1)
        for thread in self._threads:
            thread.start()
        real(self)

    monkeypatch.setattr(module._Recheck, "__enter__", enter)
    monkeypatch.setattr(module._Recheck, "result", result)
    return ran


# restore


def test_a_wrong_generation_is_refused(tmp_path: Path) -> None:
    region = tmp_path / "region"
    data = make_region(region)
    save_to(region, at(tmp_path / "s"), number=5, epoch=2)
    for wrong in ({"number": 4}, {"number": 6}, {"epoch": 1}, {"epoch": 3, "number": 5}):
        with pytest.raises(WrongGeneration, match="seal 5 of epoch 2"):
            restore_from(tmp_path / "s", tmp_path / "back", **wrong)
        assert not (tmp_path / "back").exists()
    restore_from(tmp_path / "s", tmp_path / "back", epoch=2, number=5)
    assert (tmp_path / "back").read_bytes() == data


def damage(root: Path, pages: list[int]) -> None:
    with (root / NAME / "image").open("r+b") as file:
        for page in pages:
            file.seek(page * PAGE_BYTES + 77)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0x20]))


def test_damaged_pages_are_named_and_not_restored(tmp_path: Path) -> None:
    region = tmp_path / "region"
    data = make_region(region)
    change(region, [100, 101, 102, 900])
    data = region.read_bytes()
    save_to(region, at(tmp_path / "s"))
    damage(tmp_path / "s", [100, 101, 102, 900])
    with pytest.raises(RegionCorrupt, match="pages 100 to 102, 900 are not what their digests say"):
        restore_from(tmp_path / "s", tmp_path / "back")
    with (tmp_path / "back").open("rb") as file:
        for page in (100, 900):
            assert os.pread(file.fileno(), PAGE_BYTES, page * PAGE_BYTES) == bytes(PAGE_BYTES)
    assert marker.path_of(tmp_path / "back").exists()
    with pytest.raises(RegionUnsealed, match="half restored"):
        save_to(tmp_path / "back", at(tmp_path / "t"))
    # Another destination has them; only those pages are copied.
    save_to(region, at(tmp_path / "other"))
    report = restore_from(tmp_path / "other", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert not marker.path_of(tmp_path / "back").exists()
    assert report.copied_bytes >= 4 * PAGE_BYTES


def test_without_verification_damage_passes(tmp_path: Path) -> None:
    """Which shows that it is the verification that stops it."""
    region = tmp_path / "region"
    make_region(region)
    change(region, [900])
    save_to(region, at(tmp_path / "s"))
    damage(tmp_path / "s", [900])
    restore_from(tmp_path / "s", tmp_path / "back", verify=False)
    assert (tmp_path / "back").read_bytes() != region.read_bytes()


def test_a_target_that_loses_writes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    region = tmp_path / "region"
    region.write_bytes(random.Random(1).randbytes(SIZE))
    save_to(region, at(tmp_path / "s"))
    real = media.write_all

    def lossy(fd: int, data: memoryview, offset: int) -> None:
        if offset:
            real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(media, "write_all", lossy)
        with pytest.raises(RegionCorrupt, match=f"pages 0 to {STEP_PAGES - 1} are not what was written"):
            restore_from(tmp_path / "s", tmp_path / "back")
    assert marker.path_of(tmp_path / "back").exists()
    assert restore_from(tmp_path / "s", tmp_path / "back").copied_bytes == STEP_PAGES * PAGE_BYTES


@pytest.fixture
def in_memory() -> Iterator[Path]:
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


class Opener:
    """Opens the target while a restore writes it, after `after` writes, and does `what` with it."""

    def __init__(
        self, patch: pytest.MonkeyPatch, path: Path, mode: str, what: Callable[[IO[bytes]], None]
    ) -> None:
        self.reads = self.writes = 0
        self._path, self._mode, self._what = path, mode, what
        write, read = media.write_all, media.read_all
        thread = threading.Thread(target=self._open)

        def writing(fd: int, data: memoryview, offset: int) -> None:
            write(fd, data, offset)
            self.writes += 1
            if self.writes == 1:
                thread.start()
                # It waits for the lease, or has not met one.
                while thread.is_alive() and fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK:
                    time.sleep(0.001)
            elif self.writes == 2:
                thread.join()

        def reading(fd: int, view: memoryview, offset: int) -> int:
            self.reads += 1
            return read(fd, view, offset)

        patch.setattr(media, "write_all", writing)
        patch.setattr(media, "read_all", reading)

    def _open(self) -> None:
        with self._path.open(self._mode) as file:
            self._what(file)


def test_in_memory_nothing_is_read_back_while_nobody_else_opens_the_target(
    tmp_path: Path, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region, reads = tmp_path / "region", 0
    region.write_bytes(random.Random(1).randbytes(SIZE))
    save_to(region, at(tmp_path / "s"))
    real = media.read_all

    def counting(fd: int, view: memoryview, offset: int) -> int:
        nonlocal reads
        reads += 1
        return real(fd, view, offset)

    monkeypatch.setattr(media, "read_all", counting)
    restore_from(tmp_path / "s", in_memory / "back")
    assert (in_memory / "back").read_bytes() == region.read_bytes()
    assert reads == 0
    restore_from(tmp_path / "s", tmp_path / "back")
    assert reads > 0


def test_a_program_that_writes_to_a_target_in_memory_is_found(
    tmp_path: Path, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = tmp_path / "region"
    region.write_bytes(random.Random(1).randbytes(SIZE))
    save_to(region, at(tmp_path / "s"))

    def scribble(file: IO[bytes]) -> None:
        file.seek(7 * PAGE_BYTES)
        file.write(b"mine")

    with monkeypatch.context() as patch:
        opener = Opener(patch, in_memory / "back", "r+b", scribble)
        with pytest.raises(RegionCorrupt, match="page 7 are not what was written"):
            restore_from(tmp_path / "s", in_memory / "back")
    assert opener.reads
    assert marker.path_of(in_memory / "back").exists()
    restore_from(tmp_path / "s", in_memory / "back")
    assert (in_memory / "back").read_bytes() == region.read_bytes()


def test_who_reads_a_target_in_memory_does_not_wait_for_the_restore(
    tmp_path: Path, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = tmp_path / "region"
    seen: list[bytes] = []
    region.write_bytes(random.Random(1).randbytes(SIZE))
    save_to(region, at(tmp_path / "s"))
    with monkeypatch.context() as patch:
        opener = Opener(patch, in_memory / "back", "rb", lambda file: seen.append(file.read(8)))
        restore_from(tmp_path / "s", in_memory / "back")
    assert seen == [region.read_bytes()[:8]]  # while the second step was not done yet
    assert opener.reads, "somebody has opened it, so it was read back"
    assert (in_memory / "back").read_bytes() == region.read_bytes()


@pytest.mark.parametrize("fails_at", [0, 1, 2, 3])
def test_an_interrupted_restore_copies_only_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    region = tmp_path / "region"
    region.write_bytes(random.Random(1).randbytes(SIZE))
    save_to(region, at(tmp_path / "s"))
    real = media.write_all
    written = 0

    def failing(fd: int, data: memoryview, offset: int) -> None:
        nonlocal written
        if written == fails_at:
            raise OSError(5, "Input/output error")
        real(fd, data, offset)
        written += 1

    with monkeypatch.context() as patch:
        patch.setattr(media, "write_all", failing)
        with pytest.raises(RegionIOError):
            restore_from(tmp_path / "s", tmp_path / "back")
    assert marker.path_of(tmp_path / "back").exists()
    report = restore_from(tmp_path / "s", tmp_path / "back")
    assert report.copied_bytes == (PAGES - fails_at * STEP_PAGES) * PAGE_BYTES
    assert (tmp_path / "back").read_bytes() == region.read_bytes()


def test_a_full_target_is_said(tmp_path: Path) -> None:
    from tests.powerfail.regions.test_directory import file_size_limit

    region = tmp_path / "region"
    make_region(region)
    save_to(region, at(tmp_path / "s"))
    with file_size_limit(SIZE // 2), pytest.raises(RegionFull):
        restore_from(tmp_path / "s", tmp_path / "back")


# kill -9

RUN = """
import sys, random
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.powerfail.regions import test_save_restore as t
import signal, os
left, whole = int(sys.argv[2]), os.pwrite
def dying(fd, data, offset):
    global left
    left -= 1
    if left < 0:
        whole(fd, memoryview(data)[: len(data) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(fd, data, offset)
os.pwrite = dying
base = Path(sys.argv[1])
if sys.argv[3] == "save":
    report = t.save_to(base / "region", t.at(base / "s"))
    raise SystemExit(0 if report.complete else 1)
t.restore_from(base / "s", base / "back")
"""


def killed(base: Path, writes: int, what: str) -> bool:
    """Run a save or a restore that is killed in the middle of its nth write; whether it was."""
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(root=root), str(base), str(writes), what], check=False, timeout=60
    )
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


@pytest.mark.crash
def test_a_save_that_is_killed_anywhere_is_unsealed_or_whole(tmp_path: Path) -> None:
    region, old = tmp_path / "region", b""
    region.write_bytes(random.Random(1).randbytes(SIZE))
    save_to(region, at(tmp_path / "s"))
    old = region.read_bytes()
    unsealed = 0
    for writes in range(40):
        change(region, [5 + writes, 300, 700, 1999])
        new = region.read_bytes()
        was_killed = killed(tmp_path, writes, "save")
        try:
            restore_from(tmp_path / "s", tmp_path / "back")
            assert (tmp_path / "back").read_bytes() in ((old, new) if was_killed else (new,))
        except RegionUnsealed:
            assert was_killed
            unsealed += 1
        if not was_killed:
            break
        report = save_to(region, at(tmp_path / "s"))
        assert report.complete
        restore_from(tmp_path / "s", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == new
        old = new
    else:
        raise AssertionError("never came to an end")
    assert unsealed >= 3


@pytest.mark.crash
def test_a_restore_that_is_killed_anywhere_goes_on(tmp_path: Path) -> None:
    region = tmp_path / "region"
    region.write_bytes(random.Random(1).randbytes(SIZE))
    save_to(region, at(tmp_path / "s"))
    back = tmp_path / "back"
    for writes in range(40):
        back.unlink(missing_ok=True)
        if not killed(tmp_path, writes, "restore"):
            assert back.read_bytes() == region.read_bytes()
            assert writes > -(-PAGES // STEP_PAGES), "every step was cut, and what comes after"
            break
        if back.exists() and back.read_bytes() != region.read_bytes():
            assert not back.stat().st_blocks or marker.path_of(back).exists()
        restore_from(tmp_path / "s", back)
        assert back.read_bytes() == region.read_bytes()
        assert not marker.path_of(back).exists()
    else:
        raise AssertionError("never came to an end")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/srv/vm1.nvdimm", "vm1.nvdimm"),
        ("/dev/dax0.0", "dax0.0"),
        ("/x/.hidden b", "hidden-b"),
        ("/x/..", "region"),
    ],
)
def test_default_names(path: str, name: str) -> None:
    assert default_name(path) == name


def test_a_damaged_identity_is_said(tmp_path: Path) -> None:
    for text in ("", "{}", '{"uuid": "x", "name": "y"}', "\xff"):
        Path(f"{tmp_path}/r.region-id").write_text(text)
        with pytest.raises(RegionError, match="region-id") as caught:
            identity.load(tmp_path / "r")
        assert caught.value.hint


def test_every_destination_once(tmp_path: Path) -> None:
    from sustain.errors import ConfigError

    make_region(tmp_path / "region")
    with pytest.raises(ConfigError):
        save_to(tmp_path / "region", at(tmp_path / "a"), at(tmp_path / "a"))
