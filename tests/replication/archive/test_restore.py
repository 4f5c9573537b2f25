"""What is archived can be restored: the newest position, any older one, any time; across epochs and archives."""

import os
import random
from pathlib import Path

import pytest

import sustain
from sustain._native import Replica
from sustain.errors import ConfigError, NotAnArchive, NotRestorable

from .conftest import Kit, fails

SEED = int(os.environ.get("SUSTAIN_SEED", "20260302"))


def test_newest(kit: Kit) -> None:
    told = kit.tell()
    told.change(50)
    shipping = kit.ship()
    for _ in range(5):
        told.change(30)
        kit.arrived(told)
    shipping.stop()
    restored = kit.restore()
    assert restored.position == told.positions[-1] == restored.newest
    assert restored.time_ns == told.times[-1]
    assert kit.held(restored) == told.states[-1]
    assert not restored.damaged


def test_each_position(kit: Kit) -> None:
    """State equals the commit history at every position asked for: at ends of commits, between them, at the edges of
    segments; also when the log was shipped in bulk, and when the archiver was restarted."""
    told, rand = kit.tell(log_size="4MiB"), random.Random(SEED)
    first = told.change(20)
    shipping = kit.ship("every=5ms&segment=16KiB")
    kit.arrived(told)
    for number in range(12):
        told.change(rand.randrange(1, 60))
        if number % 3 == 0:
            kit.arrived(told)
        if number % 5 == 4:
            shipping.stop()
            shipping = kit.ship("every=5ms&segment=16KiB")
    kit.arrived(told)
    shipping.stop()
    wanted = [each for each in told.positions if each >= first]
    asked = {wanted[-1], wanted[0], *rand.sample(wanted, 12)}
    asked |= {each + rand.randrange(1, 40) for each in rand.sample(wanted[:-1], 5)}
    for position in sorted(asked):
        restored = kit.restore(position=position)
        assert restored.position == max(each for each in told.positions if each <= position), f"seed {SEED}"
        assert kit.held(restored) == told.at(position), f"position {position}, seed {SEED}"


def test_each_time(directory: Kit) -> None:
    kit = directory
    told = kit.tell()
    told.change(20)
    shipping = kit.ship("every=5ms&segment=16KiB")
    for _ in range(10):
        told.change(25)
        kit.arrived(told)
    shipping.stop()
    from sustain.replication.archive.contents import read_contents, read_snapshot

    contents = read_contents(kit.place)
    usable = read_snapshot(kit.place, contents.snapshots()[0], contents.store)
    moments = sorted({each for each in told.times if each >= usable.time_high_ns})
    for time_ns in [*moments[:: max(1, len(moments) // 8)], moments[-1] + 10**12]:
        restored = kit.restore(at_ns=time_ns)
        assert restored.position == told.expected_by(time_ns)
        assert kit.held(restored) == told.at(restored.position)
    early = fails(lambda: kit.restore(at_ns=told.times[0] - 10**9), NotRestorable)
    assert str(usable.usable) in str(early)


def test_takeover(directory: Kit) -> None:
    """A newer epoch goes on where it parted; what the older one had archived behind that is not restored."""
    kit = directory
    told = kit.tell()
    told.change(40)
    shipping = kit.ship()
    kit.arrived(told)
    parted = told.positions[-1]
    receiver = kit.lab.receiver()
    both = kit.lab.ship(receiver, kit.url + "?every=20ms", name="a") if not shipping.stop().error else None
    assert both is not None
    told.store.wait(parted, copies=2, timeout=30)
    both.stop()
    shipping = kit.ship()
    orphan = told.change(30)
    kit.arrived(told)  # archived, and never seen by the standby
    shipping.stop()
    receiver.promote(2)
    other = kit.lab.open("b")
    users = other.map("users")
    users[b"new"] = b"epoch 2"
    end = other.commit()
    kit.lab.ship(f"{kit.url}?every=20ms", name="b")
    other.wait(end, copies=1, timeout=30)
    restored = kit.restore()
    assert restored.epoch == 2
    assert restored.position == end
    assert kit.held(restored) == told.at(parted) | {b"new": b"epoch 2"}
    # The older primary is refused from now on, and its application too.
    late = kit.ship(name="a").join()
    assert "epoch 2" in str(late.error)
    told.store.map("users")[b"late"] = b"x"
    with pytest.raises(sustain.StoreFenced):
        told.store.commit()
    assert orphan > parted


def test_new_epoch_goes_on_in_the_same_archive(directory: Kit) -> None:
    kit = directory
    told = kit.tell()
    told.change(30)
    shipping = kit.ship()
    kit.arrived(told)
    old = told.change(30)
    kit.arrived(told)
    shipping.stop()
    back = told.positions[40]
    restored = kit.restore(position=back)
    # Without an epoch of its own it would be another log of the same name.
    with sustain.open(restored.path) as store:
        store.map("users")[b"other"] = b"way"
        store.commit()
    os.rename(restored.path, kit.lab.path("forked"))
    forked = kit.ship(name="forked", until_drained=True, drain_timeout_s=20).join()
    assert "--new-epoch" in forked.error.hint  # type: ignore[union-attr]
    restored = kit.restore(position=back)
    replica = Replica(restored.path)
    replica.promote(restored.epoch + 1)
    replica.close()
    os.rename(restored.path, kit.lab.path("new"))
    store = kit.lab.open("new")
    store.map("users")[b"other"] = b"way"
    end = store.commit()
    kit.lab.ship(f"{kit.url}?every=20ms", name="new")
    store.wait(end, copies=1, timeout=30)
    assert kit.held(kit.restore()) == told.at(back) | {b"other": b"way"}
    assert old > back


def test_best_of_several(directory: Kit, tmp_path: Path) -> None:
    """The one that reaches furthest is restored; what one lacks is taken from the other, and told."""
    kit = directory
    second = f"file://{tmp_path}/second"
    told = kit.tell()
    told.change(30)
    one = kit.lab.ship(f"{kit.url}?every=10ms", f"{second}?every=10ms")
    for _ in range(4):
        told.change(30)
        told.store.wait(told.positions[-1], copies=2, timeout=30)
    one.stop()
    one = kit.lab.ship(f"{second}?every=10ms")
    told.change(10)
    kit.arrived(told)
    one.stop()
    restored = kit.restore(kit.url, second)
    assert restored.position == told.positions[-1]
    assert kit.held(restored) == told.states[-1]
    broken = next(
        each for each in reversed(kit.objects()) if each.name.count("-") == 1 and "." not in each.name
    )
    broken.write_bytes(broken.read_bytes()[:-100])
    restored = kit.restore(kit.url, second)
    assert kit.held(restored) == told.states[-1]
    assert restored.damaged == [] or any(broken.name in text for text in restored.damaged)
    broken.unlink()
    broken.symlink_to(broken)  # a call that fails: as from a disk that dies
    restored = kit.restore(kit.url, second)
    assert kit.held(restored) == told.states[-1]
    gone = fails(lambda: kit.restore(f"file://{tmp_path}/nothing"), NotAnArchive)
    assert "nothing" in str(gone)
    assert kit.held(kit.restore(f"file://{tmp_path}/nothing", second)) == told.states[-1]


def test_archives_of_two_stores(directory: Kit, tmp_path: Path) -> None:
    kit = directory
    told = kit.tell()
    told.change(3)
    kit.ship()
    kit.arrived(told)
    other = Kit(kit.lab, f"file://{tmp_path}/other")
    second = other.tell("z")
    second.change(3)
    other.ship(name="z")
    other.arrived(second)
    other.end()
    assert "different stores" in str(fails(lambda: kit.restore(kit.url, other.url), ConfigError))


def test_position_that_is_not_there(directory: Kit) -> None:
    kit = directory
    told = kit.tell()
    told.change(30)
    shipping = kit.ship()
    kit.arrived(told)
    told.change(5)
    kit.arrived(told)
    shipping.stop()
    assert "later" in str(fails(lambda: kit.restore(position=told.positions[-1] + 8), NotRestorable))
    assert "older" in str(fails(lambda: kit.restore(position=told.positions[3]), NotRestorable))
    assert not list(kit.lab.directory.glob("restored*")), "nothing is left behind"
