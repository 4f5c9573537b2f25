"""Observations in a file, one to a line: recorded on one host, decided upon anywhere, any number of times.

Used by `sustain record` and `sustain replay`, and by the benchmarks, whose traces are such files.

The first line says who recorded what, where and when, and with which policy; each other line is one observation, as
the scheduler's own struct has it in JSON (docs/formats/recording.md). A recorder that is killed leaves a line without
its end; a reader yields what is whole before it says so. Rejected: a format of columns, smaller by far; but a person
reads these with `jq`, and a file that was cut off can still be used. Only columns, of hundreds of
thousands of blocks, are packed (`packing`).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, TypeVar

import msgspec

from sustain.errors import RecordingError
from sustain.schedulers.packing import pack, unpack

T = TypeVar("T")

VERSION = 1


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording says of itself. Times are for people; `policy` is what applied when it was made."""

    recording: int = VERSION
    scheduler: str
    sustain: str  # version
    host: str
    kernel: str
    processors: int | None = None
    started: str  # ISO 8601
    period_s: float
    policy: dict[str, Any] = {}


class Recorder:
    """Writes a recording. Raises RecordingError when the file is there already, or cannot be written."""

    def __init__(self, path: str | os.PathLike[str], header: Header) -> None:
        self.path = Path(path)
        self.count = 0
        self._file = self._open()
        self._line(header)

    def write(self, observation: object) -> None:
        """Add one observation. It is in the file when this returns."""
        self._line(observation)
        self.count += 1

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _open(self) -> BinaryIO:
        try:
            return self.path.open("xb", buffering=0)
        except OSError as error:
            raise RecordingError(f"{self.path}: {error.strerror}", hint="name a new file") from error

    def _line(self, value: object) -> None:
        rest = memoryview(msgspec.json.encode(value, enc_hook=pack) + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise RecordingError(
                f"{self.path}: cannot be written: {error.strerror}",
                hint="what is recorded so far can be used",
            ) from error


class Recording(Generic[T]):
    """A recording of observations of the type `kind`; iterate over it, more than once if you like.

    Raises RecordingError: at once for what is no recording, while iterating for a line that is cut off or damaged.
    """

    def __init__(self, path: str | os.PathLike[str], kind: type[T], scheduler: str) -> None:
        self.path = Path(path)
        self._decoder = msgspec.json.Decoder(kind, dec_hook=unpack)
        self.header = read_header(path)
        if self.header.scheduler != scheduler:
            raise RecordingError(
                f"{path}: was recorded by the {self.header.scheduler} scheduler, not by {scheduler}",
                hint="replay it with that one",
            )

    def __iter__(self) -> Iterator[T]:
        count = 0
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                if not line.endswith(b"\n"):
                    raise RecordingError(
                        f"{self.path}: line {count + 2} is cut off; the {count} observations before it are whole",
                        hint="the recorder was killed or its disk was full; remove that line to be rid of this error",
                    )
                try:
                    found = self._decoder.decode(line)
                except msgspec.MsgspecError as error:
                    raise RecordingError(
                        f"{self.path}: line {count + 2}: {error}",
                        hint="the file is damaged, or was recorded by a newer Sustain",
                    ) from None
                yield found
                count += 1


def read_header(path: str | os.PathLike[str]) -> Header:
    """What the recording says of itself. Raises RecordingError."""
    try:
        with Path(path).open("rb") as file:
            line = file.readline(1 << 20)
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}", hint="`sustain record FILE` makes one") from error
    try:
        if not line.endswith(b"\n"):
            raise msgspec.DecodeError("its first line has no end")
        header = msgspec.json.decode(line, type=Header)
    except msgspec.MsgspecError as error:
        raise RecordingError(
            f"{path}: is not a recording of Sustain: {error}", hint="`sustain record FILE` makes one"
        ) from None
    if header.recording != VERSION:
        raise RecordingError(
            f"{path}: is a recording of version {header.recording}, and this Sustain reads {VERSION}",
            hint="replay it with the Sustain that made it, or a newer one",
        )
    return header
