"""The command line: `sustain VERB …`.

For operators. Each verb is one module here with `HELP`, `add_arguments(parser)` and `run(args) -> int`; only
the asked one is imported, since a command that is taken over waits for this start. argparse and not typer for
the same reason: docs/decisions/0001-argparse.md.

Exit status: 0 done, 1 failed (`error: …` and `hint: …` on stderr), 2 wrong usage, 130 interrupted.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from sustain.errors import ConfigError, SustainError

VERBS = (
    "create",
    "info",
    "verify",
    "status",
    "objects",
    "run",
    "handover",
    "ship",
    "receive",
    "save",
    "restore",
    "archive",
    "orphan",
    "keys",
    "power",
    "agent",
    "memory",
    "pages",
    "packages",
    "record",
    "replay",
    "demo",
    "doctor",
)

_DESCRIPTION = """\
Sustain keeps the memory of a Linux host alive: in-memory stores whose every commit is
crash-consistent, shipped to other hosts, and taken over there when this one fails."""

_EPILOG = """\
`sustain VERB --help` tells more about one. Every verb that reports has --json.
Exit status: 0 done, 1 failed, 2 wrong usage."""


class Parser(argparse.ArgumentParser):
    """argparse with our way to print errors: one line of what, one of what to do."""

    def error(self, message: str) -> NoReturn:
        complain(message, f"see `{self.prog} --help`")
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb with `argv` (default: the process's own arguments); the exit status."""
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as stop:  # argparse: --help, --version, wrong usage
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - a person gets a line, not a traceback
        return _failed(error)


def _failed(error: Exception) -> int:
    if isinstance(error, SustainError):
        complain(str(error), error.hint)
        return 2 if isinstance(error, ConfigError) else 1
    if isinstance(error, BrokenPipeError):
        # The reader of our output has gone (`| head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif isinstance(error, OSError):
        complain(str(error), "check the path and its permissions")
    elif os.environ.get("SUSTAIN_DEBUG"):
        raise error
    else:
        complain(f"unexpected {type(error).__name__}: {error}", "a defect; SUSTAIN_DEBUG=1 shows where")
    return 1


def complain(message: str, hint: str = "") -> None:
    """Print an error the one way that all verbs do."""
    from sustain.cli.output import printable

    print(f"error: {printable(message)}", file=sys.stderr)
    if hint:
        print(f"hint: {printable(hint)}", file=sys.stderr)


def _dispatch(words: list[str]) -> int:
    if words and words[0] in VERBS:
        verb = _load(words[0])
        parser = Parser(prog=f"sustain {words[0]}", description=verb.__doc__, formatter_class=_Formatter)
        verb.add_arguments(parser)
        return int(verb.run(parser.parse_args(words[1:])))
    parser = Parser(prog="sustain", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_Formatter)
    parser.add_argument("--version", action="version", version=f"sustain {_version()}")
    wants_help = not words or words[0] in ("-h", "--help", "help")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
    for name in VERBS:
        verbs.add_parser(name, help=_load(name).HELP if wants_help else None)
    if wants_help:
        parser.print_help()
        return 0 if words else 2
    parser.parse_args(words)
    raise AssertionError("every known verb was dispatched above")


def _load(verb: str) -> ModuleType:
    return importlib.import_module(f"sustain.cli.{verb}")


def _version() -> str:
    from sustain import __version__

    return __version__


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as written, options in one aligned column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(110, _terminal_width()))


def _terminal_width() -> int:
    import shutil

    return shutil.get_terminal_size().columns - 2
