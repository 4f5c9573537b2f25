"""The session of tests/crash/test_faults.py, run in a Python into which fault.c was preloaded.

`python -m tests.crash.faults FOLDER DURABILITY ERRNO once|always [sqlite]`: the same scripted life of a store (open,
commits, a checkpoint, more commits, close), once for every call by which it reaches its medium, with that call
failing; with "sqlite" the commits are transactions of a database in it.
Prints one JSON object: how many calls there are, where faults hit and what was raised.
Leaves with an AssertionError when a failure was hidden or the reopened store holds anything but a prefix with every
acknowledged commit.
"""

import ctypes
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import sustain
from tests.crash.model import Model, Objects, check

COMMITS = 12


def session(path: Path, acknowledged: list[int]) -> None:
    """A store's life; `acknowledged` gets the number of each commit that returned. Raises what the store raises."""
    store = sustain.open(path)
    try:
        objects = Objects(store)
        for n in range(1, COMMITS + 1):
            objects.change(n)
            try:
                store.commit()
            except sustain.SustainError as error:
                refused(store, objects, error)
                raise
            acknowledged.append(n)
            if n == COMMITS // 2:
                try:
                    store.checkpoint()
                except sustain.SustainError as error:
                    refused(store, objects, error)
                    raise
        del objects
    finally:
        store.close()


def refused(store: sustain.Store, objects: Objects, error: sustain.SustainError) -> None:
    """After a failed write or flush nothing is accepted any more, and everyone can see why."""
    assert isinstance(error, sustain.StorePoisoned | sustain.StoreIOError), repr(error)
    assert store.path in str(error), f"the error does not name the file: {error}"
    assert error.hint, f"no hint: {error}"
    assert store.status().poisoned, "a write failed and the store is not poisoned"
    try:
        objects.change(1000)
        store.commit()
    except sustain.StorePoisoned:
        return
    raise AssertionError("a poisoned store took a commit")


def session_of_sqlite(path: Path, acknowledged: list[int]) -> None:
    """The same for transactions of a SQLite database. Raises what comes out of SQLite."""
    from tests.crash import databases

    store = sustain.open(path)
    connection = store.sqlite(databases.NAME)
    try:
        databases.prepare(connection, databases.OTHER)
        for n in range(1, COMMITS + 1):
            databases.transaction(n, connection)
            acknowledged.append(n)
            if n == COMMITS // 2:
                store.checkpoint()
    except sustain.SustainError as error:
        refused_to_sqlite(store, connection, error)
        raise
    finally:
        connection.close()
        store.close()


def refused_to_sqlite(store: sustain.Store, connection: Any, error: sustain.SustainError) -> None:
    """SQLite is told of a failed write or flush, and of everything after it."""
    assert isinstance(error, sustain.StorePoisoned | sustain.StoreIOError), repr(error)
    assert store.path in str(error), f"the error does not name the file: {error}"
    assert error.hint, f"no hint: {error}"
    assert store.status().poisoned, "a write failed and the store is not poisoned"
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS too_late (a)")
    except sustain.StorePoisoned:
        return
    raise AssertionError("a poisoned store took a transaction")


def databases_number(store: sustain.Store) -> int:
    """The number of the transaction that the databases are at, compared whole."""
    from tests.crash import databases

    return databases.Model().check(store)


def main() -> None:
    folder, durability, error_number, how = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    sqlite = "sqlite" in sys.argv[5:]
    shim = ctypes.CDLL(None)
    shim.fault_last.restype = ctypes.c_char_p
    shim.fault_disarm.restype = ctypes.c_long
    fresh, path = folder / "fresh.sus", folder / "app.sus"
    sustain.create(fresh, size="4MiB", log_size="2MiB", durability=durability).close()
    raised: Counter[str] = Counter()
    at = 0
    while True:
        shutil.copyfile(fresh, path)
        acknowledged: list[int] = []
        shim.fault_arm(b"/app.sus", at, error_number, how == "always")
        failure: Exception | None = None
        try:
            (session_of_sqlite if sqlite else session)(path, acknowledged)
        except sustain.SustainError as error:
            failure = error
        count = shim.fault_disarm()
        hit = shim.fault_last().decode()
        with sustain.open(path, verify="full") as store:
            n = databases_number(store) if sqlite else check(store, Model())
        verdict(n, at, hit, failure, acknowledged, error_number)
        if hit:
            raised[f"{hit}: {type(failure).__name__}"] += 1
        if at > 0 and not hit:
            break
        if at == 0:
            calls = count
        at += 1
    print(json.dumps({"calls": calls, "hits": at - 1, "raised": dict(raised)}))


def verdict(
    n: int, at: int, hit: str, failure: Exception | None, acknowledged: list[int], error_number: int
) -> None:
    """The store reopened at `n`, whole: with all that was acknowledged; a failure was told, a success was none."""
    where = f"call {at} ({hit or 'none'})"
    last = acknowledged[-1] if acknowledged else 0
    assert last <= n <= last + 1, f"{where}: acknowledged {last}, reopened at {n}"
    if not hit or error_number == 0:
        assert failure is None, f"{where}: {failure!r} without a fault"
        assert last == COMMITS
    elif failure is None:
        # Only what says nothing about commits may be passed over: all of them are there.
        raise AssertionError(f"{where}: failed and nobody was told")


if __name__ == "__main__":
    main()
