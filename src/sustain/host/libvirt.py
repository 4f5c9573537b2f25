"""libvirt: guests that it manages, through its own library, since it alone holds their sockets.

https://libvirt.org/html/libvirt-libvirt-domain.html. Used by the guest memory scheduler; needs the extra `libvirt`.
One connection for each URI, shared by threads (the library allows it), opened again when it was lost. Its calls have no
time limits of their own, those to a guest's agent apart: whoever calls uses a thread.

Memory statistics come in KiB and only while a period is set; a domain's `actual` is what its balloon leaves it. QEMU's
"-1" is left out by libvirt.
"""

import atexit
import json
import threading
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from sustain.errors import HostError
from sustain.host.balloon import Statistics
from sustain.host.guest_agent import AgentRefused

T = TypeVar("T")

_KIB = 1024
_connections: dict[str, Any] = {}
_lock = threading.Lock()
atexit.register(_connections.clear)  # later, the library's own clean-up no longer works, and says so


class Domain:
    """One guest, by its name or UUID. Raises HostError."""

    def __init__(self, uri: str, name: str, timeout_s: float = 2.0) -> None:
        self.uri = uri
        self.name = name
        self._timeout_s = timeout_s

    def running(self) -> str | None:
        """What tells this start of it from others: its UUID and number; None: it does not run, or is not defined."""
        library = _library()
        try:
            domain = self._find()
            number = domain.ID()
            return f"{domain.UUIDString()}:{number}" if number >= 0 else None
        except library.libvirtError as error:
            if error.get_error_code() == library.VIR_ERR_NO_DOMAIN:
                return None
            raise self._error(error) from None

    def identity(self) -> str:
        """Its UUID."""
        return str(self._call(lambda domain: domain.UUIDString()))

    def size_bytes(self) -> int:
        """The most that it can have now."""
        return int(self._call(lambda domain: domain.maxMemory())) * _KIB

    def balloon_bytes(self) -> int | None:
        """What its balloon leaves it; None: it does not say."""
        actual = self._stats().get("actual")
        return None if actual is None else actual * _KIB

    def set_balloon(self, to_bytes: int) -> None:
        """Of the running domain; what its definition says stays."""
        flag = _library().VIR_DOMAIN_AFFECT_LIVE
        self._call(lambda domain: domain.setMemoryFlags(to_bytes // _KIB, flag))

    def statistics(self) -> Statistics:
        """What its balloon's driver said last."""
        stats = self._stats()

        def size(tag: str) -> int | None:
            return stats[tag] * _KIB if stats.get(tag, -1) >= 0 else None

        return Statistics(
            updated_s=stats.get("last_update", 0),
            free_bytes=size("unused"),
            total_bytes=size("available"),  # libvirt's words: what the guest has, and what it could use
            available_bytes=size("usable"),
            disk_caches_bytes=size("disk_caches"),
            swap_in_bytes=size("swap_in"),
            swap_out_bytes=size("swap_out"),
            major_faults=stats.get("major_fault"),
        )

    def set_period(self, period_s: int) -> None:
        """Seconds between two statistics of the running domain; 0: none. What it was before cannot be asked."""
        flag = _library().VIR_DOMAIN_AFFECT_LIVE
        self._call(lambda domain: domain.setMemoryStatsPeriod(period_s, flag))

    def ask(self, command: str, **arguments: Any) -> Any:
        """A command for its guest agent, and the answer (`guest_agent.Asking`)."""
        import libvirt_qemu

        request = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        library = _library()
        seconds = max(1, round(self._timeout_s))
        try:
            text = libvirt_qemu.qemuAgentCommand(self._find(), request, seconds, 0)
        except library.libvirtError as error:
            if error.get_error_code() == library.VIR_ERR_INTERNAL_ERROR:  # the agent's own "no" comes as this
                raise AgentRefused(f"{self.uri} {self.name}: guest agent: {command}: {error}") from None
            raise self._error(error) from None
        try:
            return json.loads(text)["return"]
        except (KeyError, TypeError, ValueError):
            raise AgentRefused(f"{self.uri} {self.name}: guest agent: {text[:80]!r} is no answer") from None

    def _stats(self) -> dict[str, int]:
        return dict(self._call(lambda domain: domain.memoryStats()))

    def _call(self, work: Callable[[Any], T]) -> T:
        library = _library()
        try:
            return work(self._find())
        except library.libvirtError as error:
            raise self._error(error) from None

    def _find(self) -> Any:
        """Each time anew: a domain may be defined again, and its object would be the old one's."""
        library = _library()
        connection = _connection(self.uri)
        try:
            return connection.lookupByName(self.name)
        except library.libvirtError as error:
            if error.get_error_code() != library.VIR_ERR_NO_DOMAIN or not _is_uuid(self.name):
                raise
        return connection.lookupByUUIDString(self.name)

    def _error(self, error: Exception) -> HostError:
        return HostError(f"{self.uri} {self.name}: {error}", hint="does `virsh dominfo` say more?")


def _is_uuid(name: str) -> bool:
    try:
        uuid.UUID(name)
    except ValueError:
        return False
    return True


def _connection(uri: str) -> Any:
    library = _library()
    with _lock:
        held = _connections.get(uri)
        try:
            if held is not None and held.isAlive():
                return held
        except library.libvirtError:
            held = None  # it was lost
        try:
            _connections[uri] = library.open(uri)
        except library.libvirtError as error:
            raise HostError(f"{uri}: {error}", hint="does libvirtd run, and may this user ask it?") from None
        return _connections[uri]


def _library() -> Any:
    try:
        import libvirt
    except ImportError:
        raise HostError(
            "libvirt's library is not installed",
            hint="pip install 'sustain[libvirt]'; on Debian with libvirt-dev",
        ) from None
    # Without a handler it prints errors to stderr besides raising them.
    libvirt.registerErrorHandler(_quiet, None)
    return libvirt


def _quiet(_context: object, _error: object) -> None:
    """The exception says it all."""
