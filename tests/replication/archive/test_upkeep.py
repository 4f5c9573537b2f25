"""Compaction and retention, also under restores that are at work."""

import os
import threading
import time

import pytest

from sustain.errors import NotRestorable
from sustain.replication.archive import names, upkeep
from sustain.replication.archive.contents import read_contents, read_proof
from sustain.replication.archive.documents import Hold, Manifest, Proof, encode
from sustain.replication.archive.place import Place
from sustain.replication.archive.sources import Sources
from sustain.replication.archive.upkeep import Upkeep
from sustain.replication.urls import parse_archive

from .conftest import Kit, Told, fails, until


class Ships:
    """The newest manifest of a place, as whoever ships would have it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.floor = 0
        self.proofs: list[Proof] = []

    def manifest(self) -> Manifest:
        return read_contents(self._place).newest

    def raise_floor(self, floor: int) -> None:
        self.floor = floor

    def note_proof(self, proof: Proof) -> None:
        self.proofs.append(proof)


def keeper(kit: Kit, options: str = "") -> tuple[Upkeep, Ships]:
    ships = Ships(kit.place)
    return Upkeep(parse_archive(f"{kit.url}?{options}"), kit.place, ships, kit.said.append), ships


def proof_of(kit: Kit) -> Proof:
    return Proof(
        store=read_contents(kit.place).newest.store,
        at_ns=1,
        worked=True,
        position=1,
        time_ns=1,
        duration_s=1.0,
        restored_bytes=1,
        objects=1,
        everything=False,
    )


def many(kit: Kit, segments: int) -> Told:
    """An archive of many small segments."""
    told = kit.tell()
    told.change(10)
    shipping = kit.ship("every=1ms")
    kit.arrived(told)
    for _ in range(segments):
        told.change(2)
        kit.arrived(told)
    shipping.stop()
    return told


def test_compaction(kit: Kit) -> None:
    told = many(kit, 40)
    before = kit.segments()
    looking, _ = keeper(kit, "segment=1MiB")
    looking.look()
    after = kit.segments()
    assert len(after) < len(before) / 4
    assert (after[0].first, max(each.last for each in after)) == (before[0].first, before[-1].last)
    assert kit.held(kit.restore()) == told.states[-1]
    for position in told.positions[12::9]:
        assert kit.held(kit.restore(position=position)) == told.at(position)


def test_compaction_is_of_whole_segments_only(directory: Kit) -> None:
    """A damaged one stops it, is told, and stays as it is for whoever looks into it."""
    kit = directory
    many(kit, 40)
    path = kit.directory / kit.segments()[5].path
    path.write_bytes(path.read_bytes()[:-1])
    before = kit.segments()
    looking, ships = keeper(kit, "segment=1MiB&keep=0s")
    kit.place.put(names.PROOF, encode(proof_of(kit)))
    with pytest.raises(Exception, match=path.name):
        looking.look()
    assert kit.segments() == before
    assert ships.proofs == [proof_of(kit)], "it stops nothing else"
    assert ships.floor == kit.snapshots()[-1].start


def test_retention(kit: Kit) -> None:
    """What is older than asked for goes in two steps; the newest snapshot stays; the rest can be restored."""
    told = kit.tell()
    told.change(10)
    kit.ship("every=1ms&snapshot=1ms")
    for count in range(1, 5):
        while len(kit.snapshots()) < count:
            told.change(3)
            kit.arrived(told)
    first, *_, last = kit.snapshots()
    looking, ships = keeper(kit, "keep=0s")
    looking.look()
    assert ships.floor >= last.start > first.start
    assert first in kit.snapshots(), "nothing goes before the manifest has told of it"
    newest = kit.snapshots()[-1]
    manifest = replace_floor(kit, newest.start)
    contents = read_contents(kit.place)
    upkeep.delete_condemned(contents, manifest, time.time_ns())
    assert first not in kit.snapshots()
    assert all(each.last > newest.start for each in kit.segments())
    kept = {each.path for each in kit.place.list() if names.part_name(each.path)}
    assert kept
    assert kit.held(kit.restore()) == told.states[-1]
    fails(lambda: kit.restore(position=first.usable), NotRestorable)


def replace_floor(kit: Kit, floor: int) -> Manifest:
    """The manifest with that floor."""
    import msgspec

    return msgspec.structs.replace(read_contents(kit.place).newest, floor=floor)


def test_retention_waits_for_holds(directory: Kit) -> None:
    kit = directory
    told = many(kit, 5)
    contents = read_contents(kit.place)
    path = f"{names.HOLDS}/0011"
    kit.place.put(path, encode(Hold(at_ns=time.time_ns(), who="a restore")))
    manifest = replace_floor(kit, told.positions[-1])
    assert upkeep.delete_condemned(contents, manifest, time.time_ns()) == []
    later_ns = time.time_ns() + int((upkeep.HOLD_S + 1) * 1e9)
    assert path in upkeep.delete_condemned(read_contents(kit.place), manifest, later_ns)


def test_holds_that_nobody_understands(directory: Kit) -> None:
    """They hold by the store's clock, and go after their time; one of a reader whose clock is wrong holds, too."""
    kit = directory
    told = many(kit, 5)
    odd, behind = f"{names.HOLDS}/odd", f"{names.HOLDS}/behind"
    kit.place.put(odd, bytes(100))
    kit.place.put(behind, encode(Hold(at_ns=5, who="a reader of 1970")))
    manifest = replace_floor(kit, told.positions[-1])
    assert upkeep.delete_condemned(read_contents(kit.place), manifest, time.time_ns()) == []
    later_ns = time.time_ns() + int((upkeep.HOLD_S + 1) * 1e9)
    assert {odd, behind} <= set(upkeep.delete_condemned(read_contents(kit.place), manifest, later_ns))


def test_damaged_snapshots_stop_no_retention(directory: Kit) -> None:
    """What a snapshot that is needed no more had named goes as pages of nobody; of one that counts, all pages stay."""
    kit = directory
    told = many(kit, 5)
    newest = kit.snapshots()[-1]
    (kit.directory / newest.path).write_bytes(b"damaged")
    kept = [each.path for each in kit.place.list() if names.part_name(each.path)]
    later_ns = time.time_ns() + 2 * 86400 * 10**9
    upkeep.delete_condemned(read_contents(kit.place), replace_floor(kit, newest.start), later_ns)
    assert {each.path for each in kit.place.list()} >= {*kept, newest.path}
    upkeep.delete_condemned(read_contents(kit.place), replace_floor(kit, told.positions[-1]), later_ns)
    assert not {each.path for each in kit.place.list()} & {*kept, newest.path}


def test_compaction_under_a_restore(directory: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are compacted away behind each look of a restore, and it finds what took their place."""
    kit = directory
    told = many(kit, 40)
    looking, _ = keeper(kit, "segment=1MiB")
    look, looks = Sources.look, 0

    def and_compacted(sources: Sources) -> None:
        nonlocal looks
        look(sources)
        looks += 1
        looking.look()

    monkeypatch.setattr(Sources, "look", and_compacted)
    wanted = told.positions[-9]
    restored = kit.restore(position=wanted)
    assert looks > 1
    assert restored.position == wanted
    assert not restored.damaged
    assert kit.held(restored) == told.at(wanted)


def test_proofs_are_seen(directory: Kit) -> None:
    """A restore is tried when it is due, in a process of its own; whoever made the last proof, it is told."""
    kit = directory
    many(kit, 2)
    looking, ships = keeper(kit, "verify=1h")
    looking.look()
    assert ships.proofs == []
    until(lambda: read_proof(kit.place), "a proof")
    looking.look()
    looking.end()
    assert [each.worked for each in ships.proofs] == [True]
    kit.place.put(names.PROOF, b"damaged")
    looking.look()
    until(lambda: kit.place.get(names.PROOF) != b"damaged", "another proof")
    looking.end()


def test_garbage_of_interrupted_copies(directory: Kit) -> None:
    kit = directory
    told = many(kit, 2)
    path = names.part_path(1, "00112233aabbccdd", 0)
    kit.place.put(path, b"pages of a copy that came to nothing")
    manifest = read_contents(kit.place).newest
    upkeep.delete_condemned(read_contents(kit.place), manifest, time.time_ns())
    assert (kit.directory / path).exists(), "it may be of one that is being made"
    later_ns = time.time_ns() + 2 * 86400 * 10**9
    assert upkeep.delete_condemned(read_contents(kit.place), manifest, later_ns) == [path]
    assert kit.held(kit.restore()) == told.states[-1]


def test_restores_while_all_of_it_goes_on(directory: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits, snapshots, compaction and retention, each as often as it goes, and restores that are always exact."""
    monkeypatch.setattr(upkeep.Upkeep.__init__, "__defaults__", (0.02,))
    kit = directory
    told = kit.tell()
    told.change(10)
    shipping = kit.ship("every=1ms&snapshot=20ms&keep=100ms&segment=64KiB")
    kit.arrived(told)
    restored, ending = [], threading.Event()

    def commit() -> None:
        while not ending.wait(0.002):
            told.change(1)

    committing = threading.Thread(target=commit)
    committing.start()
    try:
        deadline = time.monotonic() + float(os.environ.get("SUSTAIN_UPKEEP_S", "4"))
        while time.monotonic() < deadline:
            restored.append(kit.restore())
    finally:
        ending.set()
        committing.join()
    first = read_contents(kit.place)
    shipping.stop()
    assert len(restored) > 10
    for each in restored[:: max(1, len(restored) // 20)]:
        assert kit.held(each) == told.at(each.position)
        assert not each.damaged
    assert first.newest.floor > 0, "retention was at work"
    assert not kit.said
    assert not [text for text in shipping.said if "upkeep" in text]
