"""What a service tells systemd: that it is ready, that it lives, that it ends (sd_notify(3)).

Used by `agent`. The protocol is a datagram of `NAME=value` lines to the socket named in the environment, so it is
spoken here; libsystemd's binding would be a dependency with a compiler for it.
"""

import os
import socket
from collections.abc import Mapping


class ServiceManager:
    """The service manager that started this process; nobody when it was not one."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._path = environ.get("NOTIFY_SOCKET", "")
        for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        span_us = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(span_us) / 1e6 if for_us and span_us.isdecimal() and int(span_us) else None

    def tell(self, **lines: str | int) -> None:
        """Send lines: `tell(READY=1, STATUS="up")`. Raises OSError."""
        if not self._path:
            return
        path = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        text = "\n".join(f"{name}={value}" for name, value in lines.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(1.0)
            sock.sendto(text.encode(), path)
