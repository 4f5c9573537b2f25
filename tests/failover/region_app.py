"""A program that knows nothing of Sustain: it maps a file and changes it, in an order that it can check again.

Step n writes n into page (n * 7919) mod P, then n into the counter in the first page. So a file that is of one moment
holds, in every page, exactly the last step that fell on it, but for one page that may be a step ahead.

    region_app.py REGION LOG [--slow]
"""

import json
import mmap
import os
import struct
import sys
import time

PAGE = 4096
STRIDE = 7919


def expected(step: int, pages: int) -> dict[int, int]:
    """Which step each page holds after `step` (only pages that hold one)."""
    return {n * STRIDE % pages: n for n in range(max(1, step - pages + 1), step + 1)}


def check(memory: mmap.mmap, pages: int) -> tuple[int, list[str]]:
    """The counter, and what is wrong."""
    (step,) = struct.unpack_from("<Q", memory, 0)
    wrong, wanted = [], expected(step, pages)
    ahead = (step + 1) * STRIDE % pages
    for page in range(pages):
        (held,) = struct.unpack_from("<Q", memory, (page + 1) * PAGE)
        if held != wanted.get(page, 0) and not (page == ahead and held == step + 1):
            wrong.append(f"page {page} holds step {held}, not {wanted.get(page, 0)}, at step {step}")
    return step, wrong


def main() -> None:
    path, log = sys.argv[1], sys.argv[2]
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    pages = len(memory) // PAGE - 1
    step, wrong = check(memory, pages)

    def say(what: str, **facts: object) -> None:
        entry = {"what": what, "ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME), **facts}
        with open(log, "a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")

    say("start", step=step, wrong=wrong[:5], epoch=int(os.environ["SUSTAIN_EPOCH"]), pid=os.getpid())
    while True:
        step += 1
        struct.pack_into("<Q", memory, (step * STRIDE % pages + 1) * PAGE, step)
        struct.pack_into("<Q", memory, 0, step)
        if step % 100 == 0:
            say("step", step=step)
            time.sleep(0.01)


if __name__ == "__main__":
    main()
