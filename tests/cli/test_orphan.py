"""`sustain orphan`: a tail as a former primary left it, and damaged in each way that files are."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import sustain
from sustain import cli
from sustain._native import Control, LogTail
from sustain.replication.orphan import keep_orphan
from tests.cli.conftest import Ran

TAIL = {
    "file", "store", "store_uuid", "replica_uuid", "host", "epoch", "newer_epoch", "common", "end", "bytes",
    "kept_from", "kept_bytes", "forgotten_bytes", "commits", "first_commit", "last_commit", "before_commit_time_ns",
    "first_commit_time_ns", "last_commit_time_ns", "seconds", "whole", "problems", "kept_ns",
}  # fmt: skip
VALUES = [b"lost-%d" % number for number in range(5)]


@dataclass(frozen=True)
class Kept:
    """A store, and the tail of its last five commits."""

    store: Path
    common: int
    end: int

    @property
    def tail(self) -> Path:
        return Path(f"{self.store}.orphan-e1-{self.common}-{self.end}")

    @property
    def report(self) -> Path:
        return Path(f"{self.tail}.json")


def keep(path: Path, replica: bytes | None = None, trimmed: int = 0) -> Kept:
    """`replica`: whose log it was; None: that of a copy that is not there any more."""
    with sustain.create(path, size="8MiB", log_size="2MiB", durability="memory") as store:
        users = store.map("users")
        for number in range(3):
            users[b"kept"] = b"%d" % number
            common = store.commit()
        ends = []
        for value in VALUES:
            users[b"k"] = value
            ends.append(store.commit())
        log, control = LogTail(str(path)), Control(str(path))
        block = control.superblock()

        def read_log(lsn: int, length: int) -> bytes:
            with log.log_view(lsn, length) as view:
                return bytes(view)

        keep_orphan(
            str(path),
            store_uuid=block["store_uuid"],
            replica_uuid=replica or block["replica_uuid"][::-1],
            epoch=1,
            newer_epoch=2,
            common=common,
            tail=ends[trimmed - 1] if trimmed else 0,
            end=ends[-1],
            read_log=read_log,
            host="a",
        )
        log.close()
        control.close()
    return Kept(path, common, ends[-1])


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return keep(tmp_path / "app.sus")


Sus = Callable[..., Ran]


def test_list_and_show(sus: Sus, kept: Kept) -> None:
    for where in (kept.store, kept.store.parent, kept.tail, kept.report):
        ran = sus("orphan", "list", where, "--json")
        assert (ran.status, ran.err) == (0, "")
        (tail,) = ran.json["tails"]
        assert set(tail) == TAIL
        assert (tail["file"], tail["store"], tail["host"]) == (str(kept.tail), "app.sus", "a")
        assert (tail["common"], tail["end"], tail["bytes"]) == (kept.common, kept.end, kept.end - kept.common)
        assert (tail["commits"], tail["last_commit"] - tail["first_commit"]) == (5, 4)
        assert (tail["whole"], tail["problems"], tail["forgotten_bytes"]) == (True, [], 0)
        assert tail["seconds"] is not None
    text = sus("orphan", "list", kept.store)
    assert kept.tail.name in text.out
    shown = sus("orphan", "show", kept.store, "--json").json
    assert set(shown) == TAIL | {"changed"}
    assert [each["position"] for each in shown["changed"]][-1] == kept.end
    assert len(sus("orphan", "show", kept.tail, "--commits", "2", "--json").json["changed"]) == 2
    assert "5, numbers" in sus("orphan", "show", kept.store).out


def test_no_tail_is_said(sus: Sus, filled: Path) -> None:
    assert sus("orphan", "list", filled, "--json").json == {"path": str(filled), "tails": []}
    assert "no orphan tail" in sus("orphan", "list", filled.parent).out
    sus("orphan", "show", filled).failed_with("no orphan tail")
    sus("orphan", "list", filled.parent / "missing").failed_with("neither a store nor a tail")


def test_lines_say_what_each_commit_changed(sus: Sus, kept: Kept, tmp_path: Path) -> None:
    ran = sus("orphan", "export", kept.store, "--lines", "-")
    assert ran.status == 0
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert len(lines) == 5
    assert (lines[0]["first"], lines[-1]["position"]) == (kept.common, kept.end)
    for line, value in zip(lines, VALUES, strict=True):
        assert line["opens_epoch"] is None
        assert any(value.hex() in change["data"] for change in line["changes"])
        assert all(len(change["data"]) == 2 * change["length"] for change in line["changes"])
    raw, file = tmp_path / "raw", tmp_path / "lines"
    done = sus("orphan", "export", kept.store, "--raw", raw, "--lines", file, "--no-data", "--json").json
    assert raw.read_bytes() == kept.tail.read_bytes()
    assert (done["commits"], done["bytes"]) == (5, raw.stat().st_size)
    assert not any(
        "data" in change for each in file.read_text().splitlines() for change in json.loads(each)["changes"]
    )
    sus("orphan", "export", kept.store, "--raw", raw).failed_with("exists")
    sus("orphan", "export", kept.store, "--lines", file).failed_with("exists")
    sus("orphan", "export", kept.store).failed_with("nothing to export to", status=2)
    sus("orphan", "export", kept.store, "--raw", tmp_path / "no" / "where").failed_with("No such file")


def test_what_had_been_forgotten_is_named(sus: Sus, tmp_path: Path) -> None:
    kept = keep(tmp_path / "app.sus", trimmed=2)
    (tail,) = sus("orphan", "list", kept.store, "--json").json["tails"]
    assert (tail["commits"], tail["whole"], tail["problems"]) == (3, False, [])
    assert tail["forgotten_bytes"] == kept.end - kept.common - tail["kept_bytes"] > 0
    assert "its last" in sus("orphan", "list", kept.store).out


def test_discarding_is_explicit(sus: Sus, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    sus("orphan", "discard", kept.store).failed_with("cannot be undone", status=2)
    assert kept.tail.exists()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "n\n", raising=False)
    assert sus("orphan", "discard", kept.store).status == 1
    assert kept.tail.exists()
    done = sus("orphan", "discard", kept.store, "--yes", "--json").json
    assert done["discarded"] == [str(kept.tail), str(kept.report)]
    assert not kept.tail.exists()
    assert not kept.report.exists()
    assert kept.store.exists()


def test_discarding_goes_on_after_a_crash_between_its_files(sus: Sus, kept: Kept) -> None:
    kept.tail.unlink()
    (tail,) = sus("orphan", "list", kept.store, "--json").json["tails"]
    assert tail["problems"] == ["the log bytes are missing"]
    assert sus("orphan", "discard", kept.store, "--yes").status == 0
    assert not kept.report.exists()


def test_several_must_be_named(sus: Sus, kept: Kept) -> None:
    other = keep(kept.store.with_name("other.sus"))
    assert len(sus("orphan", "list", kept.store.parent, "--json").json["tails"]) == 2
    assert len(sus("orphan", "list", kept.store, "--json").json["tails"]) == 1
    sus("orphan", "discard", kept.store.parent, "--yes").failed_with("2 tails", status=2)
    assert len(sus("orphan", "discard", kept.store.parent, "--all", "--yes", "--json").json["discarded"]) == 4
    assert not other.tail.exists()


def test_a_store_that_still_holds_its_tail_keeps_it(sus: Sus, tmp_path: Path) -> None:
    """Its snapshot is not complete: without the report the copy would be taken for a standby's."""
    path = tmp_path / "app.sus"
    kept = keep(path)
    control = Control(str(path))
    report = json.loads(kept.report.read_text())
    report["replica_uuid"] = control.superblock()["replica_uuid"].hex()
    control.close()
    kept.report.write_text(json.dumps(report))
    sus("orphan", "discard", path, "--yes").failed_with("still needed")
    assert kept.tail.exists()


@pytest.mark.parametrize(
    "name", ["app.sus", "notes.txt", "app.sus.orphan-e1-5-9", "link.orphan-e1-5-9", "d.orphan-e1-5-9"]
)
def test_what_is_no_tail_is_refused(sus: Sus, filled: Path, name: str) -> None:
    path = filled.parent / name
    if name.startswith("link"):
        os.symlink(filled, path)
    elif name.startswith("d."):
        path.mkdir()
    elif not path.exists():
        path.write_bytes(b"somebody's notes, of no log" * 10)
    ran = sus("orphan", "discard", path, "--yes")
    ran.failed_with("tail")
    assert os.path.lexists(path)


def damaged(sus: Sus, kept: Kept, *words: str) -> None:
    """It is listed with its problems, exported only when asked, and then as far as it goes; nothing is a traceback."""
    ran = sus("orphan", "list", kept.store, "--json")
    assert ran.status == 1
    (tail,) = ran.json["tails"]
    assert not tail["whole"]
    for word in words:
        assert any(word in text for text in tail["problems"]), tail["problems"]
    assert "damaged" in sus("orphan", "list", kept.store).out
    assert sus("orphan", "show", kept.store).status == 1
    sus("orphan", "export", kept.store, "--lines", "-").failed_with("is damaged")
    exported = sus("orphan", "export", kept.store, "--lines", "-", "--damaged")
    assert exported.status == 1
    assert len(exported.out.splitlines()) <= 5


def test_a_report_that_is_gone_or_damaged(sus: Sus, kept: Kept) -> None:
    whole = kept.report.read_text()
    for content in ("", "{", "[]", '{"epoch": "x"}', "[" * 9000, whole.replace('"end": ', '"end": 1')):
        kept.report.write_text(content)
        damaged(sus, kept, "report")
    kept.report.unlink()
    damaged(sus, kept, "its report is missing")
    # The log bytes alone tell all but who and when.
    (tail,) = sus("orphan", "list", kept.store, "--json").json["tails"]
    assert (tail["commits"], tail["host"], tail["newer_epoch"]) == (5, None, None)
    assert sus("orphan", "discard", kept.tail, "--yes").status == 0


def test_log_bytes_that_are_cut_or_changed(sus: Sus, kept: Kept) -> None:
    whole = kept.tail.read_bytes()
    for length in (0, 1, 31, 32, len(whole) // 2, len(whole) - 1):
        kept.tail.write_bytes(whole[:length])
        damaged(sus, kept)
    kept.tail.write_bytes(whole + bytes(8))
    damaged(sus, kept, "log bytes, not")
    for at in range(0, len(whole), 37):
        kept.tail.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        (tail,) = sus("orphan", "list", kept.store, "--json").json["tails"]
        assert "the log bytes are not those that were kept: their digest is another" in tail["problems"]
        assert sus("orphan", "export", kept.store, "--lines", "-", "--damaged").status == 1


def test_the_verb_is_listed() -> None:
    assert "orphan" in cli.VERBS
