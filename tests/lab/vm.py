"""Boots a real distribution kernel under emulation, on the machine's own root file system, and runs a script in it.

Used by the tests of this folder. A `Guest` is one boot: QEMU in software emulation, the root file system shared
read-only over 9p (so the guest has this checkout and its `.venv`), one writable shared directory at `/run/lab`,
and what hardware the test asks for (an NVDIMM backed by a file). The script's output and exit status come back
through the shared directory, which is written through: what the guest wrote before it is killed is there after.

    guest = Guest(kernel("6.12"), tmp_path, "uname -r")
    result = guest.run(limit_s=60)

The kernels lie in `.lab/`, unpacked by `scripts/setup-debian.sh lab`. Of virtme-ng only the writer of archives is used:
its way of running commands needs udev in the guest, hides QEMU behind two wrappers that cannot be killed as a power
cut would, and doubles the time of a boot; its RAM disk mounts a root without a cache, from which each command of a
shell takes half a second to start.
"""

import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import initrd, timestamps
from tests.lab.errors import HINT, LabError

__all__ = [
    "HINT",
    "LAB",
    "PAGE_IDLE",
    "PROCESSOR",
    "TOP",
    "Guest",
    "Kernel",
    "LabError",
    "Result",
    "boot_words",
    "kernel",
    "unavailable",
]

TOP = Path(__file__).resolve().parents[2]
LAB = TOP / ".lab"
INIT = Path(__file__).with_name("guest-init")
PAGE_IDLE = "6.12-page-idle"  # a kernel that only scripts/build-page-idle-kernel.sh makes
# All that the emulator has, but for fast copies of bytes (ERMS): a kernel that sees them clears and copies by bytes,
# each a turn of a loop for an emulator. Without them a page's first use takes two thirds of the time.
PROCESSOR = "max,-erms"
_BOOTS = 3
# The first process in the RAM disk. The shell has its commands in itself, so few files of the root are read.
_FIRST = """#!/bin/busybox sh
for module in $(/bin/busybox cat /modules); do
    /bin/busybox insmod $module
done
/bin/busybox mount -n -t 9p -o ro,{root} /dev/root /root || exit
/bin/busybox mount -n -t proc proc /root/proc  # where the shell finds itself, to run its commands
exec /bin/busybox switch_root /root {busybox} sh {init}
"""
# Nothing that a test looks at, and all of it takes an emulated processor long.
_QUICK = "nokaslr mitigations=off audit=0 cryptomgr.notests no_timer_check tsc=reliable"


def boot_words() -> str:
    """What every kernel of the lab is told: to boot quickly, and how fast its clock is."""
    if platform.machine() != "x86_64":  # whose emulator makes a counter of its own
        return _QUICK
    return f"{_QUICK} tsc_early_khz={timestamps.khz()}"


# How the root is mounted, of which nothing changes while a guest runs: importing NumPy page by page takes many times as
# long.
_ROOT = "version=9p2000.L,trans=virtio,access=any,cache=loose,msize=512000"
# For scripts that run tests in the guest. Of pytest's plugins only what pyproject.toml needs: the others take longer to
# import under emulation than most tests.
PYTEST = """
pytest() {
    PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$PYTHON" -m pytest -p pytest_timeout -p no:cacheprovider -q "$@"
}
"""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package with its modules, and the initial RAM disk that mounts the shared root; or one that
    has in itself what that takes, and none."""

    release: str
    tree: Path
    initrd: Path | None

    @property
    def image(self) -> Path:
        return self.tree / "boot" / f"vmlinuz-{self.release}"


def unavailable(series: str) -> str | None:
    """Why this distribution has no kernel of the series, None when it has (or was not asked yet)."""
    note = LAB / series / "unavailable"
    return note.read_text().strip() if note.exists() else None


def kernel(series: str, scratch: Path) -> Kernel:
    """The kernel of a series ("6.12", "6.1", "6.12-page-idle"); the RAM disk is made in `scratch`. LabError when it is
    not there."""
    tree = LAB / series
    if not (tree / "release").exists():
        raise LabError(f"no Linux {series} in {LAB}\nhint: {HINT}")
    release = (tree / "release").read_text().strip()
    if (tree / "self-contained").exists():
        return Kernel(release, tree, None)
    disk = scratch / f"initrd-{series}"
    if not disk.exists():
        _make_initrd(disk, tree, release)
    return Kernel(release, tree, disk)


def _make_initrd(path: Path, tree: Path, release: str) -> None:
    """Mounts the root and goes on there with guest-init, in the shell that this machine has whole in one file."""
    busybox = shutil.which("busybox", path=initrd.SBIN)
    if busybox is None:
        raise LabError(f"no busybox\nhint: {HINT}")
    with initrd.archive(path) as archive:
        archive.directory(Path("/root"))
        archive.put("/bin/busybox", Path(busybox).read_bytes(), 0o755)
        archive.put("/init", _FIRST.format(init=INIT, root=_ROOT, busybox=busybox).encode(), 0o755)
        archive.put_modules(tree, release, "virtio_pci", "9pnet_virtio", "9p", "overlay")


@dataclass(frozen=True)
class Result:
    """What a guest left: the script's exit status, all it printed, and how long the boot and the run took."""

    status: int
    output: str
    seconds: float


@dataclass
class Guest:
    """One boot. `share` becomes `/run/lab` in the guest; `nvdimm` is the file that backs an NVDIMM, `disk` one
    that backs /dev/vda."""

    kernel: Kernel
    share: Path
    script: str
    nvdimm: Path | None = None
    disk: Path | None = None
    memory_mib: int = 1024
    environment: dict[str, str] = field(default_factory=dict)
    processors: str = "2"  # QEMU's -smp
    # With one thread for all processors the emulator is slower, and safe with more than two of them.
    one_thread: bool = False
    # One nanosecond of the guest's clock is one instruction, and time with nothing to do passes at once: its processor
    # time is a count of instructions, the same on every machine. One processor in one thread.
    counted: bool = False
    devices: tuple[str, ...] = ()  # further options of QEMU
    _process: subprocess.Popen[bytes] | None = None
    _started: float = 0.0
    _boots: int = 0

    def run(self, limit_s: float) -> Result:
        """Boot, run the script, wait for the end."""
        self.start()
        return self.wait(limit_s)

    def start(self) -> None:
        for name in ("status", "status.new", "output"):
            (self.share / name).unlink(missing_ok=True)
        (self.share / "script").write_text(self._prologue() + self.script)
        self._started = time.monotonic()
        self._boots = 0
        self._boot()

    def _boot(self) -> None:
        self._boots += 1
        console = (self.share / "console").open("wb")
        try:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
            )
        except FileNotFoundError as error:
            raise LabError(f"no {error.filename}\nhint: {HINT}") from None
        finally:
            console.close()

    def wait(self, limit_s: float) -> Result:
        """Until the guest has powered itself off; LabError when it does not in its time, or died without a status."""
        assert self._process is not None
        deadline = time.monotonic() + limit_s
        try:
            self._process.wait(limit_s)
            while self._boots_anew():
                self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            raise LabError(f"the guest did not end within {limit_s:.0f} s\n{self.report()}") from None
        status = self.share / "status"
        if not status.exists():
            raise LabError(f"the guest ended without a status\n{self.report()}")
        return Result(int(status.read_text()), self.output(), time.monotonic() - self._started)

    def wait_for(self, name: str, limit_s: float, at_least: int = 1) -> None:
        """Until the file `name` in the shared directory has that many bytes. LabError when the guest ends before."""
        assert self._process is not None
        path = self.share / name
        deadline = time.monotonic() + limit_s
        while not (path.exists() and path.stat().st_size >= at_least):
            if self._process.poll() is not None and not self._boots_anew():
                raise LabError(f"the guest ended before it wrote {name}\n{self.report()}")
            if time.monotonic() > deadline:
                self.kill()
                raise LabError(f"the guest did not write {name} within {limit_s:.0f} s\n{self.report()}")
            time.sleep(0.02)

    def _boots_anew(self) -> bool:
        """Whether the guest, which has ended, was booted once more, because the emulator has killed its kernel.

        With two threads this QEMU sometimes executes an instruction that the kernel has just patched as it was before
        (`int3` in code that is patched while it runs): once in some hundred boots. That is no result of a test, as
        long as it comes before the test's script has begun.
        """
        crashed = "Oops: int3" in (self.share / "console").read_text(errors="replace")
        if not crashed or (self.share / "output").exists() or self._boots >= _BOOTS:
            return False
        self._boot()
        return True

    def kill(self) -> None:
        """The power cut: SIGKILL of the emulator itself, at once. What was in the guest's memory is gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(30)

    def output(self) -> str:
        path = self.share / "output"
        return path.read_text(errors="replace") if path.exists() else ""

    def report(self) -> str:
        console = (self.share / "console").read_text(errors="replace")
        return f"--- output of the script\n{self.output()}\n--- console, its end\n{console[-3000:]}"

    def _prologue(self) -> str:
        settings = {
            "PYTHONDONTWRITEBYTECODE": "1",
            "TOP": str(TOP),
            "PYTHON": sys.executable,
            **self.environment,
        }
        return "".join(f"export {name}='{value}'\n" for name, value in settings.items()) + PYTEST

    def _command(self) -> list[str]:
        memory = f"{self.memory_mib}M"
        machine = "q35"
        extra: list[str] = []
        if self.nvdimm is not None:
            machine = "q35,nvdimm=on"
            memory += ",slots=2,maxmem=8G"
            size = self.nvdimm.stat().st_size
            backing = f"id=nv,share=on,mem-path={self.nvdimm},size={size},align=128M"
            extra += [
                *("-object", f"memory-backend-file,{backing}"),
                *("-device", "nvdimm,id=nvdimm1,memdev=nv,label-size=2M"),
            ]
        if self.disk is not None:
            # Flushes go through to the file; whether it survives this machine's own power cut is no matter here.
            extra += [
                *("-drive", f"if=none,id=disk,format=raw,cache=writeback,file={self.disk}"),
                *("-device", "virtio-blk-pci,drive=disk"),
            ]
        shared = "security_model=none,multidevs=remap"
        words = [
            *("console=ttyS0", "quiet", "loglevel=4", "panic=-1", f"init={INIT}", boot_words()),
            f"lab.modules={self.kernel.tree}",
        ]
        if self.kernel.initrd is not None:
            words.append("rdinit=/init")
            extra += ["-initrd", str(self.kernel.initrd)]
        else:
            words += [
                "root=/dev/root",
                "ro",
                "rootfstype=9p",
                f"rootflags={_ROOT}",
            ]
        return [
            *("qemu-system-x86_64", "-machine", machine, "-cpu", PROCESSOR),
            *("-accel", f"tcg,thread={'single' if self.one_thread or self.counted else 'multi'}"),
            *(("-icount", "shift=0,sleep=off") if self.counted else ()),
            *(
                "-smp",
                "1" if self.counted else self.processors,
                "-m",
                memory,
                "-no-reboot",
                "-nodefaults",
                "-no-user-config",
                "-net",
                "none",
            ),
            *("-vga", "none", "-display", "none", "-serial", "stdio"),
            *("-fsdev", f"local,id=root,path=/,readonly=on,{shared}"),
            *("-device", "virtio-9p-pci,fsdev=root,mount_tag=/dev/root"),
            *("-fsdev", f"local,id=share,path={self.share},{shared}"),
            *("-device", "virtio-9p-pci,fsdev=share,mount_tag=lab"),
            *("-device", "virtio-rng-pci", *extra, *self.devices),
            *("-kernel", str(self.kernel.image), "-append", " ".join(words)),
        ]
