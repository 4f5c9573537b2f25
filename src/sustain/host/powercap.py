"""/sys/class/powercap: energy that packages, their memory and the whole platform have used (RAPL), of Intel and AMD.

Documentation/power/powercap/powercap.rst. Used by power-aware placement. A zone is a package ("package-0", on parts
with several dies "package-0-die-1"), a part of one ("dram", "core", "uncore") or the platform ("psys"). A counter
starts again at zero beyond `range_uj`, of a busy package after some ten minutes: whoever reads it reads it more often.
Reading it runs on the package, and wakes it. The files are root's alone, since energy tells what others compute
(CVE-2020-8694).
"""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sustain.errors import HostError
from sustain.host import files

_CLASS = "sys/class/powercap"
_ZONE = re.compile(r"intel-rapl:\d+(?::\d+)?")  # AMD's too; intel-rapl-mmio:0 is a package once more
_NAME = re.compile(r"package-(\d+)(?:-die-(\d+))?")
_NUMBER_BYTES = 32
_RIGHTS = "run it as root, or give it to a group: chgrp GROUP FILE && chmod 0440 FILE"


@dataclass(frozen=True, slots=True)
class Zone:
    """One counter. package and die are those it is in; None: of the platform, and of a package that has one die."""

    path: Path
    kind: str  # "package", "dram", "core", "uncore", "psys"
    package: int | None
    die: int | None


@dataclass(frozen=True, slots=True)
class Energy:
    """A counter at one moment, in microjoules."""

    used_uj: int
    range_uj: int | None  # it begins again beyond this; None: it does not


def joules_between(first: Energy, second: Energy) -> float | None:
    """Energy used from `first` to `second`, if the counter began again once at most. None: it went back, and has no
    range, so it is another one by now."""
    used_uj = second.used_uj - first.used_uj
    if used_uj < 0:
        if second.range_uj is None or used_uj + second.range_uj < 0:
            return None
        used_uj += second.range_uj
    return used_uj / 1e6


def zones(root: Path = Path("/")) -> tuple[Zone, ...]:
    """All that this host has. Raises HostError."""
    folder = root / _CLASS
    try:
        names = sorted(each.name for each in folder.iterdir() if _ZONE.fullmatch(each.name))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise files.refused(folder, error) from None
    found: dict[str, Zone] = {}
    for name in names:  # a zone comes before its parts
        said = (files.text(folder / name / "name") or "").strip()
        above = found.get(":".join(name.split(":")[:2]))
        if match := _NAME.fullmatch(said):
            die = None if match[2] is None else int(match[2])
            found[name] = Zone(folder / name, "package", int(match[1]), die)
        elif above is not None:
            found[name] = Zone(folder / name, said, above.package, above.die)
        elif said == "psys":
            found[name] = Zone(folder / name, said, None, None)
    return tuple(found.values())


def unavailable(root: Path = Path("/")) -> HostError | None:
    """Why no package's energy can be read here; None: it can. Opens the files, and does not read them."""
    packages = [each for each in zones(root) if each.kind == "package"]
    if not packages:
        return HostError(
            f"{root / _CLASS}: no zone of a package",
            hint="modprobe intel_rapl_msr (Intel, and AMD from family 17h on); virtual machines have none",
        )
    path = packages[0].path / "energy_uj"
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return _refused(path, error)
    return None


class Meter:
    """The counter of one zone, kept open. Close it."""

    def __init__(self, zone: Zone) -> None:
        """Raises HostError."""
        self.zone = zone
        self._path = zone.path / "energy_uj"
        self._range_uj = files.number(zone.path / "max_energy_range_uj")
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _refused(self._path, error) from None

    def read(self) -> Energy:
        """Wakes the package. Raises HostError."""
        try:
            return Energy(int(os.pread(self._fd, _NUMBER_BYTES, 0)), self._range_uj)
        except OSError as error:
            raise _refused(self._path, error) from None
        except ValueError:
            raise HostError(f"{self._path}: no number") from None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refused(path: Path, error: OSError) -> HostError:
    return files.refused(path, error, _RIGHTS if error.errno in (errno.EACCES, errno.EPERM) else "")
