"""Writes by calls, and writers that let go, of a real file."""

import mmap
import os
from pathlib import Path

import pytest

from sustain.errors import RegionIOError
from sustain.host.inotify import Seen, Watch

NOTHING = Seen(written=False, let_go=False)


@pytest.mark.parametrize("how", ["pwrite", "truncate", "fallocate", "sendfile"])
def test_every_call_that_writes_is_seen(tmp_path: Path, how: str) -> None:
    path = tmp_path / "region"
    path.write_bytes(bytes(8192))
    descriptor = os.open(path, os.O_RDWR)
    watch = Watch(path)
    assert watch.seen() == NOTHING
    if how == "pwrite":
        os.pwrite(descriptor, b"x", 0)
    elif how == "truncate":
        os.ftruncate(descriptor, 4096)
    elif how == "fallocate":
        os.posix_fallocate(descriptor, 0, 16384)
    else:
        with (tmp_path / "other").open("w+b") as other:
            other.write(b"x" * 100)
            other.flush()
            os.sendfile(descriptor, other.fileno(), 0, 100)
    assert watch.seen() == Seen(written=True, let_go=False)
    assert watch.seen() == NOTHING
    os.close(descriptor)
    assert watch.seen() == Seen(written=False, let_go=True)
    watch.close()


def test_a_mapping_keeps_the_file_in_use_and_its_writes_are_not_seen(tmp_path: Path) -> None:
    path = tmp_path / "region"
    path.write_bytes(bytes(4096))
    watch = Watch(path)
    descriptor = os.open(path, os.O_RDWR)
    view = mmap.mmap(descriptor, 0)
    os.close(descriptor)
    view[0] = 1
    assert watch.seen() == NOTHING
    path.read_bytes()
    assert watch.seen() == NOTHING, "readers do no harm"
    view.close()
    assert watch.seen().let_go
    watch.close()


def test_a_watch_follows_the_file_and_not_its_name(tmp_path: Path) -> None:
    path = tmp_path / "region"
    path.write_bytes(bytes(4096))
    watch = Watch(path)
    path.rename(tmp_path / "renamed")
    path.write_bytes(b"another file")
    assert watch.seen() == NOTHING
    with (tmp_path / "renamed").open("r+b") as file:
        file.write(b"x")
    assert watch.seen().written
    watch.close()


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(RegionIOError, match="inotify"):
        Watch(tmp_path / "none")
