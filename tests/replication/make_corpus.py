"""Writes the seed corpus of the wire's fuzz tests: one file for each frame there is, as real sides send them.

python -m tests.replication.make_corpus
"""

from pathlib import Path

from sustain.replication import wire
from sustain.replication.auth import STORES, ReceiverHandshake, ShipperHandshake
from sustain.replication.wire import Account, Bye, Hello, Kind, Refuse, SnapshotBegin, Welcome

KEY = b"k" * 16


def frames() -> dict[str, bytes]:
    hello = Hello(
        protocol=1,
        store=b"s" * 16,
        replica=b"r" * 16,
        name="a",
        epoch=3,
        history=[(1, 0), (3, 4096)],
        log_size=8 << 20,
        image_size=64 << 20,
        durability="disk",
        tail=1024,
        committed=8192,
    )
    begin = SnapshotBegin(
        store=b"s" * 16,
        image_size=64 << 20,
        log_size=8 << 20,
        durability="disk",
        epoch=3,
        history=[(1, 0)],
        start=1024,
        start_seq=7,
        start_chain=123456,
        common=512,
        reason="histories part at 512",
        total_bytes=1 << 20,
        compare=True,
    )
    account = Account(
        store=b"s" * 16,
        replica=b"r" * 16,
        host="a",
        epoch=2,
        writer=True,
        newer_epoch=3,
        common=1000,
        end=1300,
        end_seq=13,
        opened=0,
        kept_from=1000,
        before_time_ns=1,
        first_time_ns=2,
        last_time_ns=None,
        noted_ns=4,
    )
    receiver, shipper = (
        ReceiverHandshake(KEY, STORES, bytes(32)),
        ShipperHandshake(KEY, STORES, bytes(range(32))),
    )
    challenge = receiver.challenge()
    shaken = shipper.hello(challenge[wire.HEADER_BYTES :], hello)
    receiver.hello(shaken[wire.HEADER_BYTES :])

    def framed(kind: Kind, payload: bytes = b"", a: int = 0, b: int = 0, c: int = 0) -> bytes:
        return wire.pack_header(kind, len(payload), a, b, c) + payload

    return {
        "challenge": challenge,
        "hello": shaken,
        "welcome": receiver.welcome(Welcome(has_store=True, store=b"s" * 16, end=4096, history=[(1, 0)])),
        "refuse": receiver.refuse(Refuse("fenced", "epoch 3 is over", "start as a standby", 4)),
        "resume": framed(Kind.RESUME, b"", 4096, 8192, 1),
        "begin": framed(Kind.SNAPSHOT_BEGIN, wire.encode(begin)),
        "pages": framed(Kind.PAGES, bytes(4096), 7),
        "same": framed(Kind.SAME, b"", 7, 3),
        "end": framed(Kind.SNAPSHOT_END, b"", 8192),
        "done": framed(Kind.SNAPSHOT_DONE, b"", 8192),
        "log": framed(Kind.LOG, bytes(range(256)), 4096, 8192, 1),
        "ack": framed(Kind.ACK, b"", 4096, 8192),
        "heartbeat": framed(Kind.HEARTBEAT, b"", 4096, 8192, 1),
        "digests": framed(Kind.DIGESTS, bytes(32), 4096),
        "bye": framed(Kind.BYE, wire.encode(Bye("stopping", "asked to"))),
        "probe": framed(Kind.PROBE, bytes(range(64)), 7),
        "account": framed(Kind.ACCOUNT, wire.encode(account)),
        "counted": framed(Kind.COUNTED, b"", 7, 65536),
        "stream": framed(Kind.LOG, bytes(64), 0) + framed(Kind.HEARTBEAT) + framed(Kind.LOG, bytes(64), 64),
    }


if __name__ == "__main__":
    corpus = Path(__file__).parent / "corpus"
    for name, data in frames().items():
        (corpus / name).write_bytes(data)
