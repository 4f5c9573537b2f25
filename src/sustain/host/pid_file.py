"""Files with a process's number in them, as daemons write them (daemon(7)). Used by schedulers that find processes."""

import errno
import os
import stat
from pathlib import Path

from sustain.errors import HostError
from sustain.host import files

_DIGITS = 10  # of a process's number
_ABOUT = "pid_file names a file that the program writes when it has started"


def read(path: Path, root: Path = Path("/")) -> int:
    """The number that is its first word. Raises HostError when there is none, or it may not be read. A pipe or a device
    in its place is not waited for."""
    if root != Path("/"):
        path = root / path.relative_to(path.anchor)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise files.refused(path, error, _ABOUT if error.errno == errno.ENOENT else "") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise HostError(
                f"{path}: is no regular file", hint="pid_file names a file with the process's number"
            )
        words = os.read(descriptor, 4096).split()
    except OSError as error:
        raise files.refused(path, error) from None
    finally:
        os.close(descriptor)
    digits = words[0] if words else b""
    if not digits.isdigit() or len(digits) > _DIGITS:
        raise HostError(f"{path}: holds no process's number", hint=_ABOUT)
    return int(digits)
