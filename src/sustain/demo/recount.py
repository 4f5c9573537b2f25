"""The judge: counts the words of the same files from scratch, in plain Python, and compares.

Used by `play` at the end. It knows the file list and the definition of a word, and nothing of stores,
commits or hosts; its tokeniser (a byte table and `split`) is not the application's (a regular
expression).
"""

import gzip
import string
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_TEXT_LIMIT = 4 << 20
_WORD_LIMIT = 64
_KEPT = set(string.ascii_letters.encode()) | set(range(0x80, 0x100))
_TABLE = bytes(
    ord(chr(byte).lower()) if byte < 0x80 and byte in _KEPT else byte if byte in _KEPT else 32
    for byte in range(256)
)


@dataclass
class Recount:
    """What the files really hold."""

    words: Counter[bytes] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    text_bytes: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Comparison:
    """How the store and the recount differ; `same` when not at all."""

    words_compared: int
    lengths_compared: int
    differences: tuple[str, ...]

    @property
    def same(self) -> bool:
        return not self.differences


def recount(paths: Sequence[str], progress: Callable[[int], None]) -> Recount:
    """Read every file again; `progress(n)` after each."""
    found = Recount()
    for number, path in enumerate(paths):
        text = _text(path)
        if text is None:
            found.skipped += 1
            found.lengths.append(0)
        else:
            words = [word for word in text.translate(_TABLE).split() if len(word) <= _WORD_LIMIT]
            found.words.update(words)
            found.lengths.append(len(words))
            found.text_bytes += len(text)
        progress(number + 1)
    return found


def compare(words: Mapping[bytes, bytes], lengths: Sequence[int], truth: Recount) -> Comparison:
    """Every word and every length of the store against the recount; at most 20 differences are described."""
    differences = []
    stored = {word: int.from_bytes(count, "little") for word, count in words.items()}
    for word in stored.keys() | truth.words.keys():
        if stored.get(word, 0) != truth.words[word]:
            differences.append(
                f"word {word!r}: {stored.get(word)} in the store, {truth.words[word]} in the files"
            )
    if len(lengths) != len(truth.lengths):
        differences.append(f"{len(lengths)} lengths in the store, {len(truth.lengths)} files")
    for number, (here, there) in enumerate(zip(lengths, truth.lengths, strict=False)):
        if here != there:
            differences.append(f"file {number}: {here} words in the store, {there} in the file")
    if len(differences) > 20:
        differences = [*differences[:20], f"and {len(differences) - 20} more"]
    return Comparison(len(stored.keys() | truth.words.keys()), len(truth.lengths), tuple(differences))


def _text(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            start = file.read(2)
            file.seek(0)
            text = (
                gzip.GzipFile(fileobj=file).read(_TEXT_LIMIT)
                if start == b"\x1f\x8b"
                else file.read(_TEXT_LIMIT)
            )
    except (OSError, EOFError, zlib.error):
        return None
    return None if 0 in text[:8192] else text
