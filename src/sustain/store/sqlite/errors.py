"""Errors of the store, told to SQLite, and to whoever called SQLite.

SQLite wants a number, the application a reason. What is raised inside the VFS comes out of `Connection.execute` again:
it is made an error of both kinds, so that `except sustain.StoreFull` and `except apsw.FullError` both catch it.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import apsw

from sustain.errors import BudgetExceeded, LogFull, LogTooSmall, StoreFull, SustainError

P = ParamSpec("P")
R = TypeVar("R")

_kinds: dict[tuple[type[SustainError], type[apsw.Error]], type[SustainError]] = {}


def _both(ours: type[SustainError], sqlites: type[apsw.Error]) -> type[SustainError]:
    found = _kinds.get((ours, sqlites))
    if found is None:
        found = _kinds[ours, sqlites] = type(ours.__name__, (ours, sqlites), {"__module__": ours.__module__})
    return found


def for_sqlite(error: SustainError, code: int) -> SustainError:
    """`error` as one that SQLite takes for `code` (an extended result code), or for SQLITE_FULL where that is what it
    means."""
    sqlites: type[apsw.Error] = apsw.IOError
    if isinstance(error, StoreFull | LogTooSmall | LogFull | BudgetExceeded):
        sqlites, code = apsw.FullError, apsw.SQLITE_FULL
    elif code & 0xFF == apsw.SQLITE_CANTOPEN:
        sqlites = apsw.CantOpenError
    elif code & 0xFF == apsw.SQLITE_ERROR:
        sqlites = apsw.SQLError
    kind = _both(type(error), sqlites)
    told: Any = kind.__new__(kind, *error.args)
    told.args = error.args
    told.__dict__.update(error.__dict__)
    if isinstance(error, OSError):
        told.errno = error.errno
    told.result, told.extendedresult = code & 0xFF, code
    return told  # type: ignore[no-any-return]


def telling(code: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a method of the VFS: what it raises is told as `code`."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def told(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return method(*args, **kwargs)
            except SustainError as error:
                if isinstance(error, apsw.Error):
                    raise
                raise for_sqlite(error, code) from None

        return told

    return decorate
