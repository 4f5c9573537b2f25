"""Finding pages by content: digests, tables of them, and runs of pages that differ. Thin over the native module.

Used by every sink and source, by `save` and `restore`, and by the content tracker. Calls are cut into slices
so that Ctrl-C and SIGTERM are heard in between; the interpreter lock is not held within one.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator

from sustain import _native
from sustain.powerfail.regions.manifest import DIGEST_BYTES, PAGE_BYTES, SLICE_PAGES

Buffer = bytes | bytearray | memoryview | mmap.mmap
Run = tuple[int, int]  # first page, number of pages

ZERO_DIGEST = _native.page_digests(bytes(PAGE_BYTES))


def zero_table(pages: int) -> bytes:
    """The table of a region of zeros."""
    return ZERO_DIGEST * pages


def digests_of(data: Buffer, *, still: bool = False) -> bytes:
    """16 bytes for each page of `data`; a last page that is not whole counts as filled up with zeros. `still`: nobody
    writes to `data` meanwhile, so that it is hashed where it lies."""
    return _native.page_digests(data, still=still)


def table_digest(table: Buffer) -> bytes:
    """What a seal says of a table."""
    return _native.digest(table)


def changed(
    data: memoryview, table: bytearray, first_page: int = 0, *, update: bool = True
) -> Iterator[list[Run]]:
    """Compare `data`, which begins at `first_page` of the region, with its `table`; runs of pages that differ,
    slice by slice (a run may end with one slice and go on in the next). With `update` the table follows."""
    known = memoryview(table)
    for first, pages in slices(0, -(-len(data) // PAGE_BYTES), 16 * SLICE_PAGES):
        at = first_page + first
        runs = _native.changed_pages(
            data[first * PAGE_BYTES : (first + pages) * PAGE_BYTES],
            known[at * DIGEST_BYTES : (at + pages) * DIGEST_BYTES],
            update,
        )
        yield [(at + start, count) for start, count in runs]


def mismatches(
    data: Buffer, digests: Buffer, first_page: int, *, update: bool = False, still: bool = False
) -> list[Run]:
    """Runs of pages of `data`, which begins at `first_page`, that are not what `digests` says; with `update` it
    says the truth afterwards. `still`: as for `digests_of`."""
    found = _native.changed_pages(data, digests, update, still=still)
    return [(first_page + first, pages) for first, pages in found]


def differing(one: Buffer, other: Buffer, first_page: int = 0) -> list[Run]:
    """Runs of pages whose digests differ in two tables (or parts that begin at `first_page`) of one length."""
    return [(first_page + first, pages) for first, pages in _native.differing_pages(one, other)]


def digests_at(table: bytes | bytearray | memoryview, first_page: int, pages: int) -> bytes:
    """The digests of some pages out of a table."""
    return bytes(table[first_page * DIGEST_BYTES : (first_page + pages) * DIGEST_BYTES])


def slices(first_page: int, pages: int, limit: int = SLICE_PAGES) -> Iterator[Run]:
    """The run cut into runs of at most `limit` pages."""
    for at in range(first_page, first_page + pages, limit):
        yield at, min(limit, first_page + pages - at)


def pages_in(runs: Iterable[Run]) -> int:
    """Pages of all runs together."""
    return sum(pages for _, pages in runs)


def describe(runs: list[Run], limit: int = 8) -> str:
    """Runs as people read them: "pages 3 to 17, 40 and 7 more runs"."""
    shown = [str(first) if pages == 1 else f"{first} to {first + pages - 1}" for first, pages in runs[:limit]]
    rest = len(runs) - len(shown)
    text = ", ".join(shown) + (f" and {rest} more runs" if rest else "")
    return f"page{'' if pages_in(runs) == 1 else 's'} {text}"


class RunCollector:
    """Runs that come in the order of their pages, joined where they touch."""

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def add(self, first_page: int, pages: int) -> None:
        if self.runs and sum(self.runs[-1]) == first_page:
            self.runs[-1] = (self.runs[-1][0], self.runs[-1][1] + pages)
        else:
            self.runs.append((first_page, pages))


def merged(runs: Iterable[Run]) -> list[Run]:
    """The same pages in order, each once, in runs as long as can be."""
    collector = RunCollector()
    end = 0
    for first, pages in sorted(runs):
        start = max(first, end)
        if start < first + pages:
            collector.add(start, first + pages - start)
            end = first + pages
    return collector.runs


Progress = Callable[[int, int], None]  # pages done, pages in all
