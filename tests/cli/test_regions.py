"""`sustain save` and `sustain restore`: the JSON shapes of docs/json.md, statuses, and what people read."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Ran
from tests.cli.test_report import NUMBER, conforms

SAVE: dict[str, Any] = {
    "path": str,
    "name": str,
    "uuid": str,
    "size_bytes": int,
    "epoch": int,
    "number": (int, type(None)),
    "complete": bool,
    "duration_s": NUMBER,
    "note": str,
    "destinations": [
        {
            "url": str,
            "state": str,
            "number": (int, type(None)),
            "written_bytes": int,
            "duration_s": (*NUMBER, type(None)),
            "error": (str, type(None)),
            "hint": str,
        }
    ],
}
RESTORE: dict[str, Any] = {
    "url": str,
    "path": str,
    "name": str,
    "uuid": str,
    "size_bytes": int,
    "target_bytes": int,
    "epoch": int,
    "number": int,
    "owner": str,
    "reason": str,
    "saved_ns": int,
    "copied_bytes": int,
    "verified": bool,
    "duration_s": NUMBER,
}
Sus = Callable[..., Ran]


@pytest.fixture
def region(tmp_path: Path) -> Path:
    path = tmp_path / "vm1.nvdimm"
    path.write_bytes(random.Random(1).randbytes(300_000))
    return path


def test_save_and_restore(sus: Sus, region: Path, tmp_path: Path) -> None:
    urls = [f"file://{tmp_path}/a", f"file://{tmp_path}/b"]
    ran = sus("save", "--region", region, "--to", urls[0], "--to", urls[1], "--json")
    assert (ran.status, ran.err) == (0, "")
    conforms(ran.json, SAVE)
    assert ran.json["name"] == "vm1.nvdimm"
    assert [each["url"] for each in ran.json["destinations"]] == urls
    back = tmp_path / "back"
    for options in (["--json"], ["--json", "--no-verify", "--epoch", 1, "--number", 1]):
        restored = sus("restore", urls[1], back, "--name", "vm1.nvdimm", *options)
        assert (restored.status, restored.err) == (0, "")
        conforms(restored.json, RESTORE)
        assert restored.json["verified"] == ("--no-verify" not in options)
    assert back.read_bytes() == region.read_bytes()
    assert restored.json["uuid"] == ran.json["uuid"]
    assert restored.json["copied_bytes"] == 0
    # What was restored is saved under the same name and identity.
    again = sus("save", "--region", back, "--to", urls[0], "--reason", "for fun")
    assert again.status == 0
    assert "sealed as vm1.nvdimm, epoch 1, number 2: 0 B of " in again.out
    text = sus("restore", urls[0], back)
    assert "number 2" in text.out
    assert "for fun" in text.out


def test_some_destinations_fail(sus: Sus, region: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bad, good = f"file://{tmp_path}/file", f"file://{tmp_path}/good"
    ran = sus("save", "--region", region, "--to", bad, "--to", good, "--json")
    assert ran.status == 1
    conforms(ran.json, SAVE)
    assert not ran.json["complete"]
    assert [each["state"] for each in ran.json["destinations"]] == ["failed", "sealed"]
    assert ran.json["destinations"][0]["hint"]
    error, hint = ran.err.splitlines()
    assert error.startswith(f"error: {bad}: ")
    assert hint.startswith("hint: ")
    text = sus("save", "--region", region, "--to", bad, "--to", good)
    assert f"{bad}: not saved" in text.out
    assert f"{good}: sealed as" in text.out


def test_a_lost_identity(sus: Sus, region: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/a"
    saved = sus("save", "--region", region, "--to", url, "--json").json
    Path(f"{region}.region-id").unlink()
    refused = sus("save", "--region", region, "--to", url)
    assert refused.status == 1
    assert saved["uuid"].replace("-", "") in refused.err
    Path(f"{region}.region-id").unlink(missing_ok=True)
    again = sus("save", "--region", region, "--to", url, "--uuid", saved["uuid"], "--json")
    assert again.status == 0
    assert again.json["number"] == 2
    newer = sus("save", "--region", region, "--to", url, "--epoch", 5, "--json")
    assert newer.json["epoch"] == 5
    older = sus("save", "--region", region, "--to", url, "--epoch", 4)
    assert older.status == 1
    assert "epoch 4 is over" in older.err


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["restore", "file:///nowhere/at/all", "{tmp}/x"], "no region is saved there", 1),
        (["restore", "ftp://x", "{tmp}/x"], "not a place for regions", 2),
        (["restore", "file://{tmp}", "{tmp}/x", "--number", "0"], "not a number above 0", 2),
        (["restore", "file://{tmp}", "{tmp}/x", "--name", "a/b"], "not usable", 2),
        (["save", "--region", "{tmp}/missing", "--to", "file://{tmp}/a"], "cannot be opened", 1),
        (["save", "--region", "{tmp}/missing"], "--to", 2),
        (["save", "--region", "/dev/null", "--to", "file://{tmp}/a"], "not a DAX one", 1),
        (["save", "--region", "{region}", "--to", "file://relative"], "not a place for regions", 2),
        (["save", "--region", "{region}", "--to", "file://{tmp}/a", "--uuid", "x"], "not a UUID", 2),
    ],
)
def test_bad_input(sus: Sus, region: Path, tmp_path: Path, words: list[str], said: str, status: int) -> None:
    sus(*(word.format(tmp=tmp_path, region=region) for word in words)).failed_with(said, status=status)


def test_a_restore_over_a_running_program_is_refused(sus: Sus, region: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/a"
    sus("save", "--region", region, "--to", url)
    with region.open("r+b"):
        sus("restore", url, region).failed_with("open for writing")
    assert sus("restore", url, region).status == 0


def test_to_an_object_store_and_back(sus: Sus, region: Path, tmp_path: Path, bucket: str) -> None:
    url = f"{bucket}/regions"
    assert sus("save", "--region", region, "--to", url, "--to", f"file://{tmp_path}/a").status == 0
    with region.open("r+b") as file:
        file.write(b"changed")
    again = sus("save", "--region", region, "--to", url, "--json")
    assert again.json["destinations"][0]["written_bytes"] == 4096
    restored = sus("restore", url, tmp_path / "back", "--name", "vm1.nvdimm", "--json")
    conforms(restored.json, RESTORE)
    assert restored.json["number"] == 2
    assert (tmp_path / "back").read_bytes() == region.read_bytes()
    sus("restore", f"file://{tmp_path}/a", tmp_path / "back", "--number", "2").failed_with("holds seal 1")
