"""The door of a host that is itself the primary: answers whoever would ship to it, and lets nobody in.

Used by the supervisor while its host is the primary. Without it a former primary that missed a takeover would
find nobody listening here and go on believing; with it, it hears "fenced" on its first try. The other way
round, a shipper with a newer epoch tells *this* host that its time is over.
"""

from collections.abc import Callable

from sustain.errors import SustainError
from sustain.replication.auth import STORES, ReceiverHandshake
from sustain.replication.channel import Channel
from sustain.replication.credentials import Credentials
from sustain.replication.listener import Listener
from sustain.replication.wire import Hello, Refuse, Welcome


class Doorkeeper:
    """Listens between `start` and `stop`. `fence(epoch)` is called when a newer epoch is heard of."""

    def __init__(
        self,
        listen: tuple[str, int],
        credentials: Credentials,
        *,
        store_uuid: bytes,
        epoch: int,
        fence: Callable[[int], None],
        handshake_timeout_s: float = 10.0,
    ) -> None:
        self._store_uuid = store_uuid
        self._epoch = epoch
        self._fence = fence
        self._listener = Listener(
            listen,
            credentials,
            STORES,
            self._serve,
            timeout_s=handshake_timeout_s,
            handshake_timeout_s=handshake_timeout_s,
            rejected=_ignore,
        )

    def start(self) -> None:
        """Raises ConfigError."""
        self._listener.start()

    @property
    def address(self) -> tuple[str, int]:
        return self._listener.address

    def stop(self) -> None:
        self._listener.stop()

    def _serve(self, channel: Channel, handshake: ReceiverHandshake[Hello, Welcome], hello: Hello) -> None:
        if hello.purpose == "fetch":
            if hello.epoch > self._epoch:
                self._fence(hello.epoch)
            refusal = Refuse(
                "primary",
                "this host is a primary: its copy changes",
                "fetch from a standby, or stop this one",
            )
        elif hello.store != self._store_uuid:
            refusal = Refuse("other-store", "this host runs another store", "check the address")
        elif hello.epoch < self._epoch:
            refusal = Refuse(
                "fenced",
                f"epoch {hello.epoch} is over: this host is the primary in epoch {self._epoch}",
                "start that host as a standby",
                self._epoch,
            )
        else:
            if hello.epoch > self._epoch:
                self._fence(hello.epoch)
            refusal = Refuse("primary", "this host is a primary itself", "it is tried again")
        channel.send_raw([handshake.refuse(refusal)])


def _ignore(_peer: str, _error: SustainError) -> None:
    pass
