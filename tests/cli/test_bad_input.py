"""Each bad input a person can bring: one clear error and one hint, from the command line and from Python."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sustain
from tests.cli.conftest import Ran

READING_VERBS = ["info", "verify", "status", "objects"]


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 & -(crc & 1))
    return crc ^ 0xFFFFFFFF


def _patch_superblocks(path: Path, *changes: tuple[str, int, int]) -> None:
    """Change fields (struct format, offset, value) in both superblocks, with valid checksums."""
    with path.open("r+b") as file:
        for at in (0, 4096):
            file.seek(at)
            block = bytearray(file.read(4096))
            if not any(block):
                continue
            for form, offset, value in changes:
                struct.pack_into(form, block, offset, value)
            struct.pack_into("<I", block, 4092, _crc32c(bytes(block[:4092])))
            file.seek(at)
            file.write(block)


@pytest.mark.parametrize("verb", READING_VERBS)
@pytest.mark.parametrize(
    "content", [None, b"", b"hello\n", b"SUSTAIN\0", b"SUSTAIN\0" + bytes(9000), os.urandom(1 << 20)]
)
def test_not_a_store(sus: Callable[..., Ran], tmp_path: Path, verb: str, content: bytes | None) -> None:
    path = tmp_path / "thing"
    if content is not None:
        path.write_bytes(content)
    sus(verb, path).failed_with(str(path))
    with pytest.raises((sustain.NotAStore, sustain.StoreCorrupt)):
        sustain.open(path)
    assert (path.read_bytes() if path.exists() else None) == content


@pytest.mark.parametrize("verb", READING_VERBS)
def test_a_directory_is_not_a_store(sus: Callable[..., Ran], tmp_path: Path, verb: str) -> None:
    sus(verb, tmp_path).failed_with(str(tmp_path))


@pytest.mark.parametrize("verb", READING_VERBS)
def test_a_store_of_a_newer_version(sus: Callable[..., Ran], filled: Path, verb: str) -> None:
    _patch_superblocks(filled, ("<I", 8, 2))
    sus(verb, filled).failed_with(str(filled), "version")
    with pytest.raises(sustain.NewerVersion):
        sustain.open(filled)


def test_an_unknown_incompatible_feature(sus: Callable[..., Ran], filled: Path) -> None:
    _patch_superblocks(filled, ("<Q", 24, 1 << 40))
    sus("verify", filled).failed_with(str(filled))
    with pytest.raises(sustain.NewerVersion):
        sustain.open(filled)


def test_an_unknown_compatible_feature_is_ignored(sus: Callable[..., Ran], filled: Path) -> None:
    _patch_superblocks(filled, ("<Q", 16, 1 << 40))
    assert sus("verify", filled).status == 0
    sustain.open(filled).close()


def test_both_superblocks_damaged(sus: Callable[..., Ran], filled: Path) -> None:
    with filled.open("r+b") as file:
        for at in (100, 4196):
            file.seek(at)
            file.write(b"\xff" * 8)
    sus("verify", filled).failed_with(str(filled))
    with pytest.raises((sustain.StoreCorrupt, sustain.NotAStore)):
        sustain.open(filled)


@pytest.mark.parametrize("at", [100, 4196])
def test_one_superblock_damaged(sus: Callable[..., Ran], filled: Path, at: int) -> None:
    """The other one counts. Losing the newest means going back to the one before it, which must still be
    right."""
    with filled.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 8)
    ran = sus("verify", filled)
    assert ran.status == 0, ran.err
    with sustain.open(filled) as store:
        assert len(store.map("users")) == 500


def test_a_store_in_use(sus: Callable[..., Ran], filled: Path) -> None:
    """Readers and `status` work beside the writer; a second writer is told who has it."""
    with sustain.open(filled) as store:
        for verb in READING_VERBS:
            assert sus(verb, filled).status == 0
        with pytest.raises(sustain.StoreBusy) as caught:
            sustain.open(filled)
        assert str(os.getpid()) in str(caught.value) + caught.value.hint
        assert caught.value.hint
        assert store.map("users")[b"7"] == b"value"


def test_create_over_something(sus: Callable[..., Ran], filled: Path) -> None:
    before = filled.read_bytes()
    sus("create", filled).failed_with(str(filled))
    assert filled.read_bytes() == before


def test_create_where_there_is_no_directory(sus: Callable[..., Ran], tmp_path: Path) -> None:
    sus("create", tmp_path / "no" / "app.sus").failed_with("no/app.sus")


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 8 MiB, in a mount name space of our own: creating fails clearly and leaves nothing
    behind; so it does when the space runs out later."""
    script = f"""
set -eu
mount -t tmpfs -o size=8m tmpfs {tmp_path}
status=0
{sys.executable} -m sustain.cli create {tmp_path}/app.sus --size 256MiB || status=$?
echo "status $status"
ls -A {tmp_path}
"""
    done = subprocess.run(
        ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == ["status 1"], done
    Ran(1, "", done.stderr).failed_with("app.sus", "space")


def test_a_log_too_small_for_one_commit(tmp_path: Path) -> None:
    path = tmp_path / "app.sus"
    with sustain.create(path, size="16MiB", log_size="2MiB", durability="memory") as store:
        store.file("f").pwrite(os.urandom(4 << 20), 0)
        with pytest.raises(sustain.LogTooSmall) as caught:
            store.commit()
    assert str(path) in str(caught.value)
    assert "log" in caught.value.hint


@pytest.mark.parametrize("arguments", [("--size", "0"), ("--log-size", "0"), ("--size", "900TiB")])
def test_sizes_that_cannot_be(sus: Callable[..., Ran], tmp_path: Path, arguments: tuple[str, str]) -> None:
    path = tmp_path / "app.sus"
    ran = sus("create", path, *arguments)
    assert ran.status in (1, 2)
    ran.failed_with(status=ran.status)
    assert not path.exists()


def test_a_file_cut_short(sus: Callable[..., Ran], filled: Path) -> None:
    os.truncate(filled, filled.stat().st_size - 4096)
    sus("verify", filled).failed_with(str(filled))
    with pytest.raises(sustain.StoreError):
        sustain.open(filled)
