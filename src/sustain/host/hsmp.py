"""/dev/hsmp: what an EPYC's system management tells of each socket: its power, and how busy its cores are.

Documentation/arch/x86/amd_hsmp.rst, <asm/amd_hsmp.h>; EPYC of family 19h (Milan) and later. Used by power-aware
placement. Both are momentary averages of the firmware's own making, not counters, so what lies between two readings is
not told. Anybody may read. (What newer drivers show of this in sysfs needs the same driver, and has nothing more.)

    struct hsmp_message {        bytes
        __u32 msg_id;            0-3
        __u16 num_args;          4-5
        __u16 response_sz;       6-7    words of the answer
        __u32 args[8];           8-39   arguments, then the answer
        __u16 sock_ind;          40-41
    }                            packed to 4: 44 bytes
"""

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Self

from sustain.errors import HostError
from sustain.host import files

MESSAGE = struct.Struct("=IHH8IH2x")
_SEND = 3 << 30 | MESSAGE.size << 16 | 0xF8 << 8  # HSMP_IOCTL_CMD, _IOWR(0xF8, 0, struct hsmp_message)
_SOCKET_POWER, _C0_PERCENT = 0x04, 0x11
_PERCENT = 100

Ioctl = Callable[[int, int, bytearray], object]


class Hsmp:
    """All sockets of this host. Close it."""

    def __init__(self, root: Path = Path("/"), ioctl: Ioctl = fcntl.ioctl) -> None:
        """Raises HostError."""
        self._path = root / "dev/hsmp"
        self._ioctl = ioctl
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _explained(self._path, error) from None

    def power_w(self, socket: int) -> float:
        """Of a socket, on average over a short time. Raises HostError."""
        return self._ask(_SOCKET_POWER, socket) / 1000

    def c0_percent(self, socket: int) -> int:
        """The share of time that the cores of a socket spent executing, on average over them and over a short time; 0
        to 100. Raises HostError."""
        found = self._ask(_C0_PERCENT, socket)
        if found > _PERCENT:
            raise HostError(f"{self._path}: {found}% of time in C0, of socket {socket}")
        return found

    def _ask(self, message: int, socket: int) -> int:
        content = bytearray(MESSAGE.pack(message, 0, 1, *(0,) * 8, socket))
        try:
            self._ioctl(self._fd, _SEND, content)
        except OSError as error:
            raise _explained(f"{self._path}, message {message:#x} to socket {socket}", error) from None
        return int(MESSAGE.unpack(content)[3])

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _explained(path: Path | str, error: OSError) -> HostError:
    hint = ""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        hint = "modprobe amd_hsmp (or hsmp_acpi), on an EPYC of family 19h or later whose firmware has HSMP enabled"
    elif error.errno == errno.ENOMSG:
        hint = "this processor's firmware does not know that message"
    elif error.errno == errno.ENODEV:
        hint = "there is no such socket"
    elif error.errno == errno.ETIMEDOUT:
        hint = "its firmware did not answer"
    return files.refused(path, error, hint)
