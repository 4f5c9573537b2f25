"""A link of a known bandwidth on one machine: loopback in a network namespace of its own, behind `tc tbf`.

Used by questions about draining. Needs root, iproute2, and the kernel's tbf.
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def throttled_loopback(bits_per_s: int) -> Iterator[None]:
    """This process, and all it starts, see a loopback of their own with that bandwidth. OSError when it cannot
    be made. Call from a process without other threads: a namespace is entered by one thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(libc.unshare(_CLONE_NEWNET), "unshare the network")
        try:
            _do("ip", "link", "set", "lo", "up")
            rate = f"{bits_per_s}bit"
            _do(
                "tc",
                "qdisc",
                "add",
                "dev",
                "lo",
                "root",
                "tbf",
                "rate",
                rate,
                "burst",
                "512kb",
                "latency",
                "50ms",
            )
            yield
        finally:
            _checked(libc.setns(before, _CLONE_NEWNET), "return to the network")
    finally:
        os.close(before)


def _checked(status: int, what: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)} (root?)")


def _do(*words: str) -> None:
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise OSError(f"{words[0]} is missing: scripts/setup-debian.sh bench") from None
    except subprocess.CalledProcessError as error:
        raise OSError(f"{' '.join(words)}: {error.stderr.strip()}") from None
