"""A region saved in an object store: `s3://bucket/prefix`. Immutable segments of pages, a manifest over them.

Used through `sink.open_sink`. Endpoint, region and credentials come from the environment, by the names that
obstore and AWS's own tools know (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …; `AWS_ALLOW_HTTP=true` for an endpoint
without TLS). The format and the order of steps are in docs/formats/region.md.

The manifest is only ever replaced on condition that it is still the one that was read. So of two saves the later one
wins, an epoch that is over stays over, and the state that was sealed last is whole until the next seal. A store
that ignores such conditions is found out and refused.

Rejected: one object per page or per 4 MiB of the region. The first costs a request for every page, the second
moves 4 MiB for a change of one page; a segment holds what changed, wherever it lies.
"""

import os
import secrets
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sustain.errors import (
    ConfigError,
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
from sustain.powerfail.regions.manifest import (
    DIGEST_BYTES,
    PAGE_BYTES,
    Manifest,
    RegionIdentity,
    Seal,
    Segment,
    check_name,
)
from sustain.powerfail.regions.scan import describe, digests_at, mismatches, slices, table_digest
from sustain.powerfail.regions.segments import Layout, Packer, Part, index_bytes, parts
from sustain.powerfail.regions.sink import Held, Sink, Source

if TYPE_CHECKING:
    from obstore.store import S3Store

_SEGMENT_BYTES = 16 << 20
_PARALLEL = 4
_RETRY_S = 30.0
_HEAD_BYTES = 64 << 10
_READ_PAGES = 256  # reads of that many pages and more are probably sequential: the next ones are fetched, too
_SAVE_AGAIN = "save the region again, or restore from another destination"


class _Bucket:
    """The objects of one region, with the errors of the store as ours."""

    def __init__(self, url: str, bucket: str, prefix: str, name: str) -> None:
        try:
            import obstore
        except ImportError:
            raise ConfigError(
                f"{url}: the package obstore is missing", hint="pip install 'sustain[s3]'"
            ) from None
        from obstore import store as stores

        self.url = url
        self._obstore = obstore
        base = "/".join(part for part in (prefix.strip("/"), check_name(name)) if part)
        http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
        config: dict[str, Any] = {}
        if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
            config["region"] = "us-east-1"
        with self.errors("cannot be used"):
            self._store: S3Store = stores.S3Store(
                bucket,
                prefix=base,
                client_options={"timeout": "60s", "connect_timeout": "10s", "allow_http": http},
                retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=_RETRY_S)},
                **config,
            )

    @contextmanager
    def errors(self, doing: str, *, may_miss: bool = False) -> Iterator[None]:
        """`may_miss`: that an object is not there is an answer, FileNotFoundError."""
        errors = self._obstore.exceptions
        try:
            yield
        except (errors.AlreadyExistsError, errors.PreconditionError):
            raise RegionBusy(
                f"{self.url}: another save has begun there since",
                hint="one save at a time; the later one wins",
            ) from None
        except (errors.BaseError, OSError) as error:
            if may_miss and isinstance(error, FileNotFoundError):
                raise
            text = str(error).strip().splitlines()
            raise RegionIOError(
                f"{self.url}: {doing}: {text[0][:300] if text else type(error).__name__}",
                hint="look at the bucket's name, AWS_ENDPOINT_URL, the credentials and the network",
            ) from None

    def read_manifest(self) -> tuple[Manifest, str | None] | None:
        """The manifest and its tag. None: there is none."""
        try:
            with self.errors("the manifest cannot be read", may_miss=True):
                got = self._obstore.get(self._store, "manifest")
                data, tag = bytes(got.bytes()), got.meta["e_tag"]
        except FileNotFoundError:
            return None
        return manifests.decode(data, f"{self.url}: manifest"), tag

    def write_manifest(self, manifest: Manifest, tag: str | None) -> tuple[Manifest, str]:
        """Replace the one with that tag (None: there must be none); as written, and its tag. Raises RegionBusy when
        it is another one now."""
        manifest = replace(manifest, nonce=secrets.token_bytes(8))
        mode: Any = "create" if tag is None else {"e_tag": tag}
        data = manifests.encode(manifest)
        try:
            with self.errors("the manifest cannot be written"):
                got = self._obstore.put(self._store, "manifest", data, mode=mode, use_multipart=False)
        except RegionBusy:
            # The answer to a write that succeeded may be lost, and the client then tries again.
            now = self.read_manifest()
            if now is None or now[0].nonce != manifest.nonce or now[1] is None:
                raise
            return manifest, now[1]
        if not got["e_tag"]:
            raise RegionIOError(
                f"{self.url}: gives objects no tag", hint="use a store with conditional writes"
            )
        return manifest, got["e_tag"]

    def check_conditions(self) -> None:
        """Raises RegionIOError when the store writes although the condition does not hold."""
        probe = f"probe-{secrets.token_hex(8)}"
        with self.errors("cannot be written to"):
            self._obstore.put(self._store, probe, b"1", mode="create", use_multipart=False)
        try:
            for mode in ("create", {"e_tag": '"0123456789abcdef0123456789abcdef"'}):
                self._refused(probe, mode)
        finally:
            with self.errors("cannot be deleted from"):
                self._obstore.delete(self._store, probe)

    def _refused(self, probe: str, mode: Any) -> None:
        try:
            with self.errors("cannot be written to"):
                self._obstore.put(self._store, probe, b"2", mode=mode, use_multipart=False)
        except RegionBusy:
            return
        raise RegionIOError(
            f"{self.url}: the store ignores conditional writes, so it cannot keep two hosts apart",
            hint="use a store with If-Match and If-None-Match for PUT, as S3 has them",
        )

    def put_segment(self, segment: Segment, data: bytes) -> None:
        with self.errors("a segment cannot be written"):
            self._obstore.put(self._store, f"segments/{segment.name}", data, use_multipart=False)

    def get(self, segment: Segment, start: int, length: int) -> bytes:
        """Raises RegionCorrupt when it is gone or cut off."""
        where = f"{self.url}: segment {segment.name}"
        try:
            with self.errors(f"segment {segment.name} cannot be read", may_miss=True):
                data = bytes(
                    self._obstore.get_range(
                        self._store, f"segments/{segment.name}", start=start, length=length
                    )
                )
        except FileNotFoundError:
            raise RegionCorrupt(
                f"{where} is not there", hint="a save has been sealed there meanwhile? then restore again"
            ) from None
        if len(data) != length:
            raise RegionCorrupt(f"{where} ends early", hint=_SAVE_AGAIN)
        return data

    def index(self, segment: Segment, region: RegionIdentity) -> list[Part]:
        """What lies in a segment. Raises RegionCorrupt, RegionIOError."""
        where = f"{self.url}: segment {segment.name}"
        head = self.get(segment, 0, min(_HEAD_BYTES, segment.size_bytes))
        length = index_bytes(head, segment, where)
        if length > len(head):
            head += self.get(segment, len(head), length - len(head))
        return list(parts(head[:length], segment, region.uuid, region.pages, where))

    def layout(
        self, segments: tuple[Segment, ...], region: RegionIdentity, pool: ThreadPoolExecutor
    ) -> Layout:
        layout = Layout(region.pages)
        for number, found in enumerate(pool.map(lambda each: self.index(each, region), segments)):
            for part in found:
                layout.put(number, part)
        return layout

    def delete(self, segments: list[Segment]) -> None:
        with self.errors("cannot be deleted from"):
            self._obstore.delete(self._store, [f"segments/{each.name}" for each in segments])

    def sweep(self, segments: tuple[Segment, ...]) -> None:
        """Delete the segments that nobody names."""
        named = {segment.name for segment in segments}
        with self.errors("cannot be listed or deleted from"):
            found = [each["path"] for page in self._obstore.list(self._store, "segments") for each in page]
            garbage = [path for path in found if path.rpartition("/")[2] not in named]
            if garbage:
                self._obstore.delete(self._store, garbage)


class ObjectSink(Sink):
    """Saves into BUCKET/PREFIX/NAME."""

    def __init__(self, url: str, bucket: str, prefix: str, name: str) -> None:
        self.url = url
        self._bucket = _Bucket(url, bucket, prefix, name)
        self._pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="segments")
        self._manifest: Manifest | None = None
        self._tag: str | None = None
        self._layout = Layout(0)
        self._packer = Packer()
        self._sending: list[tuple[Segment, Future[None]]] = []
        self._failed: RegionError | None = None

    def begin(self, identity: RegionIdentity, epoch: int) -> Held:
        bucket = self._bucket
        found = bucket.read_manifest()
        if found is None:
            bucket.check_conditions()
            manifest, tag = Manifest(identity, epoch), None
        else:
            manifest, tag = found
            self._admit(manifest, identity, epoch)
        resized = manifest.identity.size_bytes != identity.size_bytes
        if resized:  # a manifest is of one size, and so is all that it names
            manifest = replace(manifest, identity=identity, seal=None, sealed_segments=0, segments=())
        manifest = replace(manifest, epoch=epoch)
        self._manifest, self._tag = bucket.write_manifest(manifest, tag)
        bucket.sweep(manifest.segments)
        self._layout = bucket.layout(manifest.segments, identity, self._pool)
        table = None if resized else bytes(self._layout.table)
        return Held(table, manifest.seal, manifest.last_number)

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

    def write(self, first_page: int, data: bytes | memoryview, digests: bytes) -> None:
        manifest = self._ready()
        pages = len(digests) // DIGEST_BYTES
        if len(data) != pages * PAGE_BYTES or not 0 <= first_page <= manifest.identity.pages - pages:
            raise ValueError(
                f"pages {first_page} to {first_page + pages - 1} are not {len(data)} bytes of the region"
            )
        if wrong := mismatches(data, digests, first_page):
            raise RegionCorrupt(
                f"{self.url}: {describe(wrong)}: what is to be written is not what its digest says",
                hint="memory damages data, or a program changes it; save again",
            )
        self._packer.add(first_page, data, digests)
        if self._packer.data_bytes >= _SEGMENT_BYTES:
            self._send()

    def flush(self) -> None:
        self._ready()
        self._compact()
        self._commit()

    def seal(self, seal: Seal) -> None:
        manifest = self._ready()
        if self._packer.pages or self._sending:
            raise ValueError("flush comes before seal")
        if seal.epoch != manifest.epoch or seal.number <= manifest.last_number:
            raise WrongGeneration(
                f"{self.url}: seal {seal.number} of epoch {seal.epoch} is not newer than seal "
                f"{manifest.last_number} of epoch {manifest.epoch}",
                hint="another save was sealed there meanwhile; begin anew",
            )
        if table_digest(self._layout.table) != seal.table_digest:
            raise RegionCorrupt(f"{self.url}: holds other pages than those to be sealed", hint=_SAVE_AGAIN)
        kept = self._in_use(manifest.segments, 0)
        segments = tuple(manifest.segments[at] for at in kept)
        sealed = replace(
            manifest, seal=seal, last_number=seal.number, segments=segments, sealed_segments=len(segments)
        )
        with self._fatal():
            self._manifest, self._tag = self._bucket.write_manifest(sealed, self._tag)
        self._layout.renumber(kept)

    def close(self) -> None:
        self._manifest = None
        self._pool.shutdown(wait=True, cancel_futures=True)

    # steps

    def _send(self) -> None:
        """What was gathered goes on its way as a segment, and counts from now on."""
        manifest = self._ready()
        segment, data = self._packer.pack(manifest.identity.uuid)
        self._packer = Packer()
        while sum(not sent.done() for _, sent in self._sending) >= _PARALLEL:
            next(sent for _, sent in self._sending if not sent.done()).exception()
        self._sending.append((segment, self._pool.submit(self._bucket.put_segment, segment, data)))
        number = len(manifest.segments) + len(self._sending) - 1
        length = index_bytes(data[:64], segment, self.url)
        for part in parts(data[:length], segment, manifest.identity.uuid, manifest.identity.pages, self.url):
            self._layout.put(number, part)

    def _commit(self) -> None:
        """Wait for the segments, and name them in the manifest. What the seal does not cover and nothing counts of is
        left out, and deleted."""
        if self._packer.pages:
            self._send()
        if not self._sending:
            return
        manifest = self._ready()
        with self._fatal():
            for _, sent in self._sending:
                sent.result()
            every = manifest.segments + tuple(segment for segment, _ in self._sending)
            kept = self._in_use(every, manifest.sealed_segments)
            segments = tuple(every[at] for at in kept)
            self._manifest, self._tag = self._bucket.write_manifest(
                replace(manifest, segments=segments), self._tag
            )
            self._layout.renumber(kept)
            self._sending.clear()
            if len(segments) < len(every):
                self._bucket.delete([each for each in every if each not in segments])

    def _in_use(self, segments: tuple[Segment, ...], sealed: int) -> list[int]:
        live = self._layout.live_pages(len(segments))
        return [at for at in range(len(segments)) if at < sealed or live[at]]

    def _compact(self) -> None:
        """Pack the pages that count of the emptiest segments anew, when too little of all counts."""
        if self._packer.pages:
            self._send()  # so that the layout knows what is newest
        segments = self._ready().segments
        live = self._layout.live_pages(len(segments))
        if sum(each.pages for each in segments) <= 2 * sum(live) + _SEGMENT_BYTES // PAGE_BYTES:
            return
        shares = {at: live[at] / each.pages for at, each in enumerate(segments) if live[at]}
        for number in sorted((at for at in shares if shares[at] < 0.5), key=lambda at: shares[at])[:2]:
            for run in list(self._layout.pages_of(number)):
                for first, pages in slices(*run, _READ_PAGES):
                    data = _read(self._bucket, self._layout, segments, first, pages)
                    self.write(first, data, digests_at(self._layout.table, first, pages))

    def _ready(self) -> Manifest:
        if self._failed is not None:
            raise self._failed
        if self._manifest is None:
            raise ValueError("begin comes first")
        return self._manifest

    @contextmanager
    def _fatal(self) -> Iterator[None]:
        """An error inside leaves what only a new `begin` can look at."""
        try:
            yield
        except RegionError as error:
            self._failed = error
            raise


class ObjectSource(Source):
    """Reads what is sealed in BUCKET/PREFIX/NAME."""

    def __init__(self, url: str, bucket: str, prefix: str, name: str) -> None:
        """Raises NotARegion, RegionCorrupt, RegionIOError, ConfigError."""
        self.url = url
        self._bucket = _Bucket(url, bucket, prefix, name)
        found = self._bucket.read_manifest()
        if found is None:
            raise NotARegion(
                f"{url}: no region is saved there as {name}", hint="look at the URL and the name"
            )
        self._manifest = found[0]
        self._segments = self._manifest.segments[: self._manifest.sealed_segments]
        self._layout: Layout | None = None
        self._pool = ThreadPoolExecutor(2 * _PARALLEL, thread_name_prefix="segments")
        self._coming: dict[int, Future[bytes]] = {}

    def identity(self) -> RegionIdentity:
        return self._manifest.identity

    def seal(self) -> Seal:
        if self._manifest.seal is None:
            raise RegionUnsealed(
                f"{self.url}: the save there was not completed (epoch {self._manifest.epoch}, "
                f"last seal {self._manifest.last_number or 'never'})",
                hint="restore from another destination, or save again",
            )
        return self._manifest.seal

    def table(self) -> bytes:
        table = bytes(self._places().table)
        if table_digest(table) != self.seal().table_digest:
            raise RegionCorrupt(f"{self.url}: the segments are not those of the seal", hint=_SAVE_AGAIN)
        return table

    def read(self, first_page: int, pages: int) -> bytes:
        if pages < _READ_PAGES:
            return self._read(first_page, pages)
        coming = self._coming.pop(first_page, None)
        if coming is None:
            for each in self._coming.values():
                each.cancel()
            self._coming.clear()
        for at in range(1, 2 * _PARALLEL):
            next_page = first_page + at * pages
            if next_page not in self._coming and next_page + pages <= self._manifest.identity.pages:
                self._coming[next_page] = self._pool.submit(self._read, next_page, pages)
        data = coming.result() if coming is not None else b""
        return data if len(data) == pages * PAGE_BYTES else self._read(first_page, pages)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, first_page: int, pages: int) -> bytes:
        return _read(self._bucket, self._places(), self._segments, first_page, pages)

    def _places(self) -> Layout:
        self.seal()
        if self._layout is None:
            self._layout = self._bucket.layout(self._segments, self._manifest.identity, self._pool)
        return self._layout


def _read(
    bucket: _Bucket, layout: Layout, segments: tuple[Segment, ...], first_page: int, pages: int
) -> bytes:
    data = bytearray(pages * PAGE_BYTES)
    for first, count, segment, offset in layout.spans(first_page, pages):
        if segment >= 0:
            at = (first - first_page) * PAGE_BYTES
            data[at : at + count * PAGE_BYTES] = bucket.get(segments[segment], offset, count * PAGE_BYTES)
    return bytes(data)
