"""Restoring a whole region from a directory: what part of copying the file, or of raw TCP?

`sustain restore` of a sealed 4 GiB region from `file:///dir` to a file that is not there yet: every page compared
with its digest, written, made durable and read back; beside `cp` and a flush, raw loopback TCP, `rsync`, `dd | nc`.
Judged by the slower of the first two. In the peers' favour: they verify nothing.
"""

from dataclasses import replace

from bench.harness import Answer
from bench.region_restore_tcp import contenders
from bench.regions import compare

QUESTION = "restoring a whole region from a directory, GB/s"


def answer(quick: bool = False) -> Answer:
    """GB/s."""
    return compare(QUESTION, quick, lambda where: contenders(replace(where, url=f"file://{where.kept}")))
