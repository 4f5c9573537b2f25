"""A bad network between two real sockets: a TCP proxy on loopback that cuts, stalls, slows and replays.

For tests of replication, ours and users'. Ship to `link.url`, which forwards to a real receiver:

    with Link(receiver.address) as link:
        link.cut_after(1000)        # the next connection ends after 1000 bytes towards the receiver
        link.stall()                # connections stay open, and nothing passes: half-open
        link.slow(64 << 10)         # bytes a second
        link.cut()                  # now, all of them

Both directions are forwarded as they come; nothing is reordered, because TCP does not reorder either.
"""

import contextlib
import socket
import threading
from types import TracebackType

_PIECE_BYTES = 64 << 10


class Link:
    """Forwards connections to `target` until closed."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.connections = 0
        self.forwarded_bytes = 0  # towards the target, over all connections
        self.first_bytes: list[bytes] = []  # what each connection sent first (its HELLO), for `replay`
        self._cuts: list[int] = []  # budgets of the connections to come
        self._rate: float | None = None
        self._down = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._spawn(self._accept)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    @property
    def url(self) -> str:
        """As a destination."""
        return f"tcp://{self.address[0]}:{self.address[1]}"

    def __enter__(self) -> "Link":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def cut(self) -> None:
        """End every connection now."""
        with self._lock:
            sockets = list(self._open)
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut_after(self, *budgets: int) -> None:
        """The connections to come end after so many bytes towards the target, one budget each."""
        with self._lock:
            self._cuts += budgets

    def stall(self) -> None:
        """Let nothing pass, and close nothing."""
        self._flowing.clear()

    def flow(self) -> None:
        """Undo `stall`, `slow` and `down`."""
        self._rate, self._down = None, False
        self._flowing.set()

    def slow(self, bytes_per_s: float) -> None:
        """Pass about so many bytes a second towards the target."""
        self._rate = bytes_per_s

    def down(self) -> None:
        """End every connection, and every one that is tried."""
        self._down = True
        self.cut()

    def passing(self, piece: bytes, before: int, towards: bool) -> bytes:
        """What passes for `piece`, which comes `before` bytes into its connection. For a path that damages."""
        return piece

    def replay(self, at: int = 0, wait_s: float = 5.0) -> bytes:
        """Send what connection number `at` had sent first over a new connection to the target; its whole
        answer."""
        with socket.create_connection(self.target, timeout=wait_s) as sock:
            sock.sendall(self.first_bytes[at])
            answer = bytearray()
            with contextlib.suppress(OSError):
                while piece := sock.recv(_PIECE_BYTES):
                    answer += piece
            return bytes(answer)

    def close(self) -> None:
        self._closed.set()
        self._flowing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in list(self._threads):
            thread.join(5.0)
        self._listener.close()

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._down or self._closed.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(self.target, timeout=5.0)
            except OSError:
                near.close()
                continue
            for each in (near, far):
                each.settimeout(None)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                budget = self._cuts.pop(0) if self._cuts else None
                self._open |= {near, far}
            self._spawn(self._pump, near, far, budget, True)
            self._spawn(self._pump, far, near, None, False)

    def _pump(self, source: socket.socket, sink: socket.socket, budget: int | None, towards: bool) -> None:
        first, passed = True, 0
        try:
            while piece := source.recv(self._piece(budget)):
                self._flowing.wait()
                if first and towards:
                    self.first_bytes.append(piece)
                first = False
                sink.sendall(self.passing(piece, passed, towards))
                passed += len(piece)
                if towards:
                    self.forwarded_bytes += len(piece)
                    if self._rate is not None:
                        self._closed.wait(len(piece) / self._rate)
                if budget is not None:
                    budget -= len(piece)
                    if budget <= 0:
                        break
        except OSError:
            pass
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            # The other direction has its own references; the last one closes.
            if source not in self._open:
                source.close()
                sink.close()
            self._open -= {source, sink}

    def _piece(self, budget: int | None) -> int:
        piece = _PIECE_BYTES if self._rate is None else max(1, min(_PIECE_BYTES, int(self._rate / 50)))
        return piece if budget is None else max(1, min(piece, budget))
