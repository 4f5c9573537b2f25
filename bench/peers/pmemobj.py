"""libpmemobj as a peer: compiles `pmemobj.c` and runs it on a pool.

Three set-ups, because tmpfs is not persistent memory and the library can be told what to think of it:
- `forced` (PMEM_IS_PMEM_FORCE=1): cache lines are written back as on persistent memory; the usual way
  to measure the library without the hardware, and the one that the reach is judged by.
- `no flush` (and PMEM_NO_FLUSH=1): as on a machine whose caches are inside the power-fail domain. Its
  promise is then the one of our `memory` durability, without ever leaving the caches.
- default: the library finds no persistent memory and calls msync; nobody would choose it.
"""

import os
import shutil
import subprocess
from pathlib import Path

SETUPS = {
    "libpmemobj": {"PMEM_IS_PMEM_FORCE": "1"},
    "libpmemobj, no flush": {"PMEM_IS_PMEM_FORCE": "1", "PMEM_NO_FLUSH": "1"},
    "libpmemobj, msync": {},
}


class PeerMissing(Exception):
    """The peer is not installed; the text says what to install."""


def build(directory: Path) -> Path:
    """Compile the program into `directory`; PeerMissing without a compiler or the library."""
    if shutil.which("gcc") is None:
        raise PeerMissing("no gcc (apt-get install gcc)")
    program = directory / "pmemobj"
    source = Path(__file__).with_suffix(".c")
    made = subprocess.run(
        ["gcc", "-O2", "-Wall", "-o", str(program), str(source), "-lpmemobj"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise PeerMissing(
            "libpmemobj does not compile (apt-get install libpmemobj-dev): " + made.stderr.strip()[:200]
        )
    return program


class PmemobjMap:
    """One set-up of the program with a pool of its own."""

    def __init__(self, program: Path, pool: Path, setup: dict[str, str]) -> None:
        self.program, self.pool = program, pool
        self.environment = {**os.environ, **setup}
        self.seed = 0

    def run(self, updates: int) -> float:
        """Microseconds of one update; opening the pool is not in it."""
        self.seed += 1
        made = subprocess.run(
            [str(self.program), str(self.pool), str(updates), str(self.seed)],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return float(made.stdout) / 1e3
