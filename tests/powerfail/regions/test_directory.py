"""A region saved in a directory: the order of its steps, what a crash or damage leaves, errors of the medium."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sustain import (
    RegionBusy,
    RegionCorrupt,
    RegionError,
    RegionFull,
    RegionIOError,
    RegionUnsealed,
    wholefile,
)
from sustain.powerfail.regions import directory
from sustain.powerfail.regions.directory import DirectorySink, DirectorySource
from sustain.powerfail.regions.manifest import PAGE_BYTES, Seal, decode
from sustain.powerfail.regions.scan import digests_of, table_digest
from tests.powerfail.regions.test_places import NAME, REGION, SIZE, a_seal, content, put


def save(root: Path, data: bytes, number: int = 1) -> None:
    with DirectorySink(root, NAME) as sink:
        sink.begin(REGION, 1)
        put(sink, data)
        sink.flush()
        sink.seal(a_seal(data, number))


def restore(root: Path) -> bytes:
    """As a restore does it: everything is checked."""
    with DirectorySource(root, NAME) as source:
        source.seal()
        table, data = source.table(), source.read(0, source.identity().pages)
        if digests_of(data) != table:
            raise RegionCorrupt("pages")
        return data[: source.identity().size_bytes]


def test_layout(tmp_path: Path) -> None:
    data = content(1)
    save(tmp_path, data)
    folder = tmp_path / NAME
    assert sorted(each.name for each in folder.iterdir()) == ["image", "lock", "manifest", "table"]
    assert (folder / "image").read_bytes() == data
    table = digests_of(data)
    assert (folder / "table").read_bytes() == table + table_digest(table)
    manifest = decode((folder / "manifest").read_bytes(), "")
    assert manifest.identity == REGION
    assert manifest.seal == a_seal(data, 1)


def test_zeros_take_no_room(tmp_path: Path) -> None:
    with DirectorySink(tmp_path, NAME) as sink:
        sink.begin(REGION, 1)
        sink.seal(a_seal(bytes(SIZE), 1))
    assert (tmp_path / NAME / "image").stat().st_blocks == 0
    assert restore(tmp_path) == bytes(SIZE)


def test_the_seal_is_broken_durably_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, content(1))
    steps: list[str] = []
    real = directory.write_all, wholefile.replace

    def write_all(fd: int, data: memoryview, offset: int) -> None:
        with pytest.raises(RegionUnsealed):
            raise_unsealed(tmp_path / NAME)
        steps.append("image")
        real[0](fd, data, offset)

    def replace_file(path: Path, data: bytes, *, durable: bool, mode: int) -> None:
        assert durable
        steps.append(path.name)
        real[1](path, data, durable=durable, mode=mode)

    monkeypatch.setattr(directory, "write_all", write_all)
    monkeypatch.setattr(wholefile, "replace", replace_file)
    save(tmp_path, content(2), number=2)
    assert steps == ["manifest", "image", "table", "manifest"]


def raise_unsealed(folder: Path) -> None:
    if decode((folder / "manifest").read_bytes(), "").seal is None:
        raise RegionUnsealed("")


class Crash(BaseException):
    """The process ends here."""


class Crashes:
    """Ends the "process" before its nth write, flush or rename; a write is torn then."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self._pwrite = os.pwrite

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("fsync", "fdatasync", "replace", "ftruncate"):
            patch.setattr(os, name, self._counted(getattr(os, name)))
        patch.setattr(os, "pwrite", self._torn)

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash

    def _counted(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            self._step()
            return real(*args)

        return call

    def _torn(self, fd: int, data: memoryview, offset: int) -> int:
        if self.left == 0:
            self._pwrite(fd, data[: len(data) // 2], offset)
        self._step()
        return self._pwrite(fd, data, offset)


def crashed_save(root: Path, data: bytes, steps: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether it came to its end."""
    sink = DirectorySink(root, NAME)
    try:
        with monkeypatch.context() as patch:
            Crashes(steps).install(patch)
            sink.begin(REGION, 1)
            for first in range(0, REGION.pages, 10):
                put(sink, data, first, 10)
            sink.flush()
            sink.seal(a_seal(data, 2))
        return True
    except Crash:
        return False
    finally:
        gone(sink)


def gone(sink: DirectorySink) -> None:
    """The process has ended: what the kernel does then."""
    sink._readback.close()
    if sink._fd >= 0:
        os.close(sink._fd)
        sink._fd = -1
    sink._place.unlock()


def test_a_crash_at_any_step_leaves_a_whole_save_or_an_unsealed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = content(1), content(2)
    unsealed = 0
    for steps in range(200):
        root = tmp_path / str(steps)
        save(root, old)
        done = crashed_save(root, new, steps, monkeypatch)
        try:
            left = restore(root)
            assert left == new if done else left in (old, new)
        except RegionUnsealed:
            unsealed += 1
            assert not done
        save(root, new, number=3)
        assert restore(root) == new
        shutil.rmtree(root)
        if done:
            assert unsealed > 5
            return
    raise AssertionError("never came to an end")


def test_any_file_cut_off_or_changed_is_refused(tmp_path: Path) -> None:
    save(tmp_path, content(1))
    assert restore(tmp_path) == content(1)
    for name in ("image", "table", "manifest"):
        path = tmp_path / NAME / name
        good = path.read_bytes()
        damaged = [
            good[:length] for length in {0, 1, 15, 16, 17, len(good) // 2, len(good) - 16, len(good) - 1}
        ]
        for at in [0, 7, 8, 100, *range(130, len(good), max(1, len(good) // 97)), len(good) - 1]:
            flipped = bytearray(good)
            flipped[at] ^= 0x10
            damaged.append(bytes(flipped))
        for bad in damaged:
            path.write_bytes(bad)
            with pytest.raises(RegionError):
                restore(tmp_path)
        path.write_bytes(good)
    assert restore(tmp_path) == content(1)


def test_a_table_that_is_lost_is_made_anew_from_the_image(tmp_path: Path) -> None:
    data = content(1)
    for damage in (Path.unlink, lambda path: path.write_bytes(b"x" * 100)):
        save(tmp_path / "s", data)
        damage(tmp_path / "s" / NAME / "table")
        with DirectorySink(tmp_path / "s", NAME) as sink:
            held = sink.begin(REGION, 1)
            assert held.table == digests_of(data)
            assert held.seal is None
            assert held.last_number == 1
            sink.seal(a_seal(data, 2))
        assert restore(tmp_path / "s") == data
        shutil.rmtree(tmp_path / "s")


def test_after_a_kill_the_table_is_that_of_the_image(tmp_path: Path) -> None:
    save(tmp_path, content(1))
    sink = DirectorySink(tmp_path, NAME)
    sink.begin(REGION, 1)
    put(sink, content(2), 0, 20)
    gone(sink)
    mixed = content(2)[: 20 * PAGE_BYTES] + content(1)[20 * PAGE_BYTES :]
    with DirectorySink(tmp_path, NAME) as again:
        assert again.begin(REGION, 1).table == digests_of(mixed)


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_is_said_and_the_save_can_go_on_later(tmp_path: Path) -> None:
    with DirectorySink(tmp_path, NAME) as sink:
        with file_size_limit(10 * PAGE_BYTES), pytest.raises(RegionFull, match="image") as caught:
            sink.begin(REGION, 1)
        assert caught.value.hint
    save(tmp_path, content(1))
    assert restore(tmp_path) == content(1)


def test_a_failed_flush_poisons_until_the_save_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, content(1))
    with DirectorySink(tmp_path, NAME) as sink:
        sink.begin(REGION, 1)
        put(sink, content(2))
        with monkeypatch.context() as patch:

            def fail(fd: int) -> None:
                raise OSError(5, "Input/output error")

            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(RegionIOError, match="durable") as caught:
                sink.flush()
            assert caught.value.errno == 5
        for again in (sink.flush, lambda: put(sink, content(2)), lambda: sink.seal(a_seal(content(2), 2))):
            with pytest.raises(RegionIOError):
                again()
    with pytest.raises(RegionUnsealed):
        restore(tmp_path)
    save(tmp_path, content(2), number=2)
    assert restore(tmp_path) == content(2)


def test_what_the_medium_changes_is_found_before_the_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(fd: int, data: memoryview, offset: int) -> None:
        real(fd, data[: 12 * PAGE_BYTES], offset)
        real(fd, data[13 * PAGE_BYTES :], offset + 13 * PAGE_BYTES)

    real = directory.write_all
    data = bytes([1]) * SIZE
    with DirectorySink(tmp_path, NAME) as sink:
        sink.begin(REGION, 1)
        with monkeypatch.context() as patch:
            patch.setattr(directory, "write_all", lossy)
            put(sink, data)
        with pytest.raises(RegionCorrupt, match="page 12:"):
            sink.flush()
        with pytest.raises(RegionCorrupt):
            sink.seal(Seal(1, 1, "", table_digest(digests_of(data)), 0, ""))
        put(sink, data, 12, 1)
        sink.flush()
        sink.seal(a_seal(data, 1))
    assert restore(tmp_path) == data


def test_a_restore_keeps_a_save_out_and_the_other_way_round(tmp_path: Path) -> None:
    save(tmp_path, content(1))
    with (
        DirectorySource(tmp_path, NAME),
        DirectorySource(tmp_path, NAME),
        DirectorySink(tmp_path, NAME) as sink,
        pytest.raises(RegionBusy),
    ):
        sink.begin(REGION, 1)
    with DirectorySink(tmp_path, NAME) as sink:
        sink.begin(REGION, 1)
        with pytest.raises(RegionBusy):
            DirectorySource(tmp_path, NAME)


def test_a_place_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with DirectorySink(tmp_path / "file", NAME) as sink, pytest.raises(RegionIOError, match="file"):
        sink.begin(REGION, 1)
