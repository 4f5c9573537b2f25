"""A region saved in a directory: `file:///dir`, and what a standby keeps for `tcp://`. An image, a table, a manifest.

Used through `sink.open_sink` and by the receiving side of `peer`. Layout and order of steps:
docs/formats/region.md. Pages go into the image in place; what makes that safe is the manifest, which loses
its seal durably before the first of them and gets a new one only when every page on the medium is what the
table says. So a crash at any point leaves a sealed save that is whole, or an unsealed one that nobody
restores from.

Rejected: writing a second image and renaming it. It needs the room twice and the whole time again, on a
battery, for one per cent of changes.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sustain import wholefile
from sustain.errors import (
    NotARegion,
    PeerRefused,
    RegionBusy,
    RegionCorrupt,
    RegionError,
    RegionIOError,
    RegionUnsealed,
    WrongGeneration,
)
from sustain.powerfail.regions import manifest as manifests
from sustain.powerfail.regions.background import EarlySync, Readback
from sustain.powerfail.regions.durable import os_errors, read_all, write_all
from sustain.powerfail.regions.manifest import (
    DIGEST_BYTES,
    PAGE_BYTES,
    Manifest,
    RegionIdentity,
    Seal,
    check_name,
    pages_of,
)
from sustain.powerfail.regions.scan import (
    Run,
    describe,
    digests_of,
    mismatches,
    slices,
    table_digest,
    zero_table,
)
from sustain.powerfail.regions.sink import Held, Sink, Source

_SAVE_AGAIN = "save the region again, or restore from another destination"


class _Place:
    """The files of a saved region, and the lock on them."""

    def __init__(self, root: str | os.PathLike[str], name: str) -> None:
        self.folder = Path(root) / check_name(name)
        self.image = self.folder / "image"
        self.table = self.folder / "table"
        self.manifest = self.folder / "manifest"
        self._lock = -1

    def make(self) -> None:
        """Create the folder, durably. Raises RegionIOError, RegionFull."""
        with os_errors(self.folder, "cannot be made", "name a directory that can be written to"):
            for each in reversed([self.folder, *self.folder.parents]):
                if not each.is_dir():
                    each.mkdir(mode=0o700)
                    wholefile.sync_directory(each.parent)

    def lock(self, exclusive: bool) -> None:
        """Hold the lock until `unlock`. Raises RegionBusy, RegionIOError."""
        path = self.folder / "lock"
        with os_errors(path, "cannot be opened"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise RegionBusy(
                f"{self.folder}: another save or restore uses it", hint="wait for it, or end that process"
            ) from None
        self._lock = fd

    def unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def read_manifest(self) -> Manifest | None:
        """None: there is none. Raises RegionCorrupt, RegionNewerVersion, NotARegion, RegionIOError."""
        with os_errors(self.manifest, "cannot be read"):
            try:
                data = self.manifest.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return manifests.decode(data, str(self.manifest))

    def write_manifest(self, manifest: Manifest) -> None:
        with os_errors(self.manifest, "cannot be written"):
            wholefile.replace(self.manifest, manifests.encode(manifest), durable=True, mode=0o600)

    def read_table(self, pages: int) -> bytearray | None:
        """The table, when it is as long as it should be and its own digest fits. Raises RegionIOError."""
        with os_errors(self.table, "cannot be read"):
            try:
                data = bytearray(self.table.read_bytes())
            except FileNotFoundError:
                return None
        table = data[:-DIGEST_BYTES]
        whole = len(data) == (pages + 1) * DIGEST_BYTES and table_digest(table) == data[-DIGEST_BYTES:]
        return table if whole else None

    def write_table(self, table: bytearray) -> None:
        with os_errors(self.table, "cannot be written"):
            wholefile.replace(self.table, bytes(table) + table_digest(table), durable=True, mode=0o600)


class DirectorySink(Sink):
    """Saves into ROOT/NAME."""

    def __init__(
        self, root: str | os.PathLike[str], name: str, *, url: str = "", read_back: bool = True
    ) -> None:
        """`read_back`: read every page again behind its being written. Without it what arrives is compared with its
        digest, still in the processor's cache, and only what does not fit is looked at again."""
        self._place = _Place(root, name)
        self.url = url or f"file://{Path(root).absolute()}"
        self._read_back_all = read_back
        self._fd = -1
        self._manifest: Manifest | None = None
        self._table = bytearray()
        self._flushed = True
        self._readback = Readback(self._read_back, b"")
        self._early = EarlySync(self._sync)
        self._failed: RegionError | None = None

    def begin(self, identity: RegionIdentity, epoch: int) -> Held:
        place = self._place
        place.make()
        place.lock(exclusive=True)
        found = place.read_manifest()
        if found is not None:
            self._admit(found, identity, epoch)
        self._open_image(fresh=found is None)
        held = found or Manifest(identity, epoch)
        if held.identity.size_bytes != identity.size_bytes and (held.seal or held.table_current):
            held = replace(held, seal=None, table_current=False)
            place.write_manifest(held)
        with os_errors(place.image, "cannot be made as large as the region"):
            size_was = os.fstat(self._fd).st_size
            os.ftruncate(self._fd, identity.size_bytes)
        table = (
            place.read_table(identity.pages)
            if held.table_current and size_was == identity.size_bytes
            else None
        )
        if found is None:
            table = bytearray(zero_table(identity.pages))
        elif table is None or (held.seal and table_digest(table) != held.seal.table_digest):
            if held.seal:
                held = replace(held, seal=None)
            held = replace(held, table_current=False)
            table = self._table_of_image(identity.pages)
        held = replace(held, identity=identity, epoch=epoch)
        if held != found:
            place.write_manifest(held)
        self._manifest, self._table = held, table
        self._readback = Readback(self._read_back, table)
        return Held(bytes(table), held.seal, held.last_number)

    def write(self, first_page: int, data: bytes | memoryview, digests: bytes) -> None:
        manifest = self._ready()
        pages = len(digests) // DIGEST_BYTES
        if len(data) != pages * PAGE_BYTES or not 0 <= first_page <= manifest.identity.pages - pages:
            raise ValueError(
                f"pages {first_page} to {first_page + pages - 1} are not {len(data)} bytes of the region"
            )
        if manifest.seal or manifest.table_current:
            self._manifest = replace(manifest, seal=None, table_current=False)
            self._place.write_manifest(self._manifest)
        offset = first_page * PAGE_BYTES
        data = memoryview(data)[: manifest.identity.size_bytes - offset]
        self._flushed = False
        self._table[first_page * DIGEST_BYTES : (first_page + pages) * DIGEST_BYTES] = digests
        with self._fatal(), os_errors(self._place.image, f"pages from {first_page} on cannot be written"):
            write_all(self._fd, data, offset)
        if self._read_back_all or mismatches(data, digests, first_page, still=True):
            self._readback.wrote(first_page, pages)
        self._early.wrote(len(data))

    def flush(self) -> None:
        self._ready()
        if self._flushed:
            return
        with self._fatal():
            self._early.finish()
            wrong = self._readback.finish()
        self._flushed = True
        if wrong:
            self._tell_the_truth(wrong)
            raise RegionCorrupt(
                f"{self._place.image}: {describe(wrong)}: what was written is not what was sent",
                hint="memory, the network or the disk damages data; save again, and look into it when it recurs",
            )

    def seal(self, seal: Seal) -> None:
        manifest = self._ready()
        if not self._flushed:
            raise ValueError("flush comes before seal")
        if seal.epoch != manifest.epoch or seal.number <= manifest.last_number:
            raise WrongGeneration(
                f"{self.url}: seal {seal.number} of epoch {seal.epoch} is not newer than seal "
                f"{manifest.last_number} of epoch {manifest.epoch}",
                hint="another save was sealed there meanwhile; begin anew",
            )
        if table_digest(self._table) != seal.table_digest:
            raise RegionCorrupt(f"{self.url}: holds other pages than those to be sealed", hint=_SAVE_AGAIN)
        self._settle(replace(manifest, seal=seal, last_number=seal.number))

    def close(self) -> None:
        try:
            manifest = self._manifest
            if manifest and not manifest.table_current and self._flushed and self._failed is None:
                self._settle(manifest)
        finally:
            self._readback.close()
            self._early.close()
            self._manifest = None
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            self._place.unlock()

    # steps

    def _admit(self, found: Manifest, identity: RegionIdentity, epoch: int) -> None:
        if found.identity.uuid != identity.uuid:
            raise PeerRefused(
                f"{self.url}: another region is saved there as {identity.name} ({found.identity.uuid.hex()})",
                hint="save under another name, or to another place",
            )
        if epoch < found.epoch:
            raise PeerRefused(
                f"{self.url}: epoch {epoch} is over; epoch {found.epoch} has saved there",
                hint="this host is a former primary: restore what the newer one saved",
            )

    def _open_image(self, fresh: bool) -> None:
        """Open the image. What lies there without a manifest was never finished and is thrown away."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if fresh else 0)
        with os_errors(self._place.image, "cannot be opened"):
            self._fd = os.open(self._place.image, flags, 0o600)
            os.fsync(self._fd)
            wholefile.sync_directory(self._place.folder)

    def _table_of_image(self, pages: int) -> bytearray:
        """What the medium holds, not what the page cache may say of it after an error."""
        table = bytearray()
        buffer = bytearray(4 << 20)
        with os_errors(self._place.image, "cannot be read"):
            os.fsync(self._fd)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for first, count in slices(0, pages):
                got = read_all(self._fd, memoryview(buffer)[: count * PAGE_BYTES], first * PAGE_BYTES)
                table += digests_of(memoryview(buffer)[:got], still=True)
        return table

    def _read_back(self, first_page: int, buffer: memoryview) -> None:
        with os_errors(self._place.image, "cannot be read back"):
            got = read_all(self._fd, buffer, first_page * PAGE_BYTES)
        if pages_of(got) * PAGE_BYTES != len(buffer):
            raise RegionIOError(f"{self._place.image}: has become shorter", hint=_SAVE_AGAIN)
        buffer[got:] = bytes(len(buffer) - got)

    def _tell_the_truth(self, wrong: list[Run]) -> None:
        """Put what those pages really hold into the table, so that whoever tries again sends them."""
        for run in wrong:
            for first, pages in slices(*run):
                buffer = bytearray(pages * PAGE_BYTES)
                self._read_back(first, memoryview(buffer))
                self._table[first * DIGEST_BYTES : (first + pages) * DIGEST_BYTES] = digests_of(
                    buffer, still=True
                )

    def _sync(self) -> None:
        with os_errors(self._place.image, "cannot be made durable"):
            os.fdatasync(self._fd)

    def _settle(self, manifest: Manifest) -> None:
        """All is durable and as the table says: note it, with what `manifest` says besides."""
        with self._fatal():
            if not manifest.table_current:
                self._place.write_table(self._table)
            self._manifest = replace(manifest, table_current=True)
            self._place.write_manifest(self._manifest)

    def _ready(self) -> Manifest:
        if self._failed is not None:
            raise self._failed
        if self._manifest is None:
            raise ValueError("begin comes first")
        return self._manifest

    @contextmanager
    def _fatal(self) -> Iterator[None]:
        """An error inside leaves the image in a state that only a new `begin` can look at."""
        try:
            yield
        except RegionError as error:
            self._failed = error
            raise


class DirectorySource(Source):
    """Reads what is sealed in ROOT/NAME."""

    def __init__(self, root: str | os.PathLike[str], name: str, *, url: str = "") -> None:
        """Raises NotARegion, RegionBusy, RegionCorrupt, RegionIOError."""
        self.url = url or f"file://{Path(root).absolute()}"
        self._place = _Place(root, name)
        self._fd = -1
        nothing = NotARegion(
            f"{self._place.folder}: no region is saved there", hint="look at the URL and the name"
        )
        if not self._place.manifest.exists():
            raise nothing
        self._place.lock(exclusive=False)
        try:
            found = self._place.read_manifest()
            if found is None:
                raise nothing
            self._manifest = found
            with os_errors(self._place.image, "cannot be opened"):
                self._fd = os.open(self._place.image, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def identity(self) -> RegionIdentity:
        return self._manifest.identity

    def seal(self) -> Seal:
        if self._manifest.seal is None:
            raise RegionUnsealed(
                f"{self._place.folder}: the save there was not completed (epoch {self._manifest.epoch}, "
                f"last seal {self._manifest.last_number or 'never'})",
                hint="restore from another destination, or save again",
            )
        return self._manifest.seal

    def table(self) -> bytes:
        table = self._place.read_table(self._manifest.identity.pages)
        if table is None or table_digest(table) != self.seal().table_digest:
            raise RegionCorrupt(f"{self._place.table}: is damaged, or not of this seal", hint=_SAVE_AGAIN)
        return bytes(table)

    def read(self, first_page: int, pages: int) -> bytes:
        wanted = min(pages * PAGE_BYTES, self._manifest.identity.size_bytes - first_page * PAGE_BYTES)
        with os_errors(self._place.image, f"pages from {first_page} on cannot be read"):
            data = os.pread(self._fd, wanted, first_page * PAGE_BYTES)
            while len(data) < wanted and (
                more := os.pread(self._fd, wanted - len(data), first_page * PAGE_BYTES + len(data))
            ):
                data += more
        if len(data) != wanted:
            raise RegionCorrupt(
                f"{self._place.image}: ends within page {first_page + len(data) // PAGE_BYTES}",
                hint=_SAVE_AGAIN,
            )
        return data + bytes(pages * PAGE_BYTES - wanted) if wanted < pages * PAGE_BYTES else data

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._place.unlock()
