"""The session of tests/crash/test_faults.py, run in a Python into which fault.c was preloaded.

`python -m tests.crash.faults FOLDER DURABILITY ERRNO once|always [MODULO]`: the same scripted life of a store (open,
commits, a checkpoint, more commits, close), once for every call by which it reaches its medium, with that call
failing. Prints one JSON object: how many calls there are, where faults hit and what was raised.
Leaves with an AssertionError when a failure was hidden or the reopened store holds anything but a prefix with every
acknowledged commit.
"""

import ctypes
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

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


def main() -> None:
    folder, durability, error_number, how = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
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
            session(path, acknowledged)
        except sustain.SustainError as error:
            failure = error
        count = shim.fault_disarm()
        hit = shim.fault_last().decode()
        verdict(path, at, hit, failure, acknowledged, error_number)
        if hit:
            raised[f"{hit}: {type(failure).__name__}"] += 1
        if at > 0 and not hit:
            break
        if at == 0:
            calls = count
        at += 1
    print(json.dumps({"calls": calls, "hits": at - 1, "raised": dict(raised)}))


def verdict(
    path: Path, at: int, hit: str, failure: Exception | None, acknowledged: list[int], error_number: int
) -> None:
    """The store reopens, whole and with all that was acknowledged; a failure was told, a success was none."""
    where = f"call {at} ({hit or 'none'})"
    last = acknowledged[-1] if acknowledged else 0
    with sustain.open(path, verify="full") as store:
        n = check(store, Model())
    assert last <= n <= last + 1, f"{where}: acknowledged {last}, reopened at {n}"
    if not hit or error_number == 0:
        assert failure is None, f"{where}: {failure!r} without a fault"
        assert last == COMMITS
    elif failure is None:
        # Only what says nothing about commits may be passed over: all of them are there.
        raise AssertionError(f"{where}: failed and nobody was told")


if __name__ == "__main__":
    main()
