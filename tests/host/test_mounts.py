"""mountinfo: parsed from lines as kernels write them, and from this host."""

from pathlib import Path

from sustain.host import mounts

_TABLE = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:5 / /dev rw,nosuid shared:2 master:1 - devtmpfs devtmpfs rw,size=4k
30 22 259:0 / /mnt/pm rw,relatime shared:9 - ext4 /dev/pmem0 rw,dax=always
31 22 259:1 / /mnt/with\\040blank rw - xfs /dev/pmem1 rw,dax,attr2
32 22 0:40 / /mnt/pm/inner rw - tmpfs tmpfs rw,size=64k
33 22 0:41 / /mnt/pm rw - tmpfs on\\011top rw
not a line of mountinfo
"""


def _tree(tmp_path: Path) -> Path:
    file = tmp_path / "proc/self/mountinfo"
    file.parent.mkdir(parents=True)
    file.write_text(_TABLE)
    return tmp_path


def test_table(tmp_path: Path) -> None:
    table = mounts.mounts(_tree(tmp_path))
    assert [mount.kind for mount in table] == ["ext4", "devtmpfs", "ext4", "xfs", "tmpfs", "tmpfs"]
    assert [mount.dax for mount in table] == [False, False, True, True, False, False]
    assert table[3].point == "/mnt/with blank"
    assert table[5].source == "on\ttop"


def test_the_mount_of_a_path(tmp_path: Path) -> None:
    root = _tree(tmp_path)

    def kind(path: str) -> str | None:
        found = mounts.mount_of(Path(path), root)
        return found and f"{found.kind} {found.source}"

    assert kind("/home/x") == "ext4 /dev/vda"
    assert kind("/mnt/with blank/app.sus") == "xfs /dev/pmem1"
    assert kind("/mnt/pm/inner/app.sus") == "tmpfs tmpfs"
    assert kind("/mnt/pm/app.sus") == "tmpfs on\ttop"  # mounted over the first
    assert kind("/mnt/pmx/app.sus") == "ext4 /dev/vda"  # not a prefix of names


def test_nothing_there_is_unknown(tmp_path: Path) -> None:
    assert mounts.mounts(tmp_path) == []
    assert mounts.mount_of(Path("/x"), tmp_path) is None


def test_this_host() -> None:
    found = mounts.mount_of(Path("/proc/self/stat"))
    assert found is not None
    assert found.kind == "proc"
