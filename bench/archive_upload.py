"""Uploading a store to an object store: what part of obstore's own rate to the same endpoint?

`sustain ship` of a store of 256 MiB to `s3://`, to an endpoint that keeps all in memory (moto's, on loopback, a
process of its own), from the moment it begins with the snapshot until all is acknowledged: pages read, hashed and put,
manifests, listings and the snapshot's document beside them. Then the same of a backlog of log, in segments. Peer:
obstore, the library that ours puts with, with as many bytes that it has in memory: in objects of the same size, as
many at a time; and as one object, in parts of its own. Judged by the faster. In the peer's favour: it hashes nothing
and lists nothing.
"""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.archives import bucket, empty, fill, put_alone, write
from bench.harness import Answer, interleave, medians, memory_dir
from bench.hosts import Started, sustain, until

QUESTION = "uploading a store to an S3 endpoint, GB/s"
PIECE = 16 << 20
AT_A_TIME = 4


class Upload:
    """A store, and an archive of it that is new each time."""

    def __init__(self, stack: ExitStack, directory: Path, name: str, size: int) -> None:
        import sustain as package
        from sustain._native import Control

        self.size, self._bucket, self._url = size, name, f"s3://{name}/store"
        self._path, self._log = directory / "store.sus", directory / "ship.log"
        fill(self._path, size, 2 * size)
        self.store: Any = stack.enter_context(package.open(self._path))
        self.store.checkpoint()
        self._control: Any = Control(str(self._path))
        stack.callback(self._control.close)

    def snapshot(self) -> float:
        """GB/s of the image, into an empty archive."""
        spent = self._ship("snapshot")
        empty(self._bucket)
        return self.size / spent / 1e9

    def segments(self) -> float:
        """GB/s of log that waited."""
        self._ship("snapshot")
        before = self.store.position
        length = write(self.store, self.size) - before
        spent = self._ship("streaming")
        empty(self._bucket)
        return length / spent / 1e9

    def _ship(self, state: str) -> float:
        """Seconds from that state on until all is acknowledged."""
        words = sustain("ship", self._path, "--to", f"{self._url}?required=1&every=100ms")

        def slot() -> dict[str, Any]:
            return next(
                (each for each in self._control.destinations() if each["url"] == self._url),
                {"state": "", "acked": None},
            )

        with Started(words, self._log) as shipping:
            until(lambda: slot()["state"] == state, shipping)
            begun = time.perf_counter()
            until(lambda: (slot()["acked"] or 0) >= self.store.position, shipping)
            spent = time.perf_counter() - begun
            shipping.process.terminate()
            shipping.process.wait()
        return spent


def answer(quick: bool = False) -> Answer:
    """GB/s."""
    size, rounds = (16 << 20, 1) if quick else (256 << 20, 5)
    with ExitStack() as stack:
        directory, name = stack.enter_context(memory_dir()), stack.enter_context(bucket())
        ours = Upload(stack, directory, name, size)
        data = directory / "data"
        data.write_bytes(os.urandom(size))

        def alone(piece: int) -> float:
            spent = put_alone(name, data, piece, AT_A_TIME)
            empty(name)
            return size / spent / 1e9

        found = medians(
            interleave(
                rounds,
                {
                    "snapshot": ours.snapshot,
                    "segments": ours.segments,
                    "objects": lambda: alone(PIECE),
                    "parts": lambda: alone(0),
                },
            )
        )
    result = Answer(
        question=QUESTION,
        unit="GB/s",
        ours=found["snapshot"],
        peers={
            "obstore, objects of 16 MiB": found["objects"],
            "obstore, one object in parts": found["parts"],
        },
        limit={},
        runs=rounds,
        quick=quick,
    )
    fastest = max(found["objects"], found["parts"])
    result.details["ours"] = {
        what: {"GB/s": found[what], "ours / obstore": found[what] / fastest}
        for what in ("snapshot", "segments")
    }
    for what in ("snapshot", "segments"):
        result.ask(
            f"{what}: at least 80% of obstore's own rate", found[what] / fastest, lambda ratio: ratio >= 0.8
        )
    return result
