"""Virtual machines whose memory tests look at and move: QEMU in software emulation, a real distribution kernel, a real
balloon, a real guest agent, and a workload inside that does what the test says.

    with GuestVm("cache", images) as guest:      # boots
        guest.do("cache", 100 << 20)             # the commands: guest_workload.c
        guest.qmp_path, guest.agent_path         # the sockets, for what is under test
        guest.qmp("query-balloon")               # a monitor of the test's own, to check by

A guest that was saved (`save`) can be started as often as one likes, all of them alike: GuestVm(…, saved=PATH).

Its disk is a device that reads as zeros and costs the host nothing (null-co), so page cache in the guest is memory of
the host only once. The root is the initial RAM disk: a boot takes a few seconds and leaves nearly all memory free.
Rejected: the machine's own root over 9p (`vm.py`); its caching would be a part of every figure.
"""

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.host import swap
from tests.lab import initrd
from tests.lab.errors import HINT, LabError
from tests.lab.initrd import command
from tests.lab.vm import LAB, PROCESSOR, Kernel, boot_words

WORKLOAD = Path(__file__).with_name("guest_workload.c")
AGENTS = (LAB / "agent/usr/sbin/qemu-ga", LAB / "agent/usr/bin/qemu-ga")  # Debian 12, 13
SYS_PROCESS_MADVISE, MADV_PAGEOUT = 440, 21
MODULES = ("virtio_balloon", "virtio_blk")
_SMALL_PAGES = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).prctl(41, 1, 0, 0, 0):  # PR_SET_THP_DISABLE
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True)
class Images:
    """What all guests of a session boot."""

    kernel: Path
    initrd: Path


def images(kernel: Kernel, scratch: Path) -> Images:
    """The initial RAM disk: the workload as the first process, two modules, the guest agent and its libraries."""
    agent = next((path for path in AGENTS if path.exists()), None)
    if agent is None:
        raise LabError(f"no guest agent in {LAB}\nhint: {HINT}")
    workload = scratch / "workload"
    command("gcc", "-O2", "-static", "-pthread", "-Wall", "-Wextra", "-Werror", "-o", workload, WORKLOAD)
    libraries = [
        Path(word)
        for line in command("ldd", agent).splitlines()
        for word in line.split()
        if word.startswith("/")
    ]
    disk = scratch / "initrd-guest"
    with initrd.archive(disk) as archive:
        archive.put("/init", workload.read_bytes(), 0o755)
        archive.put("/usr/sbin/qemu-ga", agent.read_bytes(), 0o755)
        for library in libraries:
            archive.put(str(library), library.read_bytes(), 0o755)
        archive.put_modules(kernel.tree, kernel.release, *MODULES)
    return Images(kernel.image, disk)


@dataclass
class GuestVm:
    """One virtual machine, from `start` (or `with`) to `kill`. `driver`: the balloon's, in the guest's kernel."""

    name: str
    images: Images
    memory_mib: int = 256
    agent: bool = True
    balloon: bool = True
    driver: bool = True
    swap_mib: int = 0  # of the guest's own swap, on a disk; 0: none
    deflate_on_oom: bool = False
    free_page_reporting: bool = False
    disk_mib: int = 4096
    disk_latency_us: int = 0
    cgroup: Path | None = None  # that QEMU runs in, from its first page on
    large_pages: bool = False  # as QEMU asks for them and the host gives: khugepaged fills what balloons took
    saved: Path | None = None  # begin from there, with the same options; the name may be another
    place: Path = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _control: socket.socket = field(init=False)
    _monitor: socket.socket = field(init=False)
    _unread: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        # Not in a test's own directory: the path of a UNIX socket has 107 bytes.
        self.place = Path(tempfile.mkdtemp(prefix=f"lab-{self.name}-"))

    @property
    def qmp_path(self) -> Path:
        return self.place / "qmp"

    @property
    def agent_path(self) -> Path:
        return self.place / "agent"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Begin to boot."""
        if self.swap_mib:
            with (self.place / "swap").open("wb") as file:
                file.truncate(self.swap_mib << 20)
            command("mkswap", self.place / "swap")
        self._control, control = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        with control, monitor, (self.place / "console").open("wb") as console:
            try:
                self._process = subprocess.Popen(
                    self._command(control.fileno(), monitor.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    pass_fds=(control.fileno(), monitor.fileno()),
                )
            except FileNotFoundError as error:
                raise LabError(f"no {error.filename}\nhint: {HINT}") from None
        self._monitor.settimeout(30)
        self.qmp("qmp_capabilities")

    def wait_ready(self, limit_s: float = 120) -> None:
        """Until the workload takes commands; again after `reboot`."""
        if self.saved is not None:
            until(lambda: self.qmp("query-status")["status"] == "paused", limit_s)
            self.qmp("cont")
            return
        if self._line(limit_s) != "ready":
            raise LabError(f"guest {self.name} did not begin anew\n{self.report()}")

    def send(self, command: str, size: int | str = "") -> None:
        """Have the workload do it, without waiting for the answer: `answer` does."""
        self._send(f"{command} {size}\n".encode())

    def answer(self, limit_s: float = 120) -> str:
        """What the workload says; LabError when it failed, was killed or begun anew, or takes too long."""
        line = self._line(limit_s)
        if line != "ok" and not line.startswith("ok "):
            raise LabError(f"guest {self.name}: {line}\n{self.report()}")
        return line[3:]

    def do(self, command: str, size: int | str = "", limit_s: float = 120) -> str:
        self.send(command, size)
        return self.answer(limit_s)

    def take_up(self) -> int:
        """After its workload was killed: go on with the new one, whatever the old one has still to answer; how often
        that was killed meanwhile."""
        mark = f"mark-{time.monotonic_ns()}"
        self._send(f"{mark}\n".encode())
        killed = 0
        while (line := self._line(60)) != f"error no command {mark}":
            killed += line == "killed"
        return killed

    def work(self) -> int:
        """Pages that `busy`, `hot` and `seek` have gone through since the workload began."""
        return int(self.do("work"))

    def read(self, path: str) -> str:
        """A text file of the guest, by the workload and not by the guest agent."""
        size = int(self.do("read", path))
        while len(self._unread) < size:
            self._receive(10)
        text, self._unread = self._unread[:size], self._unread[size:]
        return text.decode()

    def meminfo(self) -> dict[str, int]:
        """/proc/meminfo of the guest, in bytes."""
        rows = (line.split() for line in self.read("/proc/meminfo").splitlines())
        return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows}

    def forge(self, path: str, text: str) -> None:
        """From now on everything in the guest reads `text` at `path`: its guest agent, too."""
        self.send("forge", f"{path} {len(text.encode())}")
        self._send(text.encode())
        self.answer()

    def hang_agent(self) -> None:
        """The guest agent still holds its port, and answers nothing until `resume_agent`."""
        self.do("agent", "STOP")

    def resume_agent(self) -> None:
        self.do("agent", "CONT")

    def reboot(self) -> None:
        """Begin to boot again, in the same QEMU process; `wait_ready` waits for the end."""
        self.send("reboot")

    def reset(self) -> None:
        """The same without asking the guest."""
        self.qmp("system_reset")

    def save(self, path: Path, limit_s: float = 120) -> None:
        """All of it as it is now, its disks apart; then it stands still, for `kill`. Nothing may be under way in it."""
        self.qmp("migrate-set-parameters", **{"max-bandwidth": 10 << 30})
        self.qmp("stop")
        self.qmp("migrate", uri=f"exec:cat > {shlex.quote(str(path))}")

        def ended() -> bool:
            status = self.qmp("query-migrate").get("status")
            if status in ("failed", "cancelled"):
                raise LabError(f"guest {self.name} cannot be saved\n{self.report()}")
            return bool(status == "completed")

        until(ended, limit_s)

    def hide_qmp(self) -> None:
        """Nobody can connect to the monitor any more; QEMU and the guest go on."""
        self.qmp_path.unlink()

    def kill(self) -> None:
        """SIGKILL of QEMU, at once, and everything that this machine has left is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._control.close()
            self._monitor.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def qmp(self, command: str, **arguments: object) -> Any:
        """By a monitor of the test's own."""
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        data = b""
        while True:
            try:
                more = self._monitor.recv(1 << 16)
            except TimeoutError:
                raise LabError(f"guest {self.name}: no answer to {command}\n{self.report()}") from None
            except ConnectionResetError:
                more = b""
            data += more
            if not more:
                raise LabError(f"guest {self.name}: QEMU ended\n{self.report()}")
            while b"\n" in data:
                line, data = data.split(b"\n", 1)
                message = json.loads(line)
                if "error" in message:
                    raise LabError(f"guest {self.name}: {command}: {message['error']['desc']}")
                if "return" in message:
                    return message["return"]

    def balloon_bytes(self) -> int:
        """What the balloon leaves the guest now."""
        return int(self.qmp("query-balloon")["actual"])

    def resident_bytes(self) -> int:
        """Of the guest's RAM, in the host's: the mapping of QEMU that has exactly its size."""
        return self._memory("Rss")

    def swapped_bytes(self) -> int:
        """Of the guest's RAM, in the host's swap."""
        return self._memory("Swap")

    def _memory(self, what: str) -> int:
        wanted = self.memory_mib << 10
        size = 0
        for line in Path(f"/proc/{self.pid}/smaps").read_text().splitlines():
            words = line.split()
            if words[0] == "Size:":
                size = int(words[1])
            if words[0] == f"{what}:" and size == wanted:
                return int(words[1]) << 10
        raise LabError(f"guest {self.name}: QEMU has no mapping of {wanted} KiB")

    def page_out(self) -> None:
        """All of the guest's RAM into this host's swap, as far as there is one."""
        size, area = self.memory_mib << 20, None
        for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines():
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            area = (start, end) if end - start == size else area
        assert area is not None
        libc = ctypes.CDLL(None, use_errno=True)
        handle = os.pidfd_open(self.pid)
        try:
            ranges = (ctypes.c_size_t * 2)(area[0], size)
            done = libc.syscall(SYS_PROCESS_MADVISE, handle, ctypes.byref(ranges), 1, MADV_PAGEOUT, 0)
        finally:
            os.close(handle)
        if done < 0:
            raise LabError(f"process_madvise: {os.strerror(ctypes.get_errno())}")

    def report(self) -> str:
        console = self.place / "console"
        text = console.read_text(errors="replace") if console.exists() else "gone"
        return f"--- console, its end\n{text[-3000:]}"

    def _send(self, data: bytes) -> None:
        try:
            self._control.sendall(data)
        except OSError:  # also when it was killed here
            raise LabError(f"guest {self.name}: QEMU ended\n{self.report()}") from None

    def _receive(self, limit_s: float) -> None:
        self._control.settimeout(limit_s)
        try:
            more = self._control.recv(1 << 16)
        except TimeoutError:
            raise LabError(f"guest {self.name} said nothing for {limit_s:.0f} s\n{self.report()}") from None
        except ConnectionResetError:
            more = b""
        if not more:
            raise LabError(f"guest {self.name}: QEMU ended\n{self.report()}")
        self._unread += more

    def _line(self, limit_s: float) -> str:
        while b"\n" not in self._unread:
            self._receive(limit_s)
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode()

    def _command(self, control: int, monitor: int) -> list[str]:
        words = f"console=ttyS0 quiet loglevel=4 panic=-1 rdinit=/init {boot_words()} --"
        words += "" if self.agent else " noagent"
        words += "" if self.driver else " nodriver"
        on = {True: "on", False: "off"}
        extra: list[str] = []
        if self.balloon:
            options = f"deflate-on-oom={on[self.deflate_on_oom]}"
            options += f",free-page-reporting={on[self.free_page_reporting]}"
            extra += ["-device", f"virtio-balloon-pci,id=balloon0,{options}"]
        if self.swap_mib:
            extra += [
                *("-blockdev", f"driver=file,node-name=swap,cache.direct=off,filename={self.place}/swap"),
                *("-device", "virtio-blk-pci,drive=swap"),
            ]
        disk = f"driver=null-co,node-name=disk,size={self.disk_mib << 20},read-zeroes=on"
        disk += f",latency-ns={self.disk_latency_us * 1000}"
        if self.saved is not None:
            extra += ["-incoming", f"exec:cat {shlex.quote(str(self.saved))}"]
        into: tuple[str, ...] = ()
        if self.cgroup is not None:
            into = ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.cgroup / "cgroup.procs"))
        if not self.large_pages:
            into = (*into, sys.executable, "-S", "-c", _SMALL_PAGES)
        return [
            *into,
            *("qemu-system-x86_64", "-name", self.name, "-machine", "q35", "-cpu", PROCESSOR, "-smp", "1"),
            *("-accel", "tcg,tb-size=64"),
            *(
                "-object",
                f"memory-backend-ram,id=ram,size={self.memory_mib}M",
                "-machine",
                "memory-backend=ram",
            ),
            *("-m", f"{self.memory_mib}M", "-nodefaults", "-no-user-config", "-net", "none"),
            *("-vga", "none", "-display", "none", "-serial", "stdio"),
            *("-qmp", f"unix:{self.qmp_path},server=on,wait=off"),
            *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=control,fd={control}"),
            *("-device", "virtserialport,chardev=control,name=lab.control"),
            *("-chardev", f"socket,id=agent,path={self.agent_path},server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            *("-blockdev", disk),
            *("-device", "virtio-blk-pci,drive=disk", *extra, "-device", "virtio-rng-pci"),
            *("-kernel", str(self.images.kernel), "-initrd", str(self.images.initrd), "-append", words),
        ]


@contextlib.contextmanager
def boot(*guests: GuestVm) -> Iterator[None]:
    """All of them at once; they end with the block."""
    try:
        for guest in guests:
            guest.start()
        for guest in guests:
            guest.wait_ready()
        yield
    finally:
        for guest in guests:
            guest.kill()


def until(condition: Callable[[], bool], limit_s: float = 120) -> None:
    """Wait for it; LabError when it does not come about."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"it did not come about within {limit_s:.0f} s")
        time.sleep(0.02)


@contextlib.contextmanager
def host_swap(size_mib: int) -> Iterator[str]:
    """`tests.host.swap.host_swap`; LabError where the kernel or the rights are missing."""
    with contextlib.ExitStack() as stack:
        try:
            device = stack.enter_context(swap.host_swap(size_mib << 20))
        except OSError as error:
            raise LabError(f"no zram here: {error}") from None
        yield device


@contextlib.contextmanager
def host_without_swap() -> Iterator[None]:
    """No test of ours has swap on this host for as long as the block lasts; LabError when somebody else has."""
    with swap.taking_turns():
        if len(Path("/proc/swaps").read_text().splitlines()) > 1:
            raise LabError("this host has swap of its own")
        yield
