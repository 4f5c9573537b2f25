"""Reading an archive: objects ahead of their use, and nothing deleted meanwhile. Used by `restore` and `proof`."""

import contextlib
import itertools
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sustain.errors import ArchiveIOError
from sustain.replication.archive import names
from sustain.replication.archive.documents import Hold, encode
from sustain.replication.archive.place import Place

AHEAD = 4  # objects that are read while one is used
_REFRESH_S = 120.0
_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[_Argument], _Result], arguments: Iterable[_Argument]
) -> Iterator[_Result]:
    """The result for each argument, in order, while the next ones are being made; the first are begun at once."""
    todo = iter(arguments)
    waiting = deque(pool.submit(function, each) for each in itertools.islice(todo, AHEAD))

    def results() -> Iterator[_Result]:
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, each) for each in itertools.islice(todo, 1))
                yield result
        finally:
            for each in waiting:
                each.cancel()

    return results()


@contextlib.contextmanager
def holding(places: list[Place], report: Callable[[str], None]) -> Iterator[None]:
    """Keep what is there from being deleted while this lasts, as far as these archives can be written to."""
    path = f"{names.HOLDS}/{secrets.token_hex(8)}"
    done = threading.Event()
    held = [place for place in places if _hold(place, path, report)]

    def refresh() -> None:
        while not done.wait(_REFRESH_S):
            for place in held:
                _hold(place, path, report)

    thread = threading.Thread(target=refresh, name="sustain-hold", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for place in held:
            with contextlib.suppress(ArchiveIOError):  # a stale hold counts for ten minutes
                place.delete([path])


def _hold(place: Place, path: str, report: Callable[[str], None]) -> bool:
    try:
        if not place.epochs():
            return False  # nothing is there, and nothing is to be made there
        place.put(path, encode(Hold(at_ns=time.time_ns(), who=f"{socket.gethostname()} {os.getpid()}")))
    except ArchiveIOError as error:
        report(f"{error}: what is read may be deleted meanwhile by whoever ships there")
        return False
    return True
