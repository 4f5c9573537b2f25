"""Makes the guest of this example: a kernel and an initial RAM disk with all that runs in it.

    python examples/nvdimm_guest/build.py DIR [--root TREE]

DIR gets `vmlinuz` and `initrd`; it is the same on every host. The kernel and its modules are those that run here, or
the ones of an unpacked kernel package (TREE has boot/ and lib/modules/). Debian packages: busybox-static, ndctl,
e2fsprogs, gcc, libc6-dev; to run it, qemu-system-x86.

The RAM disk is all that the guest has besides its NVDIMM. A disk image would have to be kept equal on both hosts, and
a root file system shared from the host (9p) dies with the host.
"""

import argparse
import gzip
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = ("ndctl", "mkfs.ext4")
DRIVERS = ("crc32c_generic", "nfit", "nd_pmem", "ext4")


class BuildError(Exception):
    """Something that the guest needs is not on this host."""


def modules(tree: Path) -> list[Path]:
    """The drivers with what they need, each behind what it needs. Built-in ones have no file and are left out."""
    needs: dict[str, tuple[Path, list[str]]] = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[_name(path)] = (tree / path, [_name(each) for each in rest.split()])
    ordered: list[Path] = []

    def add(name: str) -> None:
        if name not in needs:
            return
        path, before = needs[name]
        for each in reversed(before):  # modules.dep names the deepest need last
            add(each)
        if path not in ordered:
            ordered.append(path)

    for driver in DRIVERS:
        add(driver)
    return ordered


def _name(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def unpacked(module: Path) -> bytes:
    data = module.read_bytes()
    if module.suffix == ".xz":
        return lzma.decompress(data)
    if module.suffix == ".gz":
        return gzip.decompress(data)
    if module.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq", str(module)], check=True, capture_output=True).stdout
    return data


def found(program: str) -> Path:
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise BuildError(f"no {program} on this host")
    return Path(path)


def libraries(program: Path) -> list[Path]:
    """The dynamic linker and the shared objects of a program."""
    listed = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listed)]


def contents(kernel_modules: Path) -> dict[str, bytes]:
    """Path in the RAM disk → bytes; all are executable."""
    files = {"init": (HERE / "init").read_bytes(), "bin/busybox": found("busybox").read_bytes()}
    for program in map(found, PROGRAMS):
        files[f"usr/sbin/{program.name}"] = program.read_bytes()
        for library in libraries(program):
            files[str(library).lstrip("/")] = library.read_bytes()
    for number, module in enumerate(modules(kernel_modules)):
        files[f"modules/{number:02}-{_name(module.name)}.ko"] = unpacked(module)
    with tempfile.TemporaryDirectory() as work:
        records = Path(work) / "records"
        compiler = ["gcc", "-O2", "-Wall", "-static", "-o", str(records), str(HERE / "records.c")]
        subprocess.run(compiler, check=True)
        files["usr/sbin/records"] = records.read_bytes()
    return files


def archive(files: dict[str, bytes]) -> bytes:
    """A cpio archive ("newc"), which is what the kernel unpacks."""
    folders = {str(parent) for name in files for parent in Path(name).parents} | {"proc", "sys", "dev", "tmp"}
    entries = [(name, 0o040755, b"") for name in sorted(folders - {"."})]
    entries += [(name, 0o100755, data) for name, data in files.items()]
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def build(target: Path, root: Path = Path("/"), release: str | None = None) -> None:
    """`vmlinuz` and `initrd` in `target`. BuildError when the host lacks something."""
    if release is None and root == Path("/"):
        release = os.uname().release
    kernels = sorted(root.glob(f"boot/vmlinuz-{release or '*'}"))
    if not kernels:
        raise BuildError(f"no kernel {release or ''} in {root / 'boot'}")
    release = kernels[-1].name.removeprefix("vmlinuz-")
    target.mkdir(parents=True, exist_ok=True)
    (target / "initrd").write_bytes(archive(contents(root / "lib/modules" / release)))
    shutil.copyfile(kernels[-1], target / "vmlinuz")


def main() -> int:
    parser = argparse.ArgumentParser(description="make the guest of this example")
    parser.add_argument("target", type=Path, metavar="DIR")
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="TREE", help="has boot/ and lib/modules/"
    )
    args = parser.parse_args()
    try:
        build(args.target, args.root)
    except (BuildError, subprocess.CalledProcessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        print("hint: apt-get install busybox-static ndctl e2fsprogs gcc libc6-dev", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
