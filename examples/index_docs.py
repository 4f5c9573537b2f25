"""Index the text files of this machine into a store: an application that survives its host.

    python examples/index_docs.py docs.sus
    sustain run --store docs.sus … -- python examples/index_docs.py

It counts the words of the files under the system's documentation folder, gzip included, and commits
once per file. Everything that it knows lies in the store:

- map `plan`: number of a file (4 bytes, big-endian) -> its path; made once, before the first file
- map `words`: word -> how often it was seen (8 bytes, little-endian)
- map `files`: path -> what became of it, its words, its bytes: `FILE_RECORD`
- map `cursor`: `next` -> number of the file to do next; `files` -> how many there are
- map `starts`: number of a start -> where it went on, as JSON
- array `lengths`: words of each file, by its number

Exactly-once needs no code: the counts of a file and the cursor that steps past it are one commit.
Killed at any moment and started again, here or on another host, it goes on with the file that it had
not finished.

A word is a run of up to 64 bytes that are ASCII letters or belong to non-ASCII text, in lower case.
"""

import argparse
import gzip
import json
import os
import re
import stat
import struct
import sys
import sysconfig
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sustain

if TYPE_CHECKING:
    import numpy as np

WORD = re.compile(rb"[a-z\x80-\xff]+")
WORD_LIMIT = 64  # longer runs are data, not words
TEXT_LIMIT = 4 << 20  # bytes of one file that are read, after decompression
FILE_RECORD = struct.Struct("<BQQ")  # what became of it, words, bytes of text
INDEXED, BINARY, UNREADABLE = 0, 1, 2
NOT_TEXT = frozenset(
    [
        ".a",
        ".bin",
        ".bmp",
        ".bz2",
        ".db",
        ".eot",
        ".gif",
        ".ico",
        ".jar",
        ".jpeg",
        ".jpg",
        ".mo",
        ".o",
        ".odt",
        ".otf",
        ".pdf",
        ".png",
        ".pyc",
        ".pyd",
        ".so",
        ".svgz",
        ".tar",
        ".tgz",
        ".ttf",
        ".war",
        ".whl",
        ".woff",
        ".woff2",
        ".xz",
        ".zip",
        ".zst",
    ]
)


def default_roots() -> list[Path]:
    """The system's documentation, then other real text for machines that came without it."""
    further = [Path("/usr/share/common-licenses"), Path("/usr/share/perl5"), Path("/usr/lib/python3")]
    return [Path("/usr/share/doc"), *further, Path(sysconfig.get_paths()["stdlib"])]


def plan_files(roots: list[Path], max_files: int, max_bytes: int) -> list[str]:
    """The files to index, in a fixed order, each one once whatever links lead to it.

    A later root is looked at only while the earlier ones gave fewer than `max_files` files and `max_bytes`
    bytes (as they lie on disk).
    """
    plan: list[str] = []
    seen: set[tuple[int, int]] = set()
    left = max_bytes
    for root in roots:
        for path in walk(str(root)):
            if len(plan) == max_files or left <= 0:
                return plan
            try:
                real = os.path.realpath(path, strict=True)
                facts = os.stat(real)
            except OSError:
                continue  # a link to nowhere
            if not stat.S_ISREG(facts.st_mode) or facts.st_size == 0 or (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            if facts.st_size <= left:
                left -= facts.st_size
                plan.append(real)
    return plan


def walk(folder: str) -> Iterator[str]:
    """Paths below `folder` that may be text, sorted; links to folders are not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        elif os.path.splitext(entry.name)[1].lower() not in NOT_TEXT:
            yield entry.path


def read_text(path: str) -> bytes | None:
    """The first `TEXT_LIMIT` bytes of a file's text; None when it is not text. Raises OSError."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            text = file.read(TEXT_LIMIT)
    except (EOFError, zlib.error) as error:
        raise OSError(f"{path}: broken gzip: {error}") from error
    return None if b"\0" in text[:8192] else text


class Index:
    """The index in a store: what was done, and the next step."""

    def __init__(self, store: sustain.Store) -> None:
        self.store = store
        self.plan = store.map("plan")
        self.words = store.map("words")
        self.files = store.map("files")
        self.cursor = store.map("cursor")
        self.starts = store.map("starts")
        self._lengths: np.ndarray[Any, Any] | None = None  # NumPy is not loaded before the first commit

    @property
    def total(self) -> int:
        return int.from_bytes(self.cursor.get(b"files", b""), "little")

    @property
    def next(self) -> int:
        return int.from_bytes(self.cursor.get(b"next", b""), "little")

    @property
    def lengths(self) -> "np.ndarray[Any, Any]":
        if self._lengths is None:
            self._lengths = self.store.array("lengths", shape=(max(1, self.total),), dtype="<i8")
        return self._lengths

    def set_plan(self, paths: list[str]) -> None:
        """Write down what is to be done; one commit."""
        for number, path in enumerate(paths):
            self.plan[number.to_bytes(4, "big")] = os.fsencode(path)
        self.cursor[b"files"] = len(paths).to_bytes(8, "little")
        self.cursor[b"next"] = bytes(8)
        self.store.commit()

    def note_start(self) -> int:
        """Commit that the application runs, and where it goes on; the number of this start."""
        number = len(self.starts)
        record = {"pid": os.getpid(), "next": self.next, "time_ns": time.time_ns()}
        self.starts[number.to_bytes(4, "big")] = json.dumps(record).encode()
        self.store.commit()
        return number

    def step(self) -> None:
        """Index the next file: its words, its length, its record and the cursor, all in one commit."""
        number = self.next
        name = self.plan[number.to_bytes(4, "big")]
        fate, length, text = INDEXED, 0, b""
        try:
            found = read_text(os.fsdecode(name))
        except OSError:
            fate = UNREADABLE
        else:
            if found is None:
                fate = BINARY
            else:
                text = found
                length = self.count(text)
        self.lengths[number] = length
        self.files[name] = FILE_RECORD.pack(fate, length, len(text))
        self.cursor[b"next"] = (number + 1).to_bytes(8, "little")
        self.store.commit()

    def count(self, text: bytes) -> int:
        """Add the words of `text` to the counts; how many words it has."""
        words = self.words
        counts = Counter(word for word in WORD.findall(text.lower()) if len(word) <= WORD_LIMIT)
        for word, count in counts.items():
            before = int.from_bytes(words.get(word, b""), "little")
            words[word] = (before + count).to_bytes(8, "little")
        return counts.total()

    def summary(self) -> dict[str, Any]:
        """What the index holds, read back from the store."""
        fates: Counter[int] = Counter()
        words = text_bytes = 0
        for record in self.files.values():
            fate, length, size = FILE_RECORD.unpack(record)
            fates[fate] += 1
            words += length
            text_bytes += size
        return {
            "files": self.total,
            "indexed": fates[INDEXED],
            "binary": fates[BINARY],
            "unreadable": fates[UNREADABLE],
            "text_bytes": text_bytes,
            "words": words,
            "distinct_words": len(self.words),
            "starts": len(self.starts),
        }


class Events:
    """Lines of JSON about this run, for whoever measures it: {"event", "boottime_ns", …}."""

    def __init__(self, path: str | None) -> None:
        self.path = path

    def note(self, event: str, **more: object) -> None:
        if self.path is None:
            return
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        line = json.dumps({"event": event, "boottime_ns": now, "pid": os.getpid(), **more})
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Index this machine's documentation into a store.")
    parser.add_argument(
        "store", nargs="?", default=os.environ.get("SUSTAIN_STORE"), help="default $SUSTAIN_STORE"
    )
    parser.add_argument("--root", action="append", type=Path, help="folder to index (repeatable)")
    parser.add_argument("--max-files", type=int, default=2000)
    parser.add_argument("--max-bytes", type=int, default=32 << 20, help="of all files, as they lie on disk")
    parser.add_argument("--size", default="256MiB", help="of the store, when there is none yet")
    parser.add_argument("--events", help="append lines of JSON about this run to this file")
    parser.add_argument("--start-when", type=Path, help="do not begin the first file before this path exists")
    parser.add_argument("--finish-when", type=Path, help="nor the last one before this path exists")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args(argv)
    if args.store is None:
        parser.error("a store is needed: give its path, or set SUSTAIN_STORE")
    return args


def wait_for(path: Path | None) -> None:
    """Until there is something at `path`."""
    while path is not None and not path.exists():
        time.sleep(0.002)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    events = Events(args.events)
    events.note("started")
    try:
        with (
            sustain.open(args.store)
            if os.path.exists(args.store)
            else sustain.create(args.store, args.size) as store
        ):
            events.note("opened")
            index = Index(store)
            start = index.note_start()
            events.note("first-commit", start=start, next=index.next, position=store.position)
            if index.total == 0:
                roots = args.root or default_roots()
                index.set_plan(plan_files(roots, args.max_files, args.max_bytes))
                events.note("planned", files=index.total)
            wait_for(args.start_when)
            events.note("begun", next=index.next)
            while index.next < index.total:
                if index.next == index.total - 1:
                    wait_for(args.finish_when)
                index.step()
            summary = index.summary()
            events.note("finished", position=store.position, **summary)
    except sustain.SustainError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return 1
    if not args.quiet:
        print("  ".join(f"{name}={value}" for name, value in summary.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
