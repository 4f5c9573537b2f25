"""Initial RAM disks of what the lab boots: folders, files and kernel modules in a cpio archive that is not compressed,
since an emulated kernel takes longer to unpack one than this host to read it."""

import contextlib
import lzma
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from virtme.cpiowriter import CpioWriter

from tests.lab.errors import HINT, LabError

SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MODULES = "/modules"  # of an archive: the list of its modules, one path a line, in the order to load them in


def command(*words: str | Path) -> str:
    """What a command of the system prints. LabError when it is missing or fails."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PATH": SBIN},
        )
    except FileNotFoundError:
        raise LabError(f"no {words[0]}\nhint: {HINT}") from None
    if done.returncode != 0:
        raise LabError(f"{words[0]} failed: {done.stdout}{done.stderr}")
    return done.stdout


class Archive:
    """One that is being written; a folder is made for what is put into it."""

    def __init__(self, writer: CpioWriter) -> None:
        self._writer = writer
        self._made: set[Path] = set()

    def directory(self, path: Path) -> None:
        if path != path.parent and path not in self._made:
            self.directory(path.parent)
            self._made.add(path)
            self._writer.mkdir(str(path)[1:].encode(), 0o755)

    def put(self, path: str, content: bytes, mode: int) -> None:
        self.directory(Path(path).parent)
        self._writer.write_file(path[1:].encode(), content, mode)

    def put_modules(self, tree: Path, release: str, *wanted: str) -> None:
        """Modules of an unpacked kernel with all that they need, unpacked; MODULES lists them."""
        shown = command("modprobe", "-d", tree, "-S", release, "--show-depends", "-a", *wanted)
        names = []
        for line in shown.splitlines():
            if not line.startswith("insmod"):  # "builtin"
                continue
            module = Path(line.split()[1])
            packed = module.suffix == ".xz"
            name = f"/lib/modules/{module.stem if packed else module.name}"
            if name not in names:
                names.append(name)
                content = module.read_bytes()
                self.put(name, lzma.decompress(content) if packed else content, 0o644)
        self.put(MODULES, "".join(f"{name}\n" for name in names).encode(), 0o644)


@contextlib.contextmanager
def archive(path: Path) -> Iterator[Archive]:
    """The one at `path`, there when the block ends, with the folders that every first process mounts on."""
    draft = path.with_name(f"{path.name}.new")
    with draft.open("wb") as file:
        writer = CpioWriter(file)
        made = Archive(writer)
        for place in ("/proc", "/sys", "/dev", "/run", "/tmp"):
            made.directory(Path(place))
        writer.mkchardev(b"dev/console", (5, 1), 0o600)
        yield made
        writer.write_trailer()
    draft.rename(path)
