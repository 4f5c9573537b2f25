"""Regions in an object store: the later save wins, the sealed state stays, damage is found, the room is bounded."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

from sustain import RegionBusy, RegionCorrupt, RegionError, RegionIOError, RegionUnsealed
from sustain.powerfail.regions import objects
from sustain.powerfail.regions.manifest import PAGE_BYTES, RegionIdentity, decode
from sustain.powerfail.regions.objects import ObjectSink, ObjectSource
from sustain.powerfail.regions.scan import differing, digests_of, table_digest
from sustain.powerfail.regions.segments import Layout, Packer, index_bytes, parts
from tests.powerfail.regions.test_places import NAME, REGION, SIZE, a_seal, content, put


def sink(bucket: str) -> ObjectSink:
    return ObjectSink(bucket, bucket.removeprefix("s3://"), "p", NAME)


def source(bucket: str) -> ObjectSource:
    return ObjectSource(bucket, bucket.removeprefix("s3://"), "p", NAME)


def store(bucket: str) -> S3Store:
    return S3Store(bucket.removeprefix("s3://"), prefix=f"p/{NAME}", client_options={"allow_http": True})


def names(bucket: str) -> list[str]:
    return sorted(each["path"] for page in obstore.list(store(bucket)) for each in page)


def save(bucket: str, data: bytes, number: int = 1) -> None:
    with sink(bucket) as to:
        to.begin(REGION, 1)
        put(to, data)
        to.flush()
        to.seal(a_seal(data, number))


def restore(bucket: str) -> bytes:
    with source(bucket) as of:
        table, data = of.table(), of.read(0, of.identity().pages)
        if digests_of(data) != table:
            raise RegionCorrupt("pages")
        return data[: of.identity().size_bytes]


def test_objects_are_as_documented(bucket: str) -> None:
    save(bucket, content(1))
    segment, manifest = names(bucket)[1], names(bucket)[0]
    assert manifest.endswith("manifest")
    found = decode(bytes(obstore.get(store(bucket), "manifest").bytes()), "")
    assert segment.endswith(f"segments/{found.segments[0].name}")
    assert found.sealed_segments == 1
    assert any(found.nonce)


def test_the_sealed_state_stays_until_the_next_seal(bucket: str) -> None:
    old, new = content(1), content(2)
    save(bucket, old)
    with sink(bucket) as to:
        to.begin(REGION, 1)
        put(to, new)
        to.flush()
        assert restore(bucket) == old
        with source(bucket) as running:
            to.seal(a_seal(new, 2))
            assert restore(bucket) == new
            data = running.read(0, REGION.pages)  # a restore that had begun before is not disturbed
            assert data[:SIZE] == old
    with sink(bucket) as to:
        assert to.begin(REGION, 1).table == digests_of(new)


def test_the_later_save_wins(bucket: str) -> None:
    save(bucket, content(1))
    with sink(bucket) as earlier, sink(bucket) as later:
        earlier.begin(REGION, 1)
        put(earlier, content(2))
        later.begin(REGION, 1)
        with pytest.raises(RegionBusy, match="another save"):
            earlier.flush()
        with pytest.raises(RegionBusy):
            earlier.seal(a_seal(content(1), 2))
        put(later, content(3))
        later.flush()
        later.seal(a_seal(content(3), 2))
    assert restore(bucket) == content(3)
    with sink(bucket) as to:
        to.begin(REGION, 1)
    assert len(names(bucket)) == 2  # what the earlier one had left is swept


def test_an_answer_that_is_lost_is_no_conflict(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = obstore.put

    def lossy(where: S3Store, path: str, *args: Any, **options: Any) -> Any:
        done = real(where, path, *args, **options)
        if path == "manifest":  # the client did not hear of it, and tries again
            done = real(where, path, *args, **options)
        return done

    monkeypatch.setattr(obstore, "put", lossy)
    save(bucket, content(1))
    assert restore(bucket) == content(1)


def test_a_store_that_ignores_conditions_is_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = obstore.put

    def careless(*args: Any, mode: Any = None, **options: Any) -> Any:
        return real(*args, **options)

    monkeypatch.setattr(obstore, "put", careless)
    with sink(bucket) as to, pytest.raises(RegionIOError, match="conditional writes"):
        to.begin(REGION, 1)
    assert names(bucket) == []


def test_any_object_cut_off_or_changed_is_refused(bucket: str) -> None:
    save(bucket, content(1))
    where = store(bucket)
    (segment,) = [each["path"] for page in obstore.list(where, "segments") for each in page]
    segment = "segments/" + segment.rpartition("/")[2]
    for path in ("manifest", segment):
        good = bytes(obstore.get(where, path).bytes())
        draw = random.Random(path)
        cuts = [0, 1, 63, 64, len(good) // 2, len(good) - 1]
        flips = [*range(0, 64, 9), *(draw.randrange(len(good)) for _ in range(40)), len(good) - 1]
        # The reserved bytes of a segment's header are part of its index, too.
        for bad in [good[:cut] for cut in cuts] + [flipped(good, at) for at in flips]:
            obstore.put(where, path, bad)
            with pytest.raises(RegionError):
                restore(bucket)
        obstore.delete(where, path)
        with pytest.raises(RegionError):
            restore(bucket)
        obstore.put(where, path, good)
    assert restore(bucket) == content(1)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x08]) + data[at + 1 :]


def test_many_saves_against_a_model(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes with and without a seal, small segments: the content is right after each, and the room stays bounded."""
    monkeypatch.setattr(objects, "_SEGMENT_BYTES", 8 * PAGE_BYTES)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    now = bytearray(content(seed) + bytes(-SIZE % PAGE_BYTES))
    sealed = b""
    number = 0
    most = 0
    for _ in range(6):
        with sink(bucket) as to:
            held = to.begin(REGION, 1).table
            assert held is not None
            for _ in range(draw.randrange(1, 12)):
                for _ in range(draw.randrange(0, 15)):
                    page = draw.randrange(REGION.pages)
                    span = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
                    now[span] = bytes(PAGE_BYTES) if draw.random() < 0.2 else draw.randbytes(PAGE_BYTES)
                now[SIZE:] = bytes(len(now) - SIZE)
                table = digests_of(now)
                for first, pages in differing(held, table):
                    put(to, bytes(now), first, pages)
                held = table
                to.flush()
                if sealed:
                    assert restore(bucket) == sealed
                most = max(most, total_pages(bucket))
            if draw.random() < 0.7:
                number += 1
                to.seal(replace(a_seal(bytes(now), number), table_digest=table_digest(held)))
                sealed = bytes(now[:SIZE])
                assert restore(bucket) == sealed
    assert most < 6 * REGION.pages
    with sink(bucket) as to:
        assert to.begin(REGION, 1).table == digests_of(now)


def total_pages(bucket: str) -> int:
    manifest = decode(bytes(obstore.get(store(bucket), "manifest").bytes()), "")
    kept = {f"p/{NAME}/segments/{each.name}" for each in manifest.segments} | {f"p/{NAME}/manifest"}
    left = {name if name.startswith("p/") else f"p/{NAME}/{name}" for name in names(bucket)}
    assert kept <= left
    return sum(each.pages for each in manifest.segments)


def test_hours_of_passes_over_the_same_pages_take_bounded_room(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_SEGMENT_BYTES", 8 * PAGE_BYTES)
    data = bytearray(random.Random(1).randbytes(REGION.pages * PAGE_BYTES))
    data[SIZE:] = bytes(len(data) - SIZE)
    with sink(bucket) as to:
        to.begin(REGION, 1)
        put(to, bytes(data))
        to.flush()
        to.seal(a_seal(bytes(data[:SIZE]), 1))
        most = 0
        for turn in range(60):
            for page in ((turn * 7 + 3) % 39, turn % 13, 20):
                data[page * PAGE_BYTES : page * PAGE_BYTES + 8] = turn.to_bytes(8, "little")
                put(to, bytes(data), page, 1)
            to.flush()
            most = max(most, total_pages(bucket))
        to.seal(a_seal(bytes(data[:SIZE]), 2))
    assert most < 5 * REGION.pages
    assert restore(bucket) == bytes(data[:SIZE])


def test_reading_ahead_gives_the_same(bucket: str) -> None:
    size = 3000 * PAGE_BYTES
    data = random.Random(5).randbytes(size)
    region = RegionIdentity(b"u" * 16, size, NAME)
    with sink(bucket) as to:
        to.begin(region, 1)
        for first in range(0, 3000, 500):
            put(to, data, first, 500)
        to.flush()
        to.seal(a_seal(data, 1))
    with source(bucket) as of:
        for step, order in (
            (256, range(0, 3000, 256)),
            (300, range(0, 3000, 300)),
            (256, (512, 0, 1024, 256)),
        ):
            for first in order:
                pages = min(step, 3000 - first)
                assert of.read(first, pages) == data[first * PAGE_BYTES : (first + pages) * PAGE_BYTES]


def test_nobody_answers(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(objects, "_RETRY_S", 0.2)
    with sink(bucket) as to, pytest.raises(RegionIOError, match="manifest cannot be read") as caught:
        to.begin(REGION, 1)
    assert "AWS_ENDPOINT_URL" in caught.value.hint


def test_no_such_bucket(bucket: str) -> None:
    with sink(f"{bucket}-missing") as to, pytest.raises(RegionIOError, match="missing"):
        to.begin(REGION, 1)


@pytest.mark.parametrize("fails", ["segments/", "manifest"])
def test_an_upload_that_fails_is_an_error_and_never_a_seal(
    bucket: str, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    save(bucket, content(1))
    real: Callable[..., Any] = obstore.put

    def failing(where: S3Store, path: str, *args: Any, **options: Any) -> Any:
        if path.startswith(fails):
            raise obstore.exceptions.GenericError("HTTP 507 Insufficient Storage")
        return real(where, path, *args, **options)

    with sink(bucket) as to:
        to.begin(REGION, 1)
        put(to, content(2))
        with monkeypatch.context() as patch:
            patch.setattr(obstore, "put", failing)
            with pytest.raises(RegionIOError, match="507"):
                to.flush()
        with pytest.raises(RegionIOError):
            to.seal(a_seal(content(2), 2))
    assert restore(bucket) == content(1)
    save(bucket, content(2), number=2)
    assert restore(bucket) == content(2)


class Crash(BaseException):
    """The process ends here."""


def test_a_crash_before_any_request_leaves_the_old_or_the_new(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_SEGMENT_BYTES", 10 * PAGE_BYTES)
    old = content(1)
    save(bucket, old)
    for steps in range(60):
        new = content(100 + steps)
        left = [steps]
        with monkeypatch.context() as patch:
            for name in ("put", "delete"):
                patch.setattr(obstore, name, crashing(getattr(obstore, name), left))
            to = sink(bucket)
            try:
                to.begin(REGION, 1)
                put(to, new)
                to.flush()
                to.seal(a_seal(new, steps + 2))
                done = True
            except Crash:
                done = False
            to.close()
        found = restore(bucket)
        assert found == new if done else found in (old, new)
        old = found
        if done:
            assert steps >= 4
            return
    raise AssertionError("never came to an end")


def crashing(real: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """`real`, as long as there are steps left."""

    def call(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Crash
        return real(*args, **options)

    return call


def test_unsealed_segments_are_not_read(bucket: str) -> None:
    with sink(bucket) as to:
        to.begin(REGION, 1)
        put(to, content(1))
        to.flush()
        with source(bucket) as of, pytest.raises(RegionUnsealed):
            of.read(0, 1)


# segments


def test_segments_are_read_as_they_were_packed() -> None:
    data = content(3)
    data += bytes(-len(data) % PAGE_BYTES)
    packer = Packer()
    order = [(5, 3), (8, 2), (0, 1), (30, 4), (5, 1)]
    for first, pages in order:
        span = data[first * PAGE_BYTES : (first + pages) * PAGE_BYTES]
        packer.add(first, span, digests_of(span))
    segment, packed = packer.pack(b"u" * 16)
    assert segment.pages == 11
    assert segment.size_bytes == len(packed)
    length = index_bytes(packed[:64], segment, "")
    layout = Layout(40)
    for part in parts(packed[:length], segment, b"u" * 16, 40, ""):
        layout.put(0, part)
    for at, count, number, offset in layout.spans(0, 40):
        if number >= 0:
            assert (
                packed[offset : offset + count * PAGE_BYTES]
                == data[at * PAGE_BYTES : (at + count) * PAGE_BYTES]
            )
    assert sum(layout.live_pages(1)) == 10
    assert [page for first, n in layout.pages_of(0) for page in range(first, first + n)] == [
        0,
        *range(5, 10),
        *range(30, 34),
    ]
    with pytest.raises(RegionCorrupt):
        list(parts(packed[:length], segment, b"u" * 16, 33, ""))
    with pytest.raises(RegionCorrupt):
        list(parts(packed[:length], segment, b"v" * 16, 40, ""))
