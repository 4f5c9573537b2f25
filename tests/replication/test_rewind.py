"""A former primary comes back: what only it has is kept and reported, then it becomes a standby."""

import json
import os
from pathlib import Path

import pytest

from sustain._native import Control
from sustain.errors import StoreError, StoreIOError
from sustain.replication.orphan import keep_orphan, unresolved
from sustain.replication.records import commits
from sustain.testing.link import Link

from .conftest import Lab, contents, fill, until


def part(lab: Lab, alone: int) -> int:
    """a ships to b and goes on alone, b takes over in epoch 2 and goes on; where they part."""
    a, b = lab.create("a"), lab.receiver("b")
    running = lab.ship(b)
    common = fill(a, 0, 20)
    a.wait(common, copies=1, timeout=20)
    running.stop()
    fill(a, 1000, alone)
    a.close()
    assert b.promote(2) == common
    fill(lab.open("b"), 20, 30)
    return common


def reports(lab: Lab) -> list[Path]:
    return sorted(lab.directory.glob("a.sus.orphan-*.json"))


def test_a_former_primary_keeps_its_tail_and_becomes_a_standby(lab: Lab) -> None:
    common = part(lab, alone=7)
    with lab.open("a", readonly=True) as lone:
        end = lone.position
    former = lab.receiver("a")
    lab.ship(former, name="b")
    new = lab.stores["b"]
    new.wait(fill(new, 50, 1), copies=1, timeout=20)
    expected = contents(new)
    assert not former.status()["rewinding"]
    former.stop()
    assert contents(lab.open("a")) == expected

    (path,) = reports(lab)
    report = json.loads(path.read_text())
    assert (report["epoch"], report["newer_epoch"]) == (1, 2)
    assert (report["common"], report["end"]) == (common, end)
    assert (report["kept_from"], report["kept_bytes"], report["lost_bytes"]) == (common, end - common, 0)
    assert report["commits"] == 7
    data = Path(report["file"]).read_bytes()
    assert len(data) == end - common
    found = list(commits(data, common))
    assert found[-1].end == end
    assert [found[0].number, found[-1].number] == [report["first_commit"], report["last_commit"]]
    assert b"001006" in data


def test_nothing_is_kept_where_nothing_is_lost(lab: Lab) -> None:
    part(lab, alone=0)
    former = lab.receiver("a")
    running = lab.ship(former, name="b")
    new = lab.stores["b"]
    new.wait(fill(new, 50, 1), copies=1, timeout=20)
    assert reports(lab) == []
    assert not any("snapshot" in line for line in running.said)


def test_what_was_trimmed_is_named(lab: Lab) -> None:
    common = part(lab, alone=0)
    a = lab.open("a")
    for at in range(200):
        fill(a, at % 50, 10, bytes([at]) * 2000)
    end = a.position
    a.close()
    lab.ship(lab.receiver("a"), name="b")
    new = lab.stores["b"]
    new.wait(fill(new, 50, 1), copies=1, timeout=20)
    (path,) = reports(lab)
    report = json.loads(path.read_text())
    assert report["lost_bytes"] > 0
    assert report["common"] == common
    assert report["kept_from"] == common + report["lost_bytes"]
    assert report["kept_bytes"] == end - report["kept_from"] == os.path.getsize(report["file"])
    assert report["commits"] == len(list(commits(Path(report["file"]).read_bytes(), report["kept_from"])))
    assert any("were gone already" in line for line in lab.said)


def test_a_copy_that_is_to_be_rewound_does_not_take_over(lab: Lab) -> None:
    part(lab, alone=7)
    former = lab.receiver("a")
    with Link(former.address) as link:
        link.cut_after(*[2000] * 100)  # enough for the handshake, too little for a snapshot
        running = lab.ship(link.url, name="b")
        until(lambda: former.status()["rewinding"] and reports(lab), "the tail is kept")
        running.stop()
    former.stop()
    # Not even after a restart, when nobody has told it yet.
    again = lab.receiver("a")
    assert again.status()["rewinding"]
    with pytest.raises(StoreError, match="does not have"):
        again.promote(9)


def test_a_primary_that_came_back_from_an_older_copy_of_itself(lab: Lab) -> None:
    """Same epochs, other bytes: found by the COMMIT at the standby's end, and the standby's tail is kept."""
    a, b = lab.create("a"), lab.receiver("b")
    running = lab.ship(b)
    a.wait(fill(a, 0, 20), copies=1, timeout=20)
    running.stop()
    a.close()
    older = Path(lab.path("a")).read_bytes()
    a = lab.open("a")
    running = lab.ship(b)
    a.wait(fill(a, 20, 5), copies=1, timeout=20)
    running.stop()
    a.close()
    Path(lab.path("a")).write_bytes(older)
    a = lab.open("a")
    running = lab.ship(b)
    position = fill(a, 500, 50)
    a.wait(position, copies=1, timeout=20)
    assert sorted(lab.directory.glob("b.sus.orphan-*.json"))
    running.stop()
    b.stop()
    assert contents(lab.open("b")) == contents(a)


def test_an_orphan_is_resolved_by_the_snapshot(lab: Lab) -> None:
    """Even if the new copy happens to end at the same position."""
    part(lab, alone=3)
    block = Control(lab.path("a")).superblock()
    lab.ship(lab.receiver("a"), name="b")
    new = lab.stores["b"]
    new.wait(fill(new, 50, 1), copies=1, timeout=20)
    (path,) = reports(lab)
    end = json.loads(path.read_text())["end"]
    assert unresolved(lab.path("a"), block["replica_uuid"], end) == str(path)
    now = Control(lab.path("a")).superblock()["replica_uuid"]
    assert unresolved(lab.path("a"), now, end) is None
    path.write_text("not JSON")
    assert unresolved(lab.path("a"), block["replica_uuid"], end) is None


def test_no_room_for_the_orphan_keeps_the_store(tmp_path: Path) -> None:
    with pytest.raises(StoreIOError) as caught:
        keep_orphan(
            str(tmp_path / "missing" / "a.sus"),
            store_uuid=bytes(16),
            replica_uuid=bytes(16),
            epoch=1,
            newer_epoch=2,
            common=0,
            tail=0,
            end=8,
            read_log=lambda _lsn, length: bytes(length),
        )
    assert caught.value.hint


def test_keeping_an_orphan_twice_gives_the_same_files(tmp_path: Path) -> None:
    def keep() -> None:
        keep_orphan(
            str(tmp_path / "a.sus"),
            store_uuid=bytes(16),
            replica_uuid=bytes(16),
            epoch=3,
            newer_epoch=4,
            common=100,
            tail=0,
            end=200,
            read_log=lambda lsn, length: bytes([lsn % 251]) * length,
        )

    keep()
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".json"}
    keep()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.sus.orphan-e3-100-200", "a.sus.orphan-e3-100-200.json"]
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".json"}
