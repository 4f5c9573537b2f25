"""What every question shares: the answer's shape, interleaved rounds, medians, and the machine they ran on.

Used by each file of `bench/` that answers a question, and by `bench/__main__.py`, which prints the
answers. An answer is judged by ratios only (`ours / peer`, in the question's unit); absolute figures
are there to give a sense of size.
"""

import gc
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.host import marks

Contender = Callable[[], float]


@dataclass(frozen=True)
class Reach:
    """One thing that is asked of the answer: its wording, the figure found, and whether that is enough.

    `met` is None where it could not be judged, because a peer was missing.
    """

    text: str
    value: float | None
    met: bool | None


@dataclass
class Answer:
    """An answer to one question; `as_dict()` is the documented JSON shape (docs: bench/README.md).

    `ours`, `peers` and `limit` are in `unit`, medians over `runs` interleaved rounds. `ratio[name]` is ours
    divided by that peer's. `details` holds further tables, `notes` what a fair reader must know.
    """

    question: str
    unit: str
    ours: float | None
    peers: dict[str, float | None]
    limit: dict[str, float]
    runs: int
    reach: list[Reach] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    quick: bool = False

    @property
    def ratio(self) -> dict[str, float]:
        """Ours divided by each peer and limit that was measured."""
        known = {**self.peers, **self.limit}
        return {name: self.ours / value for name, value in known.items() if self.ours is not None and value}

    @property
    def met(self) -> bool | None:
        """True when all of the reach is met, False when something is not, None when something is unknown."""
        results = [reach.met for reach in self.reach]
        if False in results:
            return False
        return None if None in results else True

    def ask(self, text: str, value: float | None, holds: Callable[[float], bool]) -> None:
        """Add something that is asked; unknown where `value` is None. A smoke run judges nothing."""
        self.reach.append(Reach(text, value, None if value is None or self.quick else holds(value)))

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {
            "question": self.question,
            "unit": self.unit,
            "ours": self.ours,
            "peers": self.peers,
            "limit": self.limit,
            "ratio": self.ratio,
            "reach": [asdict(reach) for reach in self.reach],
            "met": self.met,
            "runs": self.runs,
            "quick": self.quick,
            "missing": self.missing,
            "details": self.details,
            "notes": self.notes,
            "machine": machine(),
        }


def interleave(rounds: int, contenders: dict[str, Contender]) -> dict[str, list[float]]:
    """Run every contender once a round, in an order that moves on by one each round; all figures by name."""
    names = list(contenders)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            with quiet_collector():
                figures[name].append(contenders[name]())
    return figures


def medians(figures: dict[str, list[float]]) -> dict[str, float]:
    """The median of each contender's figures."""
    return {name: statistics.median(values) for name, values in figures.items()}


def percentile(sorted_values: list[int], percent: float) -> int:
    """The nearest-rank percentile of values that are sorted already."""
    rank = max(0, min(len(sorted_values) - 1, round(percent / 100 * len(sorted_values)) - 1))
    return sorted_values[rank]


@contextmanager
def quiet_collector() -> Iterator[None]:
    """No cyclic garbage collection inside a timed stretch; a full one before it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def memory_dir() -> Iterator[Path]:
    """A fresh directory on tmpfs, for `memory` durability. Those of runs that were killed go."""
    root = Path("/dev/shm")
    with _scratch(root if root.is_dir() else Path(tempfile.gettempdir())) as path:
        yield path


@contextmanager
def disk_dir() -> Iterator[Path]:
    """A fresh directory on a real file system: $SUSTAIN_BENCH_DIR, else /var/tmp."""
    with _scratch(Path(os.environ.get("SUSTAIN_BENCH_DIR", "/var/tmp"))) as path:
        yield path


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    for left in root.glob("sustain-bench-*-*"):
        if marks.dead(left.name.split("-")[2]):
            shutil.rmtree(left, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f"sustain-bench-{marks.own()}-", dir=root))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def filesystem_of(path: Path) -> str:
    """Type of the file system that holds `path` ("tmpfs", "ext4", …); "unknown" when no mount says."""
    best, kind = "", "unknown"
    real = str(path.resolve())
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, filesystem, *_ = line.split()
        inside = mount in ("/", real) or real.startswith(mount + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, filesystem
    return kind


def machine() -> dict[str, Any]:
    """What the figures were measured on, as far as it matters for reading them."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    load = os.getloadavg()[0]
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": round(load, 2),
    }


def say(text: str) -> None:
    """A line about progress: for a person at a terminal, nothing in a pipe."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def dump(answer: Answer) -> str:
    """The answer as JSON."""
    return json.dumps(answer.as_dict(), indent=2)
