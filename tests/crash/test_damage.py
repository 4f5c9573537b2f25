"""A small store, damaged: cut at each boundary, its log zeroed from each byte on, single bits flipped everywhere.

Whatever the damage, opening gives the whole state, or a clear error; where the last group of the log is hit, the state
before it, because that cannot be told from a torn tail. A wrong state, an older one, or a crash of the interpreter
is a failure. Every bit of a file of 8 MiB is too much for each run: by default the bits of all bytes that are not
zero and a sample of the others; `SUSTAIN_DAMAGE=all` takes every bit of every page in use.
"""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import sustain
from tests.crash.model import Model, Objects, check, commit_number
from tests.crash.processes import seed

pytestmark = pytest.mark.crash

COMMITS = 12
PAGE = 4096
CONTROL = range(0x2000, 0x4000)
LOG = range(2 << 20, 4 << 20)
SUMS = range(4 << 20, 6 << 20)
IMAGE = range(6 << 20, 8 << 20)
CLEAR = (sustain.StoreCorrupt, sustain.NotAStore, sustain.NewerVersion)
EVERY_BIT = os.environ.get("SUSTAIN_DAMAGE") == "all"


@dataclass
class Specimen:
    """A store file, what it holds, and how the log lies in it."""

    path: Path
    content: bytes
    ends: list[int]  # position after each commit, the first before all
    models: list[Model]
    clean: bool
    clear: tuple[type[sustain.SustainError], ...] = CLEAR

    @property
    def log_used(self) -> range:
        return range(LOG.start, LOG.start + self.ends[-1])

    def used_pages(self, part: range) -> Iterator[int]:
        """Offsets of the pages of `part` that are not zero."""
        for at in range(part.start, part.stop, PAGE):
            if any(self.content[at : at + PAGE]):
                yield at

    def opened(self, *, readonly: bool) -> int | str:
        """The commit that the file is at, compared whole; or the name of the error."""
        try:
            with sustain.open(self.path, readonly=readonly, verify="full") as store:
                n = commit_number(store)
                assert n <= COMMITS, f"commit {n} was never made"
                return check(store, self.models[n])
        except self.clear as error:
            return type(error).__name__ if error.hint else f"{type(error).__name__} without a hint"

    def restore(self) -> None:
        """After an open for writing, which changed superblocks, control words and what it replayed."""
        self.path.write_bytes(self.content)


def make(folder: Path, kind: str) -> Specimen:
    """A store of `COMMITS` commits: "closed"; "killed", as a dead process leaves it; "lost power", with nothing but the
    log on the medium."""
    live, path = folder / "live.sus", folder / "app.sus"
    store = sustain.create(
        live, size="2MiB", log_size="2MiB", durability="memory" if kind == "closed" else "disk"
    )
    first = store.position
    store.close()
    fresh = live.read_bytes()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(live, kind, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        ends = [first, *map(int, pipe.read().split())]
    assert os.waitpid(child, 0)[1] == 0
    assert len(ends) == COMMITS + 1
    content = bytearray(live.read_bytes())
    live.unlink()
    if kind == "lost power":
        content[CONTROL.start : CONTROL.stop] = bytes(len(CONTROL))
        content[SUMS.start :] = fresh[SUMS.start :]  # nothing of it was flushed yet
    path.write_bytes(content)
    models = [Model() for _ in range(COMMITS + 1)]
    for n, model in enumerate(models):
        model.advance(n)
    return Specimen(path, bytes(content), ends, models, kind == "closed")


def work(live: Path, kind: str, pipe: int) -> None:
    """The process that dies: its commits, their positions to `pipe`."""
    store = sustain.open(live)
    objects = Objects(store)
    for n in range(1, COMMITS + 1):
        objects.change(n)
        os.write(pipe, b"%d\n" % store.commit())
    if kind == "closed":
        del objects
        store.close()
    os._exit(0)


@pytest.fixture(scope="module", params=["closed", "killed", "lost power"])
def specimen(request: pytest.FixtureRequest) -> Iterator[Specimen]:
    # In memory where the machine has it: tens of thousands of opens.
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as folder:
        yield make(Path(folder), str(request.param))


def may_end_before(specimen: Specimen, at: int) -> bool:
    """Whether damage at file offset `at` may cost the last commit: it lies in its group of the log."""
    return not specimen.clean and at >= LOG.start + specimen.ends[-2] and at in LOG


def flips(specimen: Specimen, dice: random.Random) -> dict[str, list[int]]:
    """Bits to flip, as offsets in bits, for each part of the file."""

    def bits(places: Iterable[range], sample: int) -> list[int]:
        every = [bit for place in places for bit in range(place.start * 8, place.stop * 8)]
        if EVERY_BIT:
            return every
        told = [bit for bit in every if specimen.content[bit // 8]]
        zero = [bit for bit in every if not specimen.content[bit // 8]]
        return sorted(dice.sample(told, min(len(told), sample)) + dice.sample(zero, min(len(zero), sample)))

    def pages(part: range) -> list[range]:
        return [range(at, at + PAGE) for at in specimen.used_pages(part)]

    return {
        "superblock A": bits([range(PAGE)], 250),
        "superblock B": bits([range(PAGE, 2 * PAGE)], 250),
        "control words": bits([CONTROL], 50),
        "log": bits([range(specimen.log_used.start, specimen.log_used.stop + 64)], 500),
        "sums": bits(pages(SUMS), 150),
        "image": bits(pages(IMAGE), 300),
    }


@pytest.mark.timeout(36000 if EVERY_BIT else 300)
def test_flipped_bits(specimen: Specimen) -> None:
    chosen = seed()
    print(f"SUSTAIN_CRASH_SEED={chosen}")
    dice = random.Random(chosen)
    wrong: list[str] = []
    assert specimen.opened(readonly=True) == COMMITS, "undamaged"
    for part, bits in flips(specimen, dice).items():
        outcomes: Counter[int | str] = Counter()
        # A damaged control word may tell of a lease that never was, or of another boot.
        specimen.clear = (sustain.SustainError,) if part == "control words" else CLEAR
        for bit in bits:
            at, mask = bit // 8, 1 << bit % 8
            readonly = dice.random() < 0.8
            with specimen.path.open("r+b") as file:
                os.pwrite(file.fileno(), bytes([specimen.content[at] ^ mask]), at)
                outcome = specimen.opened(readonly=readonly)
                os.pwrite(file.fileno(), specimen.content[at : at + 1], at)
            if not readonly:
                specimen.restore()
            outcomes[outcome] += 1
            fine = outcome == COMMITS or (isinstance(outcome, str) and "without" not in outcome)
            if not fine and not (outcome == COMMITS - 1 and may_end_before(specimen, at)):
                wrong.append(f"{part}: bit {bit % 8} of byte {at:#x}, readonly={readonly}: commit {outcome}")
        print(f"{part}: {len(bits)} bits: {dict(outcomes)}")
        if part in ("log", "image", "sums") and not (part == "log" and specimen.clean):
            assert outcomes["StoreCorrupt"] > 0, f"{part}: no damage was seen"
    assert not wrong, f"{len(wrong)} wrong, the first: " + "; ".join(wrong[:8])
    assert specimen.path.read_bytes() == specimen.content, "a reader changed the file"


def test_cut_files(specimen: Specimen) -> None:
    """A file shorter than its superblock says is refused, wherever it was cut."""
    regions = (
        0,
        PAGE,
        2 * PAGE,
        CONTROL.stop,
        LOG.start,
        specimen.log_used.stop,
        LOG.stop,
        SUMS.stop,
        IMAGE.stop,
    )
    lengths = {region + off for region in regions for off in (-4096, -512, -8, -1, 0, 1, 7, 8, 511, 513)}
    lengths |= set(range(0, PAGE, 61)) | set(range(LOG.start, specimen.log_used.stop, 97))
    for length in sorted(each for each in lengths if 0 <= each < len(specimen.content)):
        for readonly in (True, False):
            os.truncate(specimen.path, length)
            outcome = specimen.opened(readonly=readonly)
            assert outcome in ("StoreCorrupt", "NotAStore"), f"{length} bytes, readonly={readonly}: {outcome}"
            assert specimen.path.stat().st_size == length, "an open that refused changed the file"
            specimen.restore()
    assert specimen.opened(readonly=True) == COMMITS


def durable_by_superblock(content: bytes) -> int:
    """How far the newest superblock says that the log was durable: its `end_lsn`."""
    newest = max((0, 4096), key=lambda at: int.from_bytes(content[at + 64 : at + 72], "little"))
    return int.from_bytes(content[newest + 144 : newest + 152], "little")


def test_zeroed_log_tails(specimen: Specimen) -> None:
    """The log ends at any byte, as after a power cut that lost the rest: the commits that are whole, no other.

    Of a store that knows better (closed in order, its control words tell what was committed, or its superblock how far
    the log was durable) that is damage.
    """
    step = 1 if EVERY_BIT else 17
    knows = specimen.content[CONTROL.start : CONTROL.start + 8] != bytes(8)
    durable = durable_by_superblock(specimen.content)
    with specimen.path.open("r+b") as file:
        for cut in range(0, specimen.ends[-1], step):
            whole = max((n for n, end in enumerate(specimen.ends) if end <= cut), default=0)
            zeros = bytes(specimen.ends[-1] - cut)
            os.pwrite(file.fileno(), zeros, LOG.start + cut)
            outcome = specimen.opened(readonly=True)
            os.pwrite(
                file.fileno(),
                specimen.content[LOG.start + cut : LOG.start + specimen.ends[-1]],
                LOG.start + cut,
            )
            if specimen.clean:
                assert outcome in (COMMITS, "StoreCorrupt"), f"log cut at {cut}: {outcome}"
            elif knows:
                assert outcome == "StoreCorrupt", f"log cut at {cut}: {outcome}"
            elif cut < durable:
                assert outcome == "StoreCorrupt", f"log cut at {cut}: {outcome}, durable was {durable}"
            else:
                assert outcome == whole, f"log cut at {cut}: {outcome}, whole are {whole}"
