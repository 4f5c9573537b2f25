"""/dev/cpu/N/msr: registers of a processor that count its package's idle states, and how deep these may go.

msr(4); Intel's Software Developer's Manual, volume 4. Used by power-aware placement where perf has no counters for
them. A register that a processor does not have reads as junk or as an error, so only those of processors in the table
below are read (of servers; `known`). Reading one runs on that processor, and wakes its package.

Rejected: energy by registers. powercap and perf show the same registers, with their units, on every kernel that can
load this driver.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sustain.errors import HostError
from sustain.host import files
from sustain.host.firmware import Identity

TSC = 0x10
_LIMIT = 0xE2  # MSR_PKG_CST_CONFIG_CONTROL
_LIMIT_BITS, _LOCKED = 0xF, 1 << 15
_BYTES = 8
_RIGHTS = "run it as root (CAP_SYS_RAWIO); a kernel locked down by secure boot refuses it to everybody"

Pread = Callable[[int, int, int], bytes]


@dataclass(frozen=True, slots=True)
class Registers:
    """Which counters a processor has, in ticks of the TSC, and what the limit's numbers mean."""

    package: dict[str, int]  # "pc6": its register
    core: dict[str, int]  # "c6"
    limits: tuple[str, ...]  # the deepest state by number; "": reserved


@dataclass(frozen=True, slots=True)
class Limit:
    """How deep a package may go, as the firmware has set it."""

    number: int
    deepest: str  # "pc0", "pc2", "pc6", …, "any"; "": of no known meaning
    locked: bool  # nobody can change it until the next start


_PC2, _PC3, _PC6, _PC7 = {"pc2": 0x60D}, {"pc3": 0x3F8}, {"pc6": 0x3F9}, {"pc7": 0x3FA}
_C1, _C3, _C6, _C7 = {"c1": 0x660}, {"c3": 0x3FC}, {"c6": 0x3FD}, {"c7": 0x3FE}
_SANDY_LIMITS = ("pc0", "pc2", "pc6", "pc6", "pc7", "pc7", "", "any")
_HASWELL_LIMITS = ("pc0", "pc2", "pc3", "pc6", "pc7", "pc7", "pc8", "pc9", "any")
_SKYLAKE_LIMITS = ("pc0", "pc2", "pc6", "pc6", "", "", "", "any")  # 2: PC6 without retention
_SANDY = Registers(_PC2 | _PC3 | _PC6 | _PC7, _C3 | _C6 | _C7, _SANDY_LIMITS)
_HASWELL = Registers(_PC2 | _PC3 | _PC6 | _PC7, _C3 | _C6 | _C7, _HASWELL_LIMITS)
_SKYLAKE = Registers(_PC2 | _PC6, _C6, _SKYLAKE_LIMITS)
_ICE_LAKE = Registers(_PC2 | _PC6, _C1 | _C6, _SKYLAKE_LIMITS)
_FAMILY_6 = {
    0x2D: _SANDY,  # Sandy Bridge-X
    0x3E: _SANDY,  # Ivy Bridge-X
    0x3F: _HASWELL,  # Haswell-X
    0x4F: _HASWELL,  # Broadwell-X
    0x55: _SKYLAKE,  # Skylake-X, Cascade Lake, Cooper Lake
    0x6A: _ICE_LAKE,  # Ice Lake-X
    0x6C: _ICE_LAKE,  # Ice Lake-D
    0x8F: _ICE_LAKE,  # Sapphire Rapids
    0xCF: _ICE_LAKE,  # Emerald Rapids
    0xAD: _ICE_LAKE,  # Granite Rapids
    0xAE: _ICE_LAKE,  # Granite Rapids-D
}


def known(identity: Identity) -> Registers | None:
    """Those of this host's processors; None: not in our table."""
    if (identity.cpu_vendor, identity.cpu_family) != ("GenuineIntel", 6):
        return None
    return _FAMILY_6.get(identity.cpu_model or 0)


def registers(identity: Identity) -> Registers:
    """The same. Raises HostError when there are none that we know of."""
    if (found := known(identity)) is not None:
        return found
    numbers = (
        f"{identity.cpu_vendor or 'unknown maker'}, family {identity.cpu_family}, model {identity.cpu_model}"
    )
    raise HostError(
        f"{identity.cpu_name or 'processor'} ({numbers}): which registers count package idle states is unknown",
        hint="perf's cstate_pkg counts them where the kernel knows the processor; AMD has none",
    )


class Msr:
    """The registers of one processor, kept open. Close it."""

    def __init__(self, cpu: int, root: Path = Path("/"), pread: Pread = os.pread) -> None:
        """Raises HostError."""
        self._path = root / f"dev/cpu/{cpu}/msr"
        self._pread = pread
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _explained(self._path, error) from None

    def read(self, number: int) -> int:
        """The 64 bits of a register. Raises HostError: EIO, this processor does not have it."""
        try:
            content = self._pread(self._fd, _BYTES, number)
            if len(content) != _BYTES:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        except OSError as error:
            raise _explained(f"{self._path}, register {number:#x}", error) from None
        return int.from_bytes(content, "little")

    def limit(self, known: Registers) -> Limit:
        """How deep its package may go. Raises HostError."""
        value = self.read(_LIMIT)
        number = value & _LIMIT_BITS
        deepest = known.limits[number] if number < len(known.limits) else ""
        return Limit(number, deepest, bool(value & _LOCKED))

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
        hint = "modprobe msr"
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = _RIGHTS
    elif error.errno == errno.EIO:
        hint = "the processor, or the hypervisor, has no such register"
    elif error.errno == errno.ENXIO:
        hint = "the processor is offline"
    return files.refused(path, error, hint)
