"""For tests that map large on this machine's own kernel."""

import os
from pathlib import Path

import pytest

from sustain.host import large_pages

_ENOUGH = 128  # runs of 2 MiB that are free: more than any test here asks for
_COMPACT, _DROP = Path("/proc/sys/vm/compact_memory"), Path("/proc/sys/vm/drop_caches")


@pytest.fixture(autouse=True)
def large_pages_are_to_be_had() -> None:
    """Memory that other tests have left in pieces, or full of clean pages, is put together, as far as that goes: what
    is tested here is what we do with large pages, not whether the kernel finds one in time. (It is tested where none is
    to be had, too: test_scarce_kernel.py.)"""
    if os.geteuid() != 0 or "SUSTAIN_LAB_GUEST" in os.environ:  # guests of the lab have just been started
        return
    for path in (_COMPACT, _DROP, _COMPACT):
        free = large_pages.free()
        if free is None or free >= _ENOUGH or not path.exists():
            return
        path.write_text("1")
