"""How verbs report: one dict for `--json`, one text for people. The shapes are in docs/json.md.

Used by every verb that reports. A verb builds the dict first and its text from the same facts, so the two
cannot disagree.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sustain.errors import ConfigError
from sustain.units import parse_duration, parse_size

UNKNOWN = "unknown"


def add_json(parser: argparse.ArgumentParser) -> None:
    """Give a verb its `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object (docs/json.md)")


def emit(args: argparse.Namespace, data: dict[str, Any], text: Callable[[], str]) -> None:
    """Print `data` as one JSON object on a line when `--json` was given, else what `text()` says."""
    if getattr(args, "json", False):
        print(json.dumps(data, default=_plain, ensure_ascii=False), flush=True)
    else:
        print(text(), flush=True)


def progress(message: str) -> None:
    """Say on a terminal what is being waited for; silent in a pipe. A later call overwrites it, "" clears
    it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{message}", end="", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """`text` on one line and without control characters: parts of it may be what a peer has said."""
    return "".join(each if each.isprintable() else " " for each in text)


def table(rows: Iterable[Sequence[str]], indent: str = "") -> str:
    """Rows of text in left-aligned columns, two blanks apart."""
    lines = [tuple(row) for row in rows]
    if not lines:
        return ""
    columns = max(len(line) for line in lines)
    widths = [max((len(line[at]) for line in lines if at < len(line)), default=0) for at in range(columns)]
    return "\n".join(
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False))).rstrip()
        for line in lines
    )


def fields(pairs: Iterable[tuple[str, str]], indent: str = "") -> str:
    """`name  value` lines, aligned."""
    return table(pairs, indent)


def or_unknown(value: object | None, show: Callable[[Any], str] = str) -> str:
    """`show(value)`, or "unknown" for None."""
    return UNKNOWN if value is None else show(value)


def size_argument(text: str) -> int:
    """For `add_argument(type=…)`: a size, or wrong usage."""
    try:
        return parse_size(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{error}: {error.hint}") from None


def duration_argument(text: str) -> float:
    """For `add_argument(type=…)`: seconds, or wrong usage."""
    try:
        return parse_duration(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{error}: {error.hint}") from None


def _plain(value: object) -> object:
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    raise TypeError(f"{type(value).__name__} has no JSON form")
