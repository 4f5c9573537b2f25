"""Stores written by every released format version are read for ever.

`golden/` holds, for each version, a store that was closed and one whose process died with commits in the log
only. They are never written again; `python -m tests.store.test_golden DIRECTORY` made those of the present
version.
"""

import lzma
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import sustain

GOLDEN = Path(__file__).parent / "golden"


def fill(store: sustain.Store) -> None:
    """What every golden store holds: each kind of object, several commits, growth, removal, a hole."""
    words = store.map("words")
    for number in range(300):
        words[b"word %d" % number] = b"%d" % (number * number)
    words[b"long"] = b"v" * 20_000
    lengths = store.array("lengths", (100, 3), "<i4")
    lengths[:] = np.arange(300).reshape(100, 3)
    store.commit()
    del lengths
    store.array("lengths", (2000, 3))[1999] = (7, 8, 9)
    blob = store.file("blob")
    blob.pwrite(b"begin", 0)
    blob.pwrite(b"end", 200_000)
    store.commit()
    for number in range(0, 300, 3):
        del words[b"word %d" % number]
    store.map("empty")
    store.file("gone").pwrite(b"x" * 9000, 0)
    store.commit()
    store.delete("gone")
    store.commit()


def check(store: sustain.Store) -> None:
    expected = {b"word %d" % number: b"%d" % (number * number) for number in range(300) if number % 3}
    assert dict(store.map("words")) == expected | {b"long": b"v" * 20_000}
    lengths = store.array("lengths")
    assert lengths.dtype == np.dtype("<i4")
    assert lengths.shape == (2000, 3)
    assert (lengths[:100] == np.arange(300).reshape(100, 3)).all()
    assert lengths[1999].tolist() == [7, 8, 9]
    assert not lengths[100:1999].any()
    blob = store.file("blob")
    assert blob.pread(1 << 20, 0) == b"begin" + bytes(199_995) + b"end"
    assert sorted((name, kind) for name, kind, _ in store.objects()) == [
        ("blob", "file"),
        ("empty", "map"),
        ("lengths", "array"),
        ("words", "map"),
    ]


@pytest.mark.parametrize("packed", sorted(GOLDEN.glob("*.xz")), ids=lambda path: path.name)
def test_stores_of_every_version_open(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.sus"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    with sustain.open(path, readonly=True, verify="full") as store:
        check(store)
    with sustain.open(path, verify="full") as store:  # and recovery of an old log, and further work
        check(store)
        store.map("words")[b"new"] = b"1"
        store.commit()
    with sustain.open(path, verify="full") as store:
        assert store.map("words").pop(b"new") == b"1"
        check(store)


def test_the_present_version_has_its_files(tmp_path: Path) -> None:
    with sustain.create(tmp_path / "now.sus", size="2MiB", log_size="2MiB") as store:
        version = store.info()["version"]
    for state in ("closed", "died"):
        assert (GOLDEN / f"format-{version}-{state}.sus.xz").exists()


def _make(directory: Path) -> None:
    path = directory / "golden.sus"
    store = sustain.create(path, size="2MiB", log_size="2MiB", durability="disk")
    version = store.info()["version"]
    store.map("words")
    store.commit()
    store.checkpoint()
    fill(store)
    shutil.copyfile(path, directory / "died.sus")  # as the file is while its process lives
    store.close()
    for state, made in (("closed", path), ("died", directory / "died.sus")):
        (GOLDEN / f"format-{version}-{state}.sus.xz").write_bytes(lzma.compress(made.read_bytes(), preset=9))
        made.unlink()


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
