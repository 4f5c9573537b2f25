"""libvirt: guests that it manages, through its own library, since it alone holds their sockets.

https://libvirt.org/html/libvirt-libvirt-domain.html. Used by the guest memory scheduler; needs the extra `libvirt`.
One connection for each URI, shared by threads (the library allows it), opened again when it was lost. Its calls have no
time limits of their own and cannot be interrupted, so each domain has two threads for them (`overdue`): one for its
agent, one for the rest. A domain, or the daemon, that hangs delays those who ask by the time limit, once. Where the
daemon can be asked for signs of life (keepalive) it is: one that is stuck loses its connections, and with them the
calls that hang.

Memory statistics come in KiB and only while a period is set; a domain's `actual` is what its balloon leaves it. QEMU's
"-1" is left out by libvirt.
"""

import atexit
import ctypes
import errno
import json
import threading
import uuid
import weakref
from collections.abc import Callable
from typing import Any, TypeVar
from xml.etree import ElementTree

from sustain.errors import HostError
from sustain.host.balloon import Statistics
from sustain.host.guest_agent import AgentRefused
from sustain.host.overdue import Caller

T = TypeVar("T")

_KIB = 1024
_ALIVE_S, _ALIVE_COUNT = 5, 3  # so long without a sign of life, so often in a row: a daemon is given up
_AGENT_S = 1.0  # more than the agent's own limit, which libvirt keeps
_HINT = (
    "libvirt hangs on it; does `virsh dominfo` come back? Is libvirtd stuck, or another job of the domain?"
)
_AGENT_HINT = "does `virsh qemu-agent-command` get more out of it? An agent may have commands disabled"
_MONITOR_HINT = "does `virsh qemu-monitor-command` get more out of it? This QEMU may not know the command"

_FORBIDDEN = (errno.EACCES, errno.EPERM)


class _Place:
    """One URI."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while it is opened, which may hang
        self.connection: Any = None


_places: dict[str, _Place] = {}
_callers: weakref.WeakSet[Caller] = weakref.WeakSet()
_lock = threading.Lock()
_loop: list[threading.Thread] = []  # one, once it is needed


@atexit.register
def _end() -> None:
    """Close the connections: later, the library's own clean-up no longer works, and says so. Where a call hangs, the
    connections are left as they are, since closing one would wait for it."""
    if any(each.hangs for each in _callers):
        for place in _places.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(place.connection))
    _places.clear()


class Domain:
    """One guest, by its name or UUID. Raises HostError; ECONNRESET, ETIMEDOUT: for the moment."""

    def __init__(self, uri: str, name: str, timeout_s: float = 2.0) -> None:
        self.uri = uri
        self.name = name
        self._timeout_s = timeout_s
        self._caller, self._agent = (Caller(f"{uri} {name}{whose}", _HINT) for whose in ("", "'s agent"))
        _callers.update((self._caller, self._agent))

    def running(self) -> str | None:
        """What tells this start of it from others: its UUID and number; None: it does not run, or is not defined."""

        def ask(domain: Any) -> str | None:
            number = domain.ID()
            return f"{domain.UUIDString()}:{number}" if number >= 0 else None

        library = _library()
        try:
            return self.call(ask)
        except HostError as error:
            if isinstance(error.__cause__, library.libvirtError) and (
                error.__cause__.get_error_code() == library.VIR_ERR_NO_DOMAIN
            ):
                return None
            raise

    def identity(self) -> str:
        """Its UUID."""
        return str(self.call(lambda domain: domain.UUIDString()))

    def size_bytes(self) -> int:
        """The most that it can have now."""
        return int(self.call(lambda domain: domain.maxMemory())) * _KIB

    def balloon_bytes(self) -> int | None:
        """What its balloon leaves it; None: it does not say."""
        actual = self._stats().get("actual")
        return None if actual is None else actual * _KIB

    def set_balloon(self, to_bytes: int) -> None:
        """Of the running domain; what its definition says stays."""
        flag = _library().VIR_DOMAIN_AFFECT_LIVE
        self.call(lambda domain: domain.setMemoryFlags(to_bytes // _KIB, flag))

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

    def period(self) -> int | None:
        """Seconds between two statistics of the running domain; 0: they are off; None: it has no balloon."""
        found = self.memballoon()
        return None if found is None else found[0]

    def memballoon(self) -> tuple[int, bool] | None:
        """(`period`, whether the balloon gives back when the guest runs out of memory); None: it has no balloon."""
        text = self.call(lambda domain: domain.XMLDesc(0))
        try:
            balloon = ElementTree.fromstring(text).find("devices/memballoon")
            if balloon is None or balloon.get("model") == "none":
                return None
            stats = balloon.find("stats")
            period_s = 0 if stats is None else int(stats.get("period", "0"))
            return period_s, balloon.get("autodeflate") == "on"
        except (ElementTree.ParseError, ValueError) as error:
            raise HostError(
                f"{self.uri} {self.name}: its description: {error}",
                hint="what does `virsh dumpxml` show as its memballoon?",
            ) from None

    def set_period(self, period_s: int) -> None:
        """Seconds between two statistics of the running domain; 0: none."""
        flag = _library().VIR_DOMAIN_AFFECT_LIVE
        self.call(lambda domain: domain.setMemoryStatsPeriod(period_s, flag))

    def ask(self, command: str, **arguments: Any) -> Any:
        """A command for its guest agent, and the answer (`guest_agent.Asking`)."""
        import libvirt_qemu

        library = _library()
        seconds = max(1, round(self._timeout_s))
        request = _request(command, arguments)
        try:
            text = self._agent.call(
                lambda: libvirt_qemu.qemuAgentCommand(self._find(), request, seconds, 0), seconds + _AGENT_S
            )
        except library.libvirtError as error:
            if error.get_error_code() == library.VIR_ERR_INTERNAL_ERROR:  # the agent's own "no" comes as this
                raise AgentRefused(
                    f"{self.uri} {self.name}: guest agent: {command}: {error}", hint=_AGENT_HINT
                ) from None
            raise self._error(error) from None
        try:
            return json.loads(text)["return"]
        except (KeyError, TypeError, ValueError):
            raise AgentRefused(
                f"{self.uri} {self.name}: guest agent: {text[:80]!r} is no answer", hint=_AGENT_HINT
            ) from None

    def ask_monitor(self, command: str, **arguments: Any) -> Any:
        """A command for QEMU's monitor, past libvirt, and the answer. Only for what changes nothing: libvirt does not
        know of it, marks the domain as tainted (custom-monitor) and may forbid it."""
        import libvirt_qemu

        request = _request(command, arguments)
        text = self.call(lambda domain: libvirt_qemu.qemuMonitorCommand(domain, request, 0))
        try:
            answer = json.loads(text)
            if "error" in answer:
                why = answer["error"].get("desc")
                raise HostError(f"{self.uri} {self.name}: {command}: {why}", hint=_MONITOR_HINT)
            return answer["return"]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise HostError(
                f"{self.uri} {self.name}: {command}: {text[:80]!r} is no answer", hint=_MONITOR_HINT
            ) from None

    def _stats(self) -> dict[str, int]:
        return dict(self.call(lambda domain: domain.memoryStats()))

    def call(self, work: Callable[[Any], T]) -> T:
        """What `work` returns of the library's own domain, for the other surfaces of libvirt."""
        library = _library()
        try:
            return self._caller.call(lambda: work(self._find()), self._timeout_s)
        except library.libvirtError as error:
            raise self._error(error) from error

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
        return HostError(
            f"{self.uri} {self.name}: {error}", hint="does `virsh dominfo` say more?", errno=_errno(error)
        )


def _errno(error: Any) -> int | None:
    """The kernel's word for it, where libvirt has one; ECONNRESET: the daemon is not there, or has gone; ETIMEDOUT: it
    is busy with the domain."""
    library, code = _library(), error.get_error_code()
    number = (error.get_int1() or None) if code == library.VIR_ERR_SYSTEM_ERROR else None
    if code == library.VIR_ERR_OPERATION_TIMEOUT:
        return errno.ETIMEDOUT
    lost = (library.VIR_ERR_RPC, library.VIR_ERR_INTERNAL_ERROR, library.VIR_ERR_SYSTEM_ERROR)
    if error.get_error_domain() == library.VIR_FROM_RPC and code in lost and number not in _FORBIDDEN:
        return errno.ECONNRESET
    return number


def _is_uuid(name: str) -> bool:
    try:
        uuid.UUID(name)
    except ValueError:
        return False
    return True


def _request(command: str, arguments: dict[str, Any]) -> str:
    return json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})


def _connection(uri: str) -> Any:
    library = _library()
    with _lock:
        place = _places.setdefault(uri, _Place())
    with place.lock:
        try:
            if place.connection is not None and place.connection.isAlive():
                return place.connection
        except library.libvirtError:
            place.connection = None  # it was lost
        remote = not uri.startswith(("test:", "qemu:///embed"))
        if remote:
            _start_loop()
        try:
            connection = library.open(uri)
            if remote:
                connection.setKeepAlive(_ALIVE_S, _ALIVE_COUNT)
        except library.libvirtError as error:
            raise HostError(
                f"{uri}: {error}", hint="does libvirtd run, and may this user ask it?", errno=_errno(error)
            ) from None
        place.connection = connection
        return connection


def _start_loop() -> None:
    """The thread in which the library sends and expects signs of life; before the first connection that has them."""
    library = _library()
    with _lock:
        if not _loop:
            library.virEventRegisterDefaultImpl()
            _loop.append(threading.Thread(target=_run_loop, name="libvirt's events", daemon=True))
            _loop[0].start()


def _run_loop() -> None:
    library = _library()
    while True:
        library.virEventRunDefaultImpl()


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
