"""The side of a fetch that has the pages: answers what one connection asks for.

Used by `receive`. Each connection has a thread, and holds nothing but a mapping of the store to be looked at.
The receiver may take in a log meanwhile, if it is the log of the very store that fetches: why that is sound is
in docs/decisions/0013-on-demand.md. Any other change of the copy ends the connection first.
"""

import threading

from sustain._native import PageSource
from sustain.errors import ProtocolError
from sustain.replication.channel import Channel, ConnectionEnded
from sustain.replication.wire import FETCH_PAGES, FETCHED_FROM, PAGE_BYTES, Hello, Kind


class Giver:
    """One connection, from its WELCOME to its end."""

    def __init__(self, channel: Channel, hello: Hello, path: str) -> None:
        self.channel = channel
        self.hello = hello
        self.pages_given = 0
        self.ended = threading.Event()
        self._source = PageSource(path)
        self._pages = 0

    def run(self, image_size: int) -> None:
        """Until the connection ends. Raises ReplicationError."""
        self._pages = image_size // PAGE_BYTES
        try:
            while True:
                self._answer()
        except ConnectionEnded:
            pass
        finally:
            self.ended.set()

    def _answer(self) -> None:
        channel = self.channel
        header = channel.receive_header(FETCHED_FROM)
        if header.kind is Kind.BYE:
            channel.receive_payload(header)
            raise ConnectionEnded(f"{channel.peer} has ended")
        if header.kind is Kind.HEARTBEAT:
            channel.send(Kind.HEARTBEAT)
            return
        first, count = header.a, header.b
        if not 0 < count <= FETCH_PAGES or first + count > self._pages:
            raise ProtocolError(
                f"pages {first}+{count} are wanted", hint="run the same version on both hosts"
            )
        data = self._source.read(first, count)
        channel.send(Kind.FETCHED, first, count, payload=data)
        self.pages_given += count
