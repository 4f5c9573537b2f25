"""Reading and writing the kernel's small text files, alike for all surfaces of `host/`.

A file that is not there means that this kernel has no such thing: None. Every other refusal is an error with the path,
the kernel's word for it, and what to do.
"""

import errno
from collections.abc import Iterable
from pathlib import Path

from sustain.errors import HostError

_ABSENT = frozenset((errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOTDIR))
_DIGITS = 20
_FORBIDDEN = frozenset((errno.EACCES, errno.EPERM))


def text(path: Path) -> str | None:
    """What the file says; None: this kernel has no such file, or what it spoke of has gone. Raises HostError."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except ProcessLookupError:
        return None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise refused(path, error) from None


def number(path: Path) -> int | None:
    """A file that holds one whole number; None: no such file, or no number. Raises HostError."""
    try:
        return int((text(path) or "").strip())
    except ValueError:
        return None


def table(content: str) -> dict[str, int]:
    """Lines of a name and a whole number ("pswpin 0"), as most counters are shown; other lines are left out."""
    found: dict[str, int] = {}
    for line in content.splitlines():
        name, _, rest = line.partition(" ")
        if (value := counted(rest.strip())) is not None:
            found[name] = value
    return found


def counted(word: str) -> int | None:
    """A whole number as a kernel's counters are; None: it is none, or of more digits than 64 bits have, as a guest may
    make one up."""
    return int(word) if word.isdecimal() and len(word) <= _DIGITS else None


def write(path: Path, value: str) -> None:
    """Raises HostError; its `errno` is the kernel's."""
    try:
        path.write_text(value, encoding="ascii")
    except OSError as error:
        raise refused(path, error) from None


def refused(path: Path | str, error: OSError, hint: str = "") -> HostError:
    """The error for a call that the kernel refused."""
    if not hint and error.errno in _FORBIDDEN:
        hint = "it needs root, or the capability that the file's documentation names"
    return HostError(f"{path}: {error.strerror or error}", hint=hint, errno=error.errno)


def cpus(content: str | None) -> frozenset[int]:
    """A list of numbers as the kernel writes it: "0-3,8"; empty for None."""
    found: set[int] = set()
    for part in (content or "").strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def cpu_list(numbers: Iterable[int]) -> str:
    """The same, to be written: "" for none."""
    parts: list[list[int]] = []
    for each in sorted(set(numbers)):
        if parts and parts[-1][1] == each - 1:
            parts[-1][1] = each
        else:
            parts.append([each, each])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
