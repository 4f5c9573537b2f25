"""What the questions about archives share: a store full of random bytes, an S3 endpoint, and obstore by itself."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BLOCK = 4 << 20


def fill(path: Path, size: int, log_size: int) -> None:
    """A store at `path` whose image holds `size` random bytes."""
    import sustain

    # Room for the store's own books beside them.
    with sustain.create(
        path, size=size + size // 8 + (4 << 20), log_size=log_size, durability="memory"
    ) as store:
        write(store, size)


def write(store: Any, size: int) -> int:
    """Commit `size` random bytes, from the file's beginning; the last position."""
    file, position = store.file("bench"), store.position
    for at in range(0, size, BLOCK):
        file.pwrite(os.urandom(min(BLOCK, size - at)), at)
        position = store.commit()
    return int(position)


@contextmanager
def bucket() -> Iterator[str]:
    """Name of a bucket of an endpoint that runs meanwhile, with what clients need in the environment."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.peers.endpoint"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
        said = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }
        before = {name: os.environ.get(name) for name in said}
        os.environ.update(said)
        try:
            request = urllib.request.Request(f"{endpoint}/bench", method="PUT")
            with urllib.request.urlopen(request, timeout=10):
                yield "bench"
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
    finally:
        process.kill()
        process.communicate()


def empty(name: str) -> None:
    """Remove all that is in the bucket; the endpoint keeps it in memory."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(name, client_options={"allow_http": True})
    paths = [each["path"] for page in obstore.list(store) for each in page]
    obstore.delete(store, paths)


def put_alone(name: str, data: Path, piece: int, at_a_time: int) -> float:
    """Seconds in which obstore puts the bytes of `data`; `piece` 0: as one object of many parts."""
    words = [
        sys.executable,
        "-m",
        "bench.peers.object_put",
        name,
        "alone",
        str(data),
        str(piece),
        str(at_a_time),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"obstore has failed:\n{done.stderr}")
    return float(done.stdout)
