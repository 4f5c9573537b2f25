"""`sustain ship` to archives, `sustain restore` from them, `sustain archive`: as an operator uses them."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

import sustain
from sustain.replication.archive import proofs
from sustain.replication.archive.documents import Proof


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sustain.cli", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    return done


def told(*words: str) -> dict[str, object]:
    done = cli(*words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def complains(status: int, *words: str) -> str:
    done = cli(*words)
    assert done.returncode == status, done.stderr
    assert "error: " in done.stderr
    assert "hint: " in done.stderr
    return done.stderr


@pytest.fixture
def shipped(tmp_path: Path) -> tuple[str, str, int]:
    """(store, archive, position): a store of two commits, both archived."""
    path, url = str(tmp_path / "app.sus"), f"file://{tmp_path}/arch"
    with sustain.create(path, size="4MiB", log_size="2MiB", durability="memory") as store:
        store.map("users")[b"a"] = b"1"
        store.commit()
        told("ship", path, "--to", url, "--until-drained")
        store.map("users")[b"a"] = b"2"
        position = store.commit()
        told("ship", path, "--to", url, "--until-drained")
    return path, url, position


def test_there_and_back(shipped: tuple[str, str, int], tmp_path: Path) -> None:
    _, url, position = shipped
    listed = told("archive", "list", url)
    assert listed["acked"] == position
    assert listed["proof"] is None
    proved = told("archive", "verify", url, "--all", "--scratch", str(tmp_path))
    assert proved["damaged"] == []
    assert told("archive", "list", url)["proof"] == proved["proof"]
    text = cli("archive", "list", url).stdout
    assert f"position {position}" in text
    back = str(tmp_path / "back.sus")
    assert told("restore", url, back)["position"] == position
    with sustain.open(back) as store:
        assert store.map("users")[b"a"] == b"2"
    older = str(tmp_path / "older.sus")
    assert told("restore", url, older, "--position", str(position - 1), "--new-epoch")["opened_epoch"] == 2
    with sustain.open(older) as store:
        assert store.map("users")[b"a"] == b"1"
    now = datetime.now(UTC).isoformat()
    assert told("restore", url, str(tmp_path / "now.sus"), "--at", now)["position"] == position
    assert sorted(each.name for each in tmp_path.glob("*.sus*")) == [
        "app.sus",
        "back.sus",
        "now.sus",
        "older.sus",
    ]


def test_status_tells_of_the_last_proof(shipped: tuple[str, str, int], tmp_path: Path) -> None:
    """As whoever ships has seen it; whole, damaged."""
    path, url, position = shipped
    proof = Proof(
        store="0" * 32,
        at_ns=time.time_ns(),
        worked=True,
        position=position,
        time_ns=None,
        duration_s=0.1,
        restored_bytes=1,
        objects=1,
        everything=False,
    )
    assert told("status", path)["destinations"][0]["proof"] is None  # type: ignore[index]
    proofs.note(path, url, proof)
    assert told("status", path)["destinations"][0]["proof"] == {  # type: ignore[index]
        "at_ns": proof.at_ns,
        "worked": True,
        "position": position,
        "why": None,
    }
    assert "a restore worked " in (text := cli("status", path).stdout)
    assert f"to position {position}" in text
    proofs.note(path, url, msgspec.structs.replace(proof, worked=False, why="it is not whole"))
    assert "FAILED: it is not whole" in cli("status", path).stdout
    (tmp_path / "app.sus.proofs.json").write_text("[")
    assert told("status", path)["destinations"][0]["proof"] is None  # type: ignore[index]


def test_what_is_refused(shipped: tuple[str, str, int], tmp_path: Path) -> None:
    path, url, position = shipped
    assert "there already" in complains(2, "restore", url, path)
    back = str(tmp_path / "back.sus")
    assert "later" in complains(1, "restore", url, back, "--position", str(position + 1000))
    assert "older" in complains(1, "restore", url, back, "--at", "@5")
    assert "always verified" in complains(2, "restore", url, back, "--no-verify")
    assert "for archives" in complains(2, "restore", "tcp://127.0.0.1:1", back, "--position", "5")
    assert "no store is archived" in complains(1, "archive", "list", f"file://{tmp_path}/nothing")
    assert "not a time" in complains(2, "restore", url, back, "--at", "yesterday")
    assert "unknown option" in complains(2, "ship", path, "--to", f"{url}?often=1")
    assert "is not an archive" in complains(2, "archive", "list", "http://example.com")
    assert not os.path.exists(back)


def test_damage_is_told(shipped: tuple[str, str, int], tmp_path: Path) -> None:
    _, url, _ = shipped
    segment = sorted((tmp_path / "arch" / "e1").glob("*-*[0-9]"))[0]
    segment.write_bytes(segment.read_bytes()[:-5])
    assert segment.name in complains(1, "restore", url, str(tmp_path / "back.sus"))
    done = cli("archive", "verify", url, "--scratch", str(tmp_path))
    assert done.returncode == 1
    assert "does NOT work" in done.stdout
    assert "FAILED" in cli("archive", "list", url).stdout
    assert not list(tmp_path.glob("back*"))
