"""Who is at the other end: a shared key, proved both ways by HMAC over fresh nonces. No I/O.

Used by `destination` (shipper) and `listener` (receiver), and by their like for regions: a `Service` says what a
connection is for, and so which messages introduce its sides. Both handshakes are values that take frames and
give bytes, so that tests can run them against each other, against themselves (reflection) and against
garbage. The proof covers the message's bytes as sent and is checked before they are decoded: an
unauthenticated peer reaches nothing but a length check and an HMAC. Labels differ by service, role and type, so
no side's proof can be played back as the other's.

TLS was not taken for this first step: it needs certificates on every host before the first byte flows. What a
shared key does not give (secrecy, integrity of the stream) is said in docs/formats/wire.md.
"""

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from sustain.errors import AuthenticationFailed, ConfigError, PeerRefused, ProtocolError
from sustain.replication import wire
from sustain.replication.wire import Challenge, Hello, Kind, Refuse, Welcome

KEY_MIN_BYTES = 16
NO_KEY = b""
_NO_PROOF = bytes(32)
_KEY_HINT = "give both sides the same --key-file"


H = TypeVar("H", bound=wire.Introduction)
W = TypeVar("W", bound=msgspec.Struct)


@dataclass(frozen=True)
class Service(Generic[H, W]):
    """What a connection is for. A CHALLENGE names it, so that a side that came to the wrong place can say so; what
    keeps services apart are the labels of their proofs."""

    name: str
    hello: type[H]
    welcome: type[W]
    shipper_label: bytes
    receiver_label: bytes
    answers: frozenset[Kind] = wire.SHIPPER_HANDSHAKE  # what may come after HELLO


STORES = Service("stores", Hello, Welcome, b"sustain/1 shipper", b"sustain/1 receiver")


def load_key(path: str | os.PathLike[str]) -> bytes:
    """The key in the file at `path`, without a trailing line end.

    Raises ConfigError for a file that cannot be read, that everybody may read, or that holds less than 16
    bytes.
    """
    name = os.fspath(path)
    make = f"make one: (umask 077; head -c 32 /dev/urandom | base64 > {name})"
    try:
        with open(name, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(4097)
    except OSError as error:
        raise ConfigError(f"key file {name}: {error.strerror}", hint=make) from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"key file {name} is open to everybody on this host", hint=f"chmod 600 {name}")
    key = key.rstrip(b"\r\n")
    if not KEY_MIN_BYTES <= len(key) <= 4096:
        raise ConfigError(f"key file {name} holds {len(key)} bytes, 16 to 4096 are a key", hint=make)
    return key


class ReceiverHandshake(Generic[H, W]):
    """The listening side's half. `challenge()`, then `hello(payload)`, then `welcome` or `refuse`."""

    def __init__(self, key: bytes, service: Service[H, W], nonce: bytes | None = None) -> None:
        self._key = key
        self._service = service
        self._nonce = nonce or secrets.token_bytes(32)
        self._peer_nonce: bytes | None = None  # set once the peer has proved itself

    def challenge(self) -> bytes:
        """The frame to send first."""
        message = wire.encode(Challenge(wire.PROTOCOL, self._nonce, bool(self._key), self._service.name))
        return wire.pack_header(Kind.CHALLENGE, len(message)) + message

    def hello(self, payload: bytes) -> H:
        """The authenticated HELLO. Raises AuthenticationFailed or ProtocolError."""
        nonce, proof, message = _unseal(payload)
        expected = _proof(self._key, self._service.shipper_label, self._nonce, nonce, message)
        if not hmac.compare_digest(proof, expected):
            raise AuthenticationFailed("the shipper has another key, or none", hint=_KEY_HINT)
        self._peer_nonce = nonce
        hello = wire.decode(self._service.hello, message)
        if hello.protocol != wire.PROTOCOL:
            raise ProtocolError(
                f"the shipper speaks protocol {hello.protocol}, this host {wire.PROTOCOL}",
                hint="run the same version of Sustain on both hosts",
            )
        return hello

    def welcome(self, welcome: W) -> bytes:
        """The frame that lets the shipper in."""
        return self._seal(Kind.WELCOME, wire.encode(welcome))

    def refuse(self, refusal: Refuse) -> bytes:
        """The frame that does not; proved if the shipper has proved itself."""
        return self._seal(Kind.REFUSE, wire.encode(refusal))

    def _seal(self, kind: Kind, message: bytes) -> bytes:
        proof = _NO_PROOF
        if self._peer_nonce is not None:
            label = self._service.receiver_label + bytes([kind])
            proof = _proof(self._key, label, self._nonce, self._peer_nonce, message)
        return wire.pack_header(kind, wire.SEAL_BYTES + len(message)) + bytes(32) + proof + message


class ShipperHandshake(Generic[H, W]):
    """The connecting side's half. `hello(challenge payload, message)`, then `answer(kind, payload)`."""

    def __init__(self, key: bytes, service: Service[H, W], nonce: bytes | None = None) -> None:
        self._key = key
        self._service = service
        self._nonce = nonce or secrets.token_bytes(32)
        self._peer_nonce = b""
        self._peer_keyed = False

    def hello(self, challenge_payload: bytes, hello: H) -> bytes:
        """The frame that answers a CHALLENGE. Raises ProtocolError."""
        challenge = wire.decode(Challenge, challenge_payload)
        if challenge.protocol != wire.PROTOCOL:
            raise ProtocolError(
                f"the receiver speaks protocol {challenge.protocol}, this host {wire.PROTOCOL}",
                hint="run the same version of Sustain on both hosts",
            )
        if challenge.service != self._service.name:
            raise ProtocolError(
                f"the receiver keeps {challenge.service}, not {self._service.name}",
                hint="check the port: `sustain receive` keeps either a store or regions",
            )
        self._peer_nonce, self._peer_keyed = challenge.nonce, challenge.keyed
        message = wire.encode(hello)
        proof = _proof(self._key, self._service.shipper_label, self._peer_nonce, self._nonce, message)
        return wire.pack_header(Kind.HELLO, wire.SEAL_BYTES + len(message)) + self._nonce + proof + message

    def answer(self, kind: Kind, payload: bytes) -> W:
        """The receiver's WELCOME.

        Raises PeerRefused (its `refusal` is the message) for a proved REFUSE, AuthenticationFailed when the
        keys differ, ProtocolError for anything else. A fence is believed only with a proof.
        """
        _, proof, message = _unseal(payload)
        label = self._service.receiver_label + bytes([kind])
        proved = hmac.compare_digest(proof, _proof(self._key, label, self._peer_nonce, self._nonce, message))
        if kind is Kind.REFUSE:
            refusal = wire.decode(Refuse, message)
            if proved:
                raise Refused(refusal)
            if refusal.code == "protocol":
                raise ProtocolError(f"the receiver says: {refusal.message}", hint=refusal.hint)
        if not proved:
            raise AuthenticationFailed(self._why_not(), hint=_KEY_HINT)
        if kind is not Kind.WELCOME:
            raise ProtocolError(f"{kind.name} instead of WELCOME", hint="run the same version on both hosts")
        return wire.decode(self._service.welcome, message)

    def _why_not(self) -> str:
        if self._key and not self._peer_keyed:
            return "the receiver has no key, this side has one"
        if self._peer_keyed and not self._key:
            return "the receiver asks for a key, this side has none"
        return "the receiver has another key"


class Refused(PeerRefused):
    """A REFUSE that was proved; `refusal` is what it says."""

    def __init__(self, refusal: Refuse) -> None:
        super().__init__(refusal.message, hint=refusal.hint)
        self.refusal = refusal


def _unseal(payload: bytes) -> tuple[bytes, bytes, bytes]:
    if len(payload) < wire.SEAL_BYTES:
        raise ProtocolError("a sealed message without its seal", hint="run the same version on both hosts")
    return payload[:32], payload[32:64], payload[64:]


def _proof(key: bytes, label: bytes, receiver_nonce: bytes, shipper_nonce: bytes, message: bytes) -> bytes:
    return hmac.digest(key, label + receiver_nonce + shipper_nonce + message, hashlib.sha256)
