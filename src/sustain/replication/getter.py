"""One connection to a peer whose copy is fetched from. Used by `fetch`, by one thread at a time."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from sustain.errors import PeerUnreachable, ProtocolError
from sustain.replication import wire
from sustain.replication.auth import STORES
from sustain.replication.credentials import Credentials
from sustain.replication.dial import dial, introduce
from sustain.replication.urls import Peer
from sustain.replication.wire import FETCHER_STREAM, Bye, Hello, Kind

if TYPE_CHECKING:  # only the stub has it
    from sustain._native import Superblock

_HINT = "run the same version on both hosts"


def nobody(name: str, epoch: int, at_least: int) -> Hello:
    """The HELLO of a host that has no copy yet and wants one that reaches `at_least`. Epoch 0: none is claimed."""
    return Hello(
        protocol=wire.PROTOCOL,
        purpose="fetch",
        store=bytes(16),
        replica=bytes(16),
        name=name,
        epoch=epoch,
        history=[],
        log_size=0,
        image_size=0,
        durability="memory",
        tail=0,
        committed=at_least,
    )


def hello_of(block: "Superblock", name: str) -> Hello:
    """The HELLO of an arriving store."""
    return Hello(
        protocol=wire.PROTOCOL,
        purpose="fetch",
        store=block["store_uuid"],
        replica=block["replica_uuid"],
        name=name,
        epoch=block["epoch"],
        history=[(epoch, start) for epoch, start in block["history"]],
        log_size=block["log_size"],
        image_size=block["image_size"],
        durability=block["durability"],
        tail=block["tail"],
        committed=0,  # what it must reach is the base, which `Fetch` looks at itself
    )


class Getter:
    """Connected and let in, from the moment it is made. Raises ReplicationError."""

    def __init__(self, peer: Peer, credentials: Credentials, hello: Hello, timeout_s: float = 10.0) -> None:
        self.url = peer.url
        self._channel = dial(peer, connect_timeout_s=timeout_s, timeout_s=timeout_s)
        try:
            self.welcome = introduce(self._channel, peer, credentials, STORES, lambda: hello, timeout_s)
        except BaseException:
            self._channel.release()
            raise

    def ask(self, first: int, count: int) -> None:
        """Ask for pages; `take` them in the same order."""
        self._channel.send(Kind.WANT, first, count)

    def take(self, first: int, count: int) -> bytes:
        """The pages that were asked for, as `_native.Fetcher.put` takes them."""
        channel = self._channel
        while True:
            header = channel.receive_header(FETCHER_STREAM)
            payload = channel.receive_payload(header)
            if header.kind is Kind.BYE:
                bye = wire.decode(Bye, payload)
                raise PeerUnreachable(f"{self.url} ended the connection: {bye.message or bye.code}")
            if header.kind is Kind.HEARTBEAT:
                continue
            if (header.a, header.b) != (first, count):
                raise ProtocolError(f"{self.url} sent other pages than were asked for", hint=_HINT)
            return payload

    def heartbeat(self) -> None:
        """Say that this side is there; hears the answer."""
        self._channel.send(Kind.HEARTBEAT)
        header = self._channel.receive_header(FETCHER_STREAM)
        self._channel.receive_payload(header)
        if header.kind is not Kind.HEARTBEAT:
            raise PeerUnreachable(f"{self.url} ended the connection")

    def close(self) -> None:
        """End the connection."""
        self._channel.bye("done")
        self._channel.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
