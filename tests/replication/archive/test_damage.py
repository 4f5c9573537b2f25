"""Every object of an archive, cut, flipped, swapped or taken away: what is wrong is named, and never restored."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sustain.errors import ArchiveError, NotAnArchive
from sustain.replication.archive import names
from sustain.replication.archive.proof import prove

from .conftest import Kit, Told

SEED = int(os.environ.get("SUSTAIN_SEED", "20260303"))
Damage = Callable[[Path, list[Path]], None]


def cut(path: Path, _: list[Path]) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_by_one(path: Path, _: list[Path]) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path, _: list[Path]) -> None:
    path.write_bytes(b"")


def lengthen(path: Path, _: list[Path]) -> None:
    path.write_bytes(path.read_bytes() + bytes(8))


def flip(path: Path, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(SEED).randrange(len(data))] ^= 1 << random.Random(SEED).randrange(8)
    path.write_bytes(data)


def flip_first(path: Path, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def flip_last(path: Path, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def remove(path: Path, _: list[Path]) -> None:
    path.unlink()


def swap(path: Path, others: list[Path]) -> None:
    """With its neighbour of the same kind, or with anything where there is none."""
    alike = [each for each in others if each != path and each.suffix == path.suffix] or [
        each for each in others if each != path
    ]
    alike[0].replace(path.with_name("aside"))
    path.replace(alike[0])
    path.with_name("aside").replace(path)


@pytest.fixture
def filled(directory: Kit) -> tuple[Kit, Told, list[Path]]:
    """An archive of one snapshot and a few segments, and the paths of what a restore needs."""
    kit = directory
    told = kit.tell()
    told.change(60)
    shipping = kit.ship("every=5ms")
    kit.arrived(told)
    for _ in range(3):
        told.change(20)
        kit.arrived(told)
    shipping.stop()
    return kit, told, [each for each in kit.objects() if "holds" not in str(each)]


DAMAGES: list[Damage] = [cut, cut_by_one, empty, lengthen, flip, flip_first, flip_last, remove, swap]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)
def test_each_object(filled: tuple[Kit, Told, list[Path]], damage: Damage) -> None:
    kit, told, objects = filled
    whole = kit.directory.with_name("whole")
    shutil.copytree(kit.directory, whole)
    assert len(objects) >= 6
    for path in objects:
        damage(path, objects)
        # None of them is there twice, so none can be done without.
        with pytest.raises(ArchiveError) as caught:
            kit.restore()
        if path.name == "manifest" and damage is remove:
            assert isinstance(caught.value, NotAnArchive)
        elif (segment := names.segment_name(str(path.relative_to(kit.directory)))) is not None:
            assert path.name in str(caught.value) or f"position {segment.first} " in str(caught.value)
        else:
            assert path.name in str(caught.value)
        assert not list(kit.lab.directory.glob("restored*")), "no half store is left"
        shutil.rmtree(kit.directory)
        shutil.copytree(whole, kit.directory)
    restored = kit.restore()
    assert kit.held(restored) == told.states[-1]


def test_proof_tells(filled: tuple[Kit, Told, list[Path]]) -> None:
    """`archive verify` finds the same, and what it found lies in the archive."""
    kit, told, objects = filled
    scratch = str(kit.lab.directory)
    proof, damaged = prove(kit.place, scratch, True, kit.said.append, lambda _done, _all: None)
    assert (proof.worked, damaged) == (True, [])
    assert proof.position == told.positions[-1]
    flip(next(each for each in objects if names.segment_name(str(each.relative_to(kit.directory)))), objects)
    proof, damaged = prove(kit.place, scratch, True, kit.said.append, lambda _done, _all: None)
    assert not proof.worked
    assert len(damaged) >= 1
    from sustain.replication.archive.contents import read_proof

    kept = read_proof(kit.place)
    assert kept == proof
    assert not list(kit.lab.directory.glob("sustain-verify*"))


def test_proofs_that_were_killed_are_swept(filled: tuple[Kit, Told, list[Path]]) -> None:
    """Old ones; not one that is at work."""
    kit, _, _ = filled
    killed, young = (kit.lab.directory / f"sustain-verify-{name}.sus" for name in ("killed", "young"))
    at_work = kit.lab.create("sustain-verify-work")
    for each in (killed, young):
        each.write_bytes(b"half a store")
    for each in (killed, Path(at_work.path)):
        os.utime(each, (1, 1))
    proof, _ = prove(kit.place, str(kit.lab.directory), False, kit.said.append, lambda _done, _all: None)
    assert proof.worked
    assert not killed.exists()
    assert young.exists()
    assert Path(at_work.path).exists()


def test_other_store_under_our_names(filled: tuple[Kit, Told, list[Path]], tmp_path: Path) -> None:
    """A whole segment of another store in the place of one of ours."""
    kit, _, objects = filled
    other = Kit(kit.lab, f"file://{tmp_path}/other")
    told = other.tell("other")
    told.change(60)
    other.ship("every=5ms", name="other")
    other.arrived(told)
    told.change(5)
    other.arrived(told)
    other.end()
    segments = [each for each in objects if names.segment_name(str(each.relative_to(kit.directory)))]
    foreign = [each for each in other.objects() if names.segment_name(str(each.relative_to(other.directory)))]
    segments[0].write_bytes(foreign[0].read_bytes())
    with pytest.raises(ArchiveError, match=segments[0].name):
        kit.restore()
