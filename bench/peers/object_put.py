"""obstore by itself: `python -m bench.peers.object_put BUCKET PREFIX FILE PIECE_BYTES AT_A_TIME` puts the bytes of
FILE, which it has in memory, and prints the seconds.

PIECE_BYTES 0: as one object, in the parts that obstore makes of it, as many at a time as it likes.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def main() -> None:
    import obstore
    from obstore.store import S3Store

    bucket, prefix, file, piece_bytes, at_a_time = sys.argv[1:]
    store = S3Store(bucket, prefix=prefix, client_options={"timeout": "60s", "allow_http": True})
    data, piece = Path(file).read_bytes(), int(piece_bytes)
    obstore.put(store, "first", b"connected")
    begun = time.perf_counter()
    if piece:
        pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
        begun = time.perf_counter()
        with ThreadPoolExecutor(int(at_a_time)) as pool:
            for _ in pool.map(
                lambda n: obstore.put(store, f"{n:06}", pieces[n], use_multipart=False), range(len(pieces))
            ):
                pass
    else:
        obstore.put(store, "whole", data, use_multipart=True)
    print(time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    main()
