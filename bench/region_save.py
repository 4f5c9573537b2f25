"""Saving a whole region into a directory: what part of copying the file, or of raw TCP?

`sustain save` of a 4 GiB region to `file:///dir` that holds nothing of it, read back, durable and sealed, and the
region read a second time to see that it stood still; beside `cp` and a flush, raw loopback TCP, `rsync`, `dd | nc`.
Judged by the slower of the first two. In the peers' favour: nothing that they copy is hashed, read back or sealed.
"""

from dataclasses import replace

from bench.harness import Answer
from bench.region_save_tcp import contenders
from bench.regions import compare

QUESTION = "saving a whole region to a directory, GB/s"


def answer(quick: bool = False) -> Answer:
    """GB/s."""
    return compare(QUESTION, quick, lambda where: contenders(replace(where, url=f"file://{where.kept}")))
