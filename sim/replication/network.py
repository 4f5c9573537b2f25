"""Links between simulated hosts, and sockets on them, as `channel`, `dial` and `listener` use the real ones.

A stream arrives in order or not at all, as TCP's does: what is sent into a link that is cut waits there and arrives
when the link is whole again, unless the connection was reset. Each direction is cut on its own. What was sent and not
read counts against a window, so a receiver that does not read stops its sender.
"""

from __future__ import annotations

import errno
import random
import socket as real_socket
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sim.replication import tasks

if TYPE_CHECKING:
    from sim.replication.host import Host

WINDOW_BYTES = 128 << 10
_AGAIN_S = 0.02  # how often a link that is cut is tried


class Network:
    """All links; `cut` holds (from, to) of host names."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.cut: set[tuple[str, str]] = set()
        self.slow_s = 0.0  # more of latency, for everybody
        self.listeners: dict[tuple[str, int], Socket] = {}
        self.hosts: dict[str, Host] = {}  # by address
        self.connections: list[tuple[Socket, Socket]] = []

    def latency_s(self) -> float:
        return self.rng.uniform(0.0002, 0.002) + self.rng.random() * self.slow_s

    def joined(self, one: Host, other: Host) -> bool:
        """Whether packets pass both ways."""
        return (one.name, other.name) not in self.cut and (other.name, one.name) not in self.cut

    def reset(self, one: str, other: str) -> int:
        """Every connection between two hosts is reset, with all that is under way; how many."""
        names = {one, other}
        found = [pair for pair in self.connections if {pair[0].host.name, pair[1].host.name} == names]
        for near, far in found:
            near.fail()
            far.fail()
        return len(found)


_network: list[Network] = []


def install(network: Network) -> None:
    _network[:] = [network]


def network() -> Network:
    return _network[0]


class Pipe:
    """One direction of a connection."""

    def __init__(self, source: Socket, target: Socket) -> None:
        self.source, self.target = source, target
        self.under_way: deque[bytes] = deque()  # b"" is the end
        self.bytes = 0
        self._pumping = False

    def room(self) -> int:
        return WINDOW_BYTES - self.bytes - len(self.target.arrived)

    def put(self, data: bytes) -> None:
        self.under_way.append(data)
        self.bytes += len(data)
        if not self._pumping:
            self._pumping = True
            tasks.kernel().after(network().latency_s(), self._pump)

    def _pump(self) -> None:
        if self.source.error or self.target.error:
            self._pumping = False
            return
        if (self.source.host.name, self.target.host.name) in network().cut or self.target.host.down:
            tasks.kernel().after(_AGAIN_S, self._pump)
            return
        data = self.under_way.popleft()
        self.bytes -= len(data)
        self.target.take(data)
        self._pumping = bool(self.under_way)
        if self._pumping:
            tasks.kernel().after(network().rng.random() * 0.0002, self._pump)


class Socket:
    """One end of a connection, or a listening socket."""

    def __init__(self, family: int = 0, kind: int = 0, *, process: tasks.Process | None = None) -> None:
        self.process = process or tasks.process()
        self.host: Host = self.process.host  # type: ignore[assignment]
        self.process.belongings.append(self)
        self.waiters: list[tasks.Task] = []
        self.arrived = bytearray()
        self.error = 0
        self.ended = False  # the other side sends no more
        self.reads = self.writes = True
        self.closed = False
        self.pipe: Pipe | None = None  # what is sent goes there
        self.other: Socket | None = None
        self.queue: deque[Socket] = deque()  # of a listening one: connections that nobody has accepted
        self.address = ("", 0)

    # what the product calls

    def setblocking(self, _: bool) -> None:
        pass

    def setsockopt(self, *_: object) -> None:
        pass

    def getpeername(self) -> tuple[str, int]:
        if self.other is None or self.error:
            raise OSError(errno.ENOTCONN, "not connected")
        return self.other.host.address, 7411

    def getsockname(self) -> tuple[str, int]:
        return self.address

    def bind(self, address: tuple[str, int]) -> None:
        if address in network().listeners:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self.address = address

    def listen(self, _: int) -> None:
        network().listeners[self.address] = self

    def accept(self) -> tuple[Socket, tuple[str, int]]:
        while not self.queue:
            if not self.reads:
                raise OSError(errno.EINVAL, "Invalid argument")
            tasks.kernel().suspend(self.waiters, None)
        sock = self.queue.popleft()
        return sock, ("", 0)

    def sendmsg(self, parts: Sequence[bytes | memoryview]) -> int:
        if self.error:
            raise OSError(self.error, "Connection reset by peer")
        if not self.writes or self.pipe is None:
            raise OSError(errno.EPIPE, "Broken pipe")
        room, taken = self.pipe.room(), bytearray()
        for part in parts:
            taken += part[: room - len(taken)]
        if not taken:
            raise BlockingIOError
        self.pipe.put(bytes(taken))
        return len(taken)

    def send(self, data: bytes) -> int:
        return self.sendmsg([data])

    def recv_into(self, view: memoryview) -> int:
        if self.error:
            raise OSError(self.error, "Connection reset by peer")
        if not self.arrived:
            if self.ended or not self.reads or self.closed:
                return 0
            raise BlockingIOError
        got = min(len(view), len(self.arrived))
        view[:got] = self.arrived[:got]
        del self.arrived[:got]
        if self.other is not None:
            tasks.kernel().wake_all(self.other.waiters)
        return got

    def recv(self, count: int, flags: int = 0) -> bytes:
        """Only to peek."""
        assert flags & real_socket.MSG_PEEK
        if not self.arrived and not self.ended and not self.error and self.reads:
            raise BlockingIOError
        return bytes(self.arrived[:count])

    def shutdown(self, how: int) -> None:
        if self.other is None and not self.address[1]:
            raise OSError(errno.ENOTCONN, "not connected")
        self.reads = False
        if how != real_socket.SHUT_RD and self.writes:
            self.writes = False
            if self.pipe is not None and not self.error:
                self.pipe.put(b"")
        if network().listeners.get(self.address) is self:
            del network().listeners[self.address]
        tasks.kernel().wake_all(self.waiters)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.other is not None or self.address[1]:
            self.shutdown(real_socket.SHUT_RDWR)
        for each in self.queue:
            each.close()

    # what happens to it

    @property
    def readable(self) -> bool:
        return bool(self.arrived or self.ended or self.error or not self.reads)

    @property
    def writable(self) -> bool:
        return bool(self.error or not self.writes or self.pipe is None or self.pipe.room() > 0)

    def take(self, data: bytes) -> None:
        """Bytes arrive, or the end does."""
        if not data:
            self.ended = True
        elif self.closed:
            if self.other is not None:
                self.other.fail()
            return
        else:
            self.arrived += data
        tasks.kernel().wake_all(self.waiters)

    def fail(self) -> None:
        """The connection is reset."""
        self.error = errno.ECONNRESET
        self.arrived.clear()
        tasks.kernel().wake_all(self.waiters)

    def die(self) -> None:
        """Its process was killed: the kernel tells the other side, if it can."""
        if network().listeners.get(self.address) is self:
            del network().listeners[self.address]
        for each in self.queue:
            each.die()
        self.error = errno.ECONNRESET
        other = self.other
        if other is not None:
            self._tell_reset(other)

    def _tell_reset(self, other: Socket) -> None:
        if other.error or other.closed:
            return
        if self.host.down or not network().joined(self.host, other.host):
            tasks.kernel().after(_AGAIN_S, lambda: self._tell_reset(other))
            return
        tasks.kernel().after(network().latency_s(), other.fail)


class Poll:
    """As `select.poll()`, of one socket."""

    def __init__(self) -> None:
        self._sock: Socket | None = None
        self._reads = True

    def register(self, sock: Socket, flags: int) -> None:
        self._sock, self._reads = sock, flags == Select.POLLIN

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        sock, until_ns = self._sock, tasks.kernel().now_ns + tasks.whole_ns(timeout_ms / 1e3)
        assert sock is not None
        while not (sock.readable if self._reads else sock.writable):
            left_s = (until_ns - tasks.kernel().now_ns) / 1e9
            if left_s <= 0:
                return []
            tasks.kernel().suspend(sock.waiters, left_s)
        return [(0, 1)]


class Select:
    """As the module `select`."""

    POLLIN, POLLOUT = 1, 4
    poll = Poll


def _connect(address: tuple[str, int], timeout_s: float) -> Socket:
    net, sock = network(), Socket()
    target = net.hosts[address[0]]
    tasks.sleep(net.latency_s())
    if target.down or not net.joined(sock.host, target):
        tasks.sleep(timeout_s)
        sock.close()
        raise TimeoutError(errno.ETIMEDOUT, "timed out")
    listener = net.listeners.get(address)
    if listener is None:
        tasks.sleep(net.latency_s())
        sock.close()
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    far = Socket(process=listener.process)
    sock.other, far.other = far, sock
    sock.pipe, far.pipe = Pipe(sock, far), Pipe(far, sock)
    net.connections = [pair for pair in net.connections if not (pair[0].closed or pair[0].error)]
    net.connections.append((sock, far))
    listener.queue.append(far)
    tasks.kernel().wake_all(listener.waiters)
    tasks.sleep(net.latency_s())
    return sock


class SocketModule:
    """As the module `socket`."""

    socket = Socket
    create_connection = staticmethod(_connect)
    SOCK_STREAM, AI_PASSIVE = real_socket.SOCK_STREAM, real_socket.AI_PASSIVE
    SOL_SOCKET, SO_REUSEADDR = real_socket.SOL_SOCKET, real_socket.SO_REUSEADDR
    IPPROTO_TCP, TCP_NODELAY = real_socket.IPPROTO_TCP, real_socket.TCP_NODELAY
    TCP_USER_TIMEOUT, MSG_PEEK = real_socket.TCP_USER_TIMEOUT, real_socket.MSG_PEEK
    SHUT_RD, SHUT_WR, SHUT_RDWR = real_socket.SHUT_RD, real_socket.SHUT_WR, real_socket.SHUT_RDWR

    @staticmethod
    def getaddrinfo(host: str, port: int, **_: Any) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(real_socket.AF_INET, real_socket.SOCK_STREAM, 0, "", (host, port))]
