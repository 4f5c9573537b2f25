"""What a saver of a region and its keeper say to each other beside pages, and errors as codes. Pure.

Used by `peer` (who connects) and `serve` (who keeps); byte tables in docs/formats/region-wire.md. Frames and
handshake are those of `replication`: a region is one more service of the same wire, since keys, proofs and
bounds must not exist twice.
"""

from typing import Annotated, Literal

import msgspec

from sustain.errors import (
    AuthenticationFailed,
    ConfigError,
    NotARegion,
    PeerRefused,
    ProtocolError,
    RegionBusy,
    RegionCorrupt,
    RegionError,
    RegionFull,
    RegionIOError,
    RegionNewerVersion,
    RegionUnsealed,
    SustainError,
    WrongGeneration,
)
from sustain.powerfail.regions.manifest import RegionIdentity, Seal
from sustain.replication.auth import Service
from sustain.replication.wire import SAVER_HANDSHAKE, Introduction, MaybeUuid, Name, Text, Word

RegionName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}\Z", max_length=64)]
Digest = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
SAVE: Literal["save"] = "save"
RESTORE: Literal["restore"] = "restore"

_ERRORS: dict[str, type[SustainError]] = {
    "refused": PeerRefused,
    "busy": RegionBusy,
    "full": RegionFull,
    "not-a-region": NotARegion,
    "newer-version": RegionNewerVersion,
    "unsealed": RegionUnsealed,
    "corrupt": RegionCorrupt,
    "generation": WrongGeneration,
    "io": RegionIOError,
    "protocol": ProtocolError,
    "authentication": AuthenticationFailed,
}
_CODES = {error: code for code, error in _ERRORS.items()} | {ConfigError: "refused"}


class RegionHello(Introduction, frozen=True, kw_only=True):
    """Who connects, and for which region."""

    purpose: Literal["save", "restore"]
    name: RegionName
    uuid: MaybeUuid = b""
    size_bytes: Word = 0
    epoch: Word = 0
    host: Name = ""


class SealMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A seal on its way."""

    epoch: Word
    number: Word
    owner: Text
    table_digest: Digest
    realtime_ns: Word
    reason: Text

    @classmethod
    def of(cls, seal: Seal) -> "SealMessage":
        return cls(**{name: getattr(seal, name) for name in cls.__struct_fields__})

    def seal(self) -> Seal:
        """Raises ConfigError for values that no seal has."""
        return Seal(self.epoch, self.number, self.owner, self.table_digest, self.realtime_ns, self.reason)


class RegionWelcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the keeper holds."""

    uuid: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    size_bytes: Word
    name: RegionName
    has_table: bool
    seal: SealMessage | None
    last_number: Word

    def identity(self) -> RegionIdentity:
        """Raises ConfigError."""
        return RegionIdentity(self.uuid, self.size_bytes, self.name)


class Failed(msgspec.Struct, frozen=True):
    """What went wrong at the keeper."""

    code: Name
    message: Text
    hint: Text = ""


def failed(error: Exception) -> Failed:
    """`error` as it travels."""
    if not isinstance(error, SustainError):
        hint = "a defect of the keeper; its output says more"
        return Failed("failed", f"unexpected {type(error).__name__}: {error}"[:1000], hint)
    code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), "failed")
    return Failed(code, str(error)[:1000], error.hint[:1000])


def error_of(code: str, message: str, hint: str) -> SustainError:
    """The error that `failed` made this of, or the nearest that is known here."""
    return _ERRORS.get(code, RegionError)(message, hint=hint)


REGIONS = Service(
    "regions",
    RegionHello,
    RegionWelcome,
    b"sustain/1 region saver",
    b"sustain/1 region keeper",
    SAVER_HANDSHAKE,
)
