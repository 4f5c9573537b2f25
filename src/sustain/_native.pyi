"""The binding of the engine. This stub is its documentation; `crates/py` only converts.

Positions (LSN) are ints, byte offsets in the endless log. Times ending in `_ns` say in the name or the docstring
which clock they are of. Every call that may wait releases the interpreter lock. Errors are those of
`sustain.errors`.
"""

import mmap
from typing import Any, TypedDict, final

Buffer = bytes | bytearray | memoryview | mmap.mmap

UNKNOWN: int  # 2**64 - 1, "not known" in the control words

class ControlWords(TypedDict):
    """A consistent-enough reading of the control page; None where the page is of another boot or never written."""

    appended: int
    committed: int
    applied: int
    tail: int
    commit_seq: int
    commit_time_ns: int  # since 1970
    recoveries: int  # begun and ended; odd while a writer replays the log over the image
    lease_deadline_ns: int  # CLOCK_BOOTTIME; 0 = no lease governs
    lease_epoch: int
    fence_epoch: int
    writer_pid: int
    writer_start_ticks: int
    poisoned: bool
    holder: str  # "none", "application", "receiver"
    shipper_pid: int
    shipper_start_ticks: int
    floor: int  # UNKNOWN = none
    required_floor: int  # what of it counts when no shipper lives; 0 = nobody has said: all of it
    budget_bytes: int  # unshipped bytes that the battery allows; 0 with `limit_lsn` 0 = no budget
    delay_lsn: int  # commits that end behind it are delayed; 0 = none is
    limit_lsn: int  # commits that would end behind it wait; 0 = no limit
    delay_limit_ns: int
    usable_ns: int | None  # battery time for a drain; None = unknown, or nobody ever said
    power_at_ns: int  # CLOCK_BOOTTIME of that; 0 = nobody ever said
    power_state: int  # 0 unknown, 1 on AC, 2 flapping, 3 on battery, 4 low, 5 forced shutdown
    waiting_since_ns: int  # CLOCK_BOOTTIME since which a commit waits for `limit_lsn`; 0 = none does
    primary_committed: int
    primary_heard_ns: int  # CLOCK_BOOTTIME
    primary_commit_time_ns: int  # since 1970

class Destination(TypedDict):
    slot: int
    url: str
    state: str  # "connecting", "streaming", "snapshot", "needs-snapshot", "refused", "stopped"
    required: bool
    sent: int
    acked: int | None
    acked_boottime_ns: int
    acked_commit_time_ns: int
    snapshot_done_bytes: int
    snapshot_total_bytes: int
    bytes_sent: int
    connections: int
    bandwidth_bytes_per_s: int | None  # low percentile of what was measured
    budget_bytes: int | None
    left_alone_until_ns: int | None  # CLOCK_BOOTTIME; 0 = it is not left alone; None = nobody has said
    left_alone_why: str | None

class Superblock(TypedDict):
    version: int
    store_uuid: bytes
    replica_uuid: bytes
    log_size: int
    image_size: int
    epoch: int
    history: list[tuple[int, int]]  # (epoch, start LSN), oldest first
    tail: int
    clean: bool
    incomplete: bool
    received: bool  # a receiver wrote last
    arriving: bool  # pages are missing; docs/formats/arriving.md
    end: int  # valid when clean
    durability: str
    same_boot: bool
    created_ns: int

class Engine:
    """An open store. Subclassed by `sustain.Store`."""

    def __new__(
        cls,
        path: str,
        readonly: bool = False,
        capture: str = "auto",  # "scan", "pagemap", "compare"
        verify: str = "lazy",  # or "full"
        log_timeout_s: float = 60.0,
    ) -> Engine: ...
    @staticmethod
    def format(
        path: str, size: int, log_size: int, durability: str, store_uuid: bytes | None = None, epoch: int = 1
    ) -> None:
        """Create a store file (never over an existing one). `durability` may be "auto"."""

    def commit(self) -> int: ...
    def rollback(self) -> None: ...
    def begin(self) -> None:
        """Enter a transaction: other threads' commits wait until `end`."""

    def end(self) -> None: ...
    def refresh(self) -> int:
        """Read-only stores: move forward to the newest commit; the position now seen."""

    def checkpoint(self) -> int:
        """Make the image durable and trim the log; the new tail."""

    def wait_copies(self, pos: int, copies: int, timeout_s: float) -> bool: ...
    def objects(self) -> list[tuple[str, str, int]]:
        """(name, kind, bytes held) of every object; kind is "map", "array" or "file"."""

    def delete(self, name: str) -> None: ...
    def array_buffer(
        self, name: str, dtype: str | None, shape: tuple[int, ...] | None, itemsize: int = 0
    ) -> tuple[Any, str, tuple[int, ...]]:
        """(object with the buffer protocol, dtype as stored, shape as stored). Creates, opens or grows; `itemsize`
        belongs to `dtype`."""

    def close(self) -> None: ...
    def words(self) -> ControlWords: ...
    def destinations(self) -> list[Destination]: ...
    def shipper_locked(self) -> bool:
        """Whether somebody ships this store now."""

    def info(self) -> Superblock: ...
    def verify(self) -> int:
        """Check every page of the image against its sum; pages checked. Raises StoreCorrupt."""

    def usage(self) -> dict[str, int]:
        """Bytes: image_bytes, used_bytes, free_bytes."""

    @property
    def path(self) -> str: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    @property
    def position(self) -> int:
        """End of the last commit that this handle made or sees."""

    @property
    def capture(self) -> str:
        """How changed array pages are found: "scan", "pagemap" or "compare"."""

class Map:
    """Subclassed by `sustain.store.maps.Map`, which adds the rest of MutableMapping."""

    def __new__(cls, engine: Engine, name: str) -> Map: ...
    def __getitem__(self, key: bytes) -> bytes: ...
    def __setitem__(self, key: bytes, value: bytes) -> None: ...
    def __delitem__(self, key: bytes) -> None: ...
    def __contains__(self, key: object) -> bool: ...
    def __len__(self) -> int: ...
    def get(self, key: bytes, default: Any = None) -> Any: ...
    def clear(self) -> None: ...
    def scan(self, cursor: int, limit: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Up to about `limit` entries from `cursor` (0 = begin); next cursor, 0 when done. RuntimeError when the map
        gained or lost keys since cursor 0 of this scan was given out."""

    @property
    def name(self) -> str: ...

class File:
    def __new__(cls, engine: Engine, name: str) -> File: ...
    def pread(self, length: int, offset: int) -> bytes: ...
    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> int: ...
    def truncate(self, size: int) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def name(self) -> str: ...

@final
class Control:
    """A store's superblock and control words, seen from any process; never takes the writer's lock."""

    def __new__(cls, path: str, writable: bool = False) -> Control: ...
    def superblock(self) -> Superblock: ...
    def words(self) -> ControlWords | None: ...
    def destinations(self) -> list[Destination]: ...
    def set_lease(self, epoch: int, deadline_boottime_ns: int) -> None: ...
    def set_fence(self, epoch: int) -> None:
        """Raise `fence_epoch`; never lowers it."""

    def set_power(self, state: int, usable_ns: int | None) -> None:
        """Say how long the battery lasts for a drain (None = unknown: then there is no budget) and the state of the
        power, as `ControlWords.power_state`; also stamps the time. From a known time on commits wait until a shipper
        says how much may be unshipped."""

    def clear_power(self) -> None:
        """Nobody watches the power any more: forget what was said, and all limits."""

    def writer_locked(self) -> bool: ...
    def shipper_locked(self) -> bool: ...
    def supervisor_locked(self) -> bool: ...
    def lock_supervisor(self) -> bool:
        """Take the supervisor's lock for the life of this object; False when another process has it."""

    def close(self) -> None: ...

@final
class LogTail:
    """The shipper's view: the log of a store that another process writes. Takes the shipper's lock (StoreBusy)."""

    def __new__(cls, path: str) -> LogTail: ...
    def superblock(self) -> Superblock: ...
    def words(self) -> ControlWords: ...
    def committed(self) -> int: ...
    def tail(self) -> int: ...
    def wait_commit(self, beyond: int, timeout_s: float) -> int:
        """Sleep until `committed` > `beyond` or the time-out; committed."""

    def nap(self, beyond: int, timeout_s: float) -> None:
        """Sleep for the time-out, less if somebody waits for copies of a commit, not at all if `committed` >
        `beyond`. Unlike `wait_commit` it costs a committing writer nothing."""

    def log_view(self, lsn: int, length: int) -> memoryview:
        """Read-only, contiguous, no copy; valid only if `tail() <= lsn` *after* the bytes were used."""

    def snapshot_point(self) -> tuple[int, int, int]:
        """(LSN, number of commits before it, chain) where the log begins that a snapshot taken from now on needs.
        Pin it with `set_floor` first, then ask again until it does not move."""

    def group_boundary(self, lsn: int) -> bool:
        """Whether a group begins at `lsn` (also true at `committed`). False when it is not in the log any more."""

    def image_size(self) -> int: ...
    def image_view(self, first_page: int, pages: int) -> memoryview: ...
    def next_used_page(self, page: int) -> int:
        """First page >= `page` whose sum is not 0; number of pages of the image when there is none."""

    def next_used_run(self, page: int, most: int) -> tuple[int, int]:
        """(first page >= `page` whose sum is not 0, how many such lie there together, at most `most`); (number of
        pages, 0) when there is none."""

    def page_digests(self, first_page: int, pages: int) -> bytes:
        """16 bytes (XXH3-128) per page, of the image as it is now."""

    def claim_slot(self, url: str, required: bool) -> int: ...
    def update_slot(
        self,
        slot: int,
        *,
        state: str | None = None,
        sent: int | None = None,
        acked: int | None = None,
        acked_commit_time_ns: int | None = None,
        snapshot_done_bytes: int | None = None,
        snapshot_total_bytes: int | None = None,
        bytes_sent: int | None = None,
        connections: int | None = None,
        bandwidth_bytes_per_s: int | None = None,
        budget_bytes: int | None = None,
    ) -> None:
        """A new `acked` also stamps its time and wakes those in `Engine.wait_copies`."""

    def release_others(self, urls: list[str]) -> None:
        """Give back the slots of all destinations but these."""

    def leave_alone(self, slot: int, for_s: float, why: str) -> None:
        """Say that a destination is not tried for so many seconds from now on, and why (240 bytes are kept)."""

    def power(self) -> tuple[int | None, int, int]:
        """(usable_ns, power_at_ns, power_state) of the control words."""

    def set_limits(self, budget_bytes: int, delay_lsn: int, limit_lsn: int, delay_limit_ns: int) -> None:
        """What bounds commits, as in `ControlWords`; all 0 = nothing does. Commits that wait look again."""

    def set_floor(self, lsn: int, required: int | None = None) -> None:
        """Least LSN still needed; UNKNOWN = nothing is pinned. `required`: what of it stays when this shipper dies
        (None: all of it)."""

    def set_fence(self, epoch: int) -> None: ...
    def close(self) -> None: ...

@final
class Replica:
    """The receiver's side of a store: takes the writer's lock, recovers, applies complete groups only."""

    def __new__(cls, path: str, arriving: bool = False) -> Replica:
        """`arriving`: also a store that has not arrived completely (else StoreArriving); it can only be promoted."""

    @staticmethod
    def create_for_snapshot(
        path: str,
        size: int,
        log_size: int,
        durability: str,
        store_uuid: bytes,
        epoch: int,
        history: list[tuple[int, int]],
        start: int,
        start_seq: int,
        start_chain: int,
    ) -> Replica:
        """A new, incomplete store whose log begins at `start`; refused by everyone else until `finish_snapshot`."""

    def superblock(self) -> Superblock: ...
    def words(self) -> ControlWords: ...
    @property
    def end(self) -> int:
        """End of the last complete, durable, applied group: where a sender resumes."""

    @property
    def end_seq(self) -> int: ...
    @property
    def end_chain(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def commit_time_ns(self) -> int: ...
    def set_epoch(self, epoch: int) -> None:
        """Make a newer epoch durable before anything of it is accepted. StoreFenced for an older one."""

    def buffer(self, length: int) -> memoryview:
        """Writable room in the ring behind what was received, at most `length` bytes; fill it, then `advance`."""

    def advance(self, length: int) -> int:
        """`length` more bytes are in: verify, make durable and apply what is complete; the new `end`.

        Raises StoreCorrupt for a record that is wrong; the partial group is then forgotten and nothing of it is
        applied."""

    def receive(self, data: Buffer) -> int:
        """Take in `data`, as `buffer` and `advance` do piece by piece. Nobody may write to it meanwhile."""

    def discard_partial(self) -> None: ...
    def note_primary(self, committed: int, commit_time_ns: int) -> None: ...
    def write_pages(self, first_page: int, data: Buffer, sums: bytes | None = None) -> None:
        """Pages of a snapshot; `sums`: their `page_sums`. Nobody may write to `data` meanwhile."""

    def page_digests(self, first_page: int, pages: int) -> bytes: ...
    def finish_snapshot(self) -> None:
        """Check every page against its sum (StoreCorrupt), make all durable, drop the incomplete flag."""

    def read_log(self, lsn: int, length: int) -> bytes:
        """Log bytes still in the ring (an orphan tail). StoreError when trimmed."""

    def promote(self, epoch: int) -> int:
        """Open `epoch` here: append and commit an EPOCH group; the LSN where it begins."""

    def checkpoint(self) -> int: ...
    def close(self) -> None: ...

class Arrival(TypedDict):
    pages: int  # of the image
    here: int
    asked: int  # by accesses that found them missing
    state: str  # "arriving", "complete", "failed"
    failure: str  # "" unless failed
    limit_s: float  # how long one access may wait
    base: int  # LSN: the copy holds everything before it once complete

@final
class Fetcher:
    """Brings the pages of an arriving store. Takes the fetcher's lock (StoreBusy); ValueError-like StoreError for a
    store that is whole."""

    def __new__(cls, path: str) -> Fetcher: ...
    def superblock(self) -> Superblock: ...
    def status(self) -> Arrival: ...
    def set_limit(self, limit_s: float) -> None: ...
    def point(self) -> tuple[int, int, int]:
        """(LSN, number of commits before it, chain) at which this copy began."""

    def boundary(self, lsn: int) -> tuple[int, int] | None:
        """(number of commits, chain) of the group that ends at `lsn` in this copy; None: its log shows none."""

    def wanted(self, timeout_s: float) -> list[int]:
        """Pages that somebody waits for; waits for the first of them."""

    def next_missing(self, first_page: int, most: int) -> tuple[int, int] | None:
        """(first, count) of the next run of pages that are not here; None: there is none from `first_page` on."""

    def put(self, first_page: int, pages: int, data: bytes) -> int:
        """`data`: the sums of `pages` pages, then those pages whose sum is not 0. Pages that are here stay as they
        are; how many were not. StoreCorrupt for a page that does not match its sum."""

    def settle(self) -> None:
        """Make durable what is here."""

    def complete(self) -> None:
        """All pages are here: make that durable and say so."""

    def try_finish(self) -> bool:
        """Make the complete store an ordinary one; False: the application that has it open is doing so."""

    def fail(self, why: str) -> None:
        """Give up: who waits for a page gets an error, or SIGBUS."""

    def close(self) -> None: ...

@final
class PageSource:
    """Pages of a whole store, which a receiver may be changing."""

    def __new__(cls, path: str) -> PageSource: ...
    def read(self, first_page: int, pages: int) -> bytes:
        """What `Fetcher.put` takes."""

def create_arriving(
    path: str,
    size: int,
    log_size: int,
    durability: str,
    store_uuid: bytes,
    epoch: int,
    history: list[tuple[int, int]],
    start: int,
    start_seq: int,
    start_chain: int,
    limit_s: float,
) -> None:
    """Make a store that holds no page yet and begins at `start`. Never over an existing file."""

def arrival_of(path: str) -> Arrival | None:
    """How far a store has arrived; None: it is whole."""

def on_demand_available() -> bool:
    """Whether this process may open a store before its pages are here (userfaultfd, also inside system calls)."""

def durability_of(path: str) -> str:
    """What "auto" would choose for a store at `path`: "pmem", "disk" or "memory" (tmpfs)."""

def capture_modes() -> list[str]:
    """Ways to find changed pages that this kernel offers, best first."""

def page_digests(data: Buffer, *, still: bool = False) -> bytes:
    """XXH3-128 of each page of 4 KiB of `data`, 16 bytes each; a last page that is not whole counts as filled up
    with zeros. Others may change `data` meanwhile: each digest is that of a copy. Not so with `still`: the caller
    promises that nobody writes to it until this returns, and the copies are spared."""

def changed_pages(
    data: Buffer, table: Buffer, update: bool = True, *, still: bool = False
) -> list[tuple[int, int]]:
    """(first, count) of each run of pages of `data` whose digest is not the one in `table` (as `page_digests` gives
    them); with `update` their digests are put there, so `table` must be a bytearray or the like. ValueError when
    the lengths do not match. `still`: as for `page_digests`."""

def differing_pages(one: Buffer, other: Buffer) -> list[tuple[int, int]]:
    """(first, count) of each run of pages whose digests differ in two tables of the same length."""

def page_sums(first_page: int, data: Buffer) -> bytes:
    """8 bytes for each page, as a store keeps them beside its image. Nobody may write to `data` meanwhile."""

def digest(data: Buffer) -> bytes:
    """XXH3-128 of all of `data`, 16 bytes: the digest of a table."""

def write_back(data: Buffer) -> None:
    """Write the cache lines of a mapped device back to its persistence domain, and wait for it."""

def boottime_ns() -> int: ...
def write_back_way() -> str:
    """How cache lines are written back for `pmem`: "clwb", "clflushopt", "clflush" or "dccvap"."""

@final
class TlsIdentity:
    """A host's certificate, key and CAs for TLS 1.3. From the contents of PEM files; the key is not encrypted.

    Raises `sustain.replication.tls_errors.TlsFault`, as all of TLS here does: "ca" or "pair" for files of no use.
    """

    def __new__(cls, certificate: bytes, key: bytes, ca: bytes) -> TlsIdentity: ...
    def prove(self) -> int:
        """See that a peer with the same CA would take the certificate, at both ends; when it ends, s since 1970."""

    def server(self) -> TlsEnd: ...
    def client(self, host: str) -> TlsEnd:
        """The end that connects to `host`, which the other side's certificate must name. "name" for what is none."""

@final
class TlsEnd:
    """One end of a connection. May be used by any number of threads; what is sealed by two must be sent in turns."""

    def shake(self) -> bool:
        """Go on with the handshake; whether it is done."""

    def feed(self, data: Buffer) -> None:
        """Take what has come; of a handshake no more than 128 KiB ("endless")."""

    def outgoing(self) -> bytes:
        """What waits to be sent, and is forgotten here."""

    def receive_into(self, socket: int, view: Buffer) -> tuple[int | None, int]:
        """Fill `view` from what has come, and from a non-blocking socket as far as it has something: (bytes, 0 at
        the end, None when more must come; bytes that the socket had). After the handshake. OSError."""

    def seal(self, data: Buffer) -> int:
        """Have some of `data` wait to be sent, up to 256 KiB in all: bytes of it, at least one if nothing waits."""

    def send(self, socket: int) -> bool:
        """Send what waits to a non-blocking socket; whether all of it went. OSError."""

    def send_from(self, socket: int, data: Buffer) -> tuple[int, bool]:
        """Both, piece after piece, until the socket takes no more: (bytes of `data` that were taken, whether nothing
        waits now). OSError."""

    def pending(self) -> bool:
        """Whether something can be read, or a whole record has come."""
