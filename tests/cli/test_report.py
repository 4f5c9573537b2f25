"""Verbs that report: the JSON shapes of docs/json.md, and texts that a person can read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sustain
from tests.cli.conftest import Ran

NUMBER = (int, float)
INFO: dict[str, Any] = {
    "path": str,
    "version": int,
    "store_uuid": str,
    "replica_uuid": str,
    "durability": str,
    "image_bytes": int,
    "log_bytes": int,
    "epoch": int,
    "history": [{"epoch": int, "start": int}],
    "tail": int,
    "clean": bool,
    "end": (int, type(None)),
    "incomplete": bool,
    "arriving": bool,
    "same_boot": bool,
    "created": str,
}
STATUS: dict[str, Any] = {
    "path": str,
    "store_uuid": str,
    "epoch": int,
    "durability": str,
    "incomplete": bool,
    "arriving": type(None),
    "role": str,
    "poisoned": (bool, type(None)),
    "writer": {"alive": bool, "pid": (int, type(None))},
    "shipper": {"alive": bool, "pid": (int, type(None))},
    "supervisor": {"alive": bool},
    "positions": {
        "committed": (int, type(None)),
        "appended": (int, type(None)),
        "applied": (int, type(None)),
        "tail": int,
        "commits": (int, type(None)),
        "last_commit_age_s": (*NUMBER, type(None)),
    },
    "log": {"size_bytes": int, "used_bytes": (int, type(None))},
    "lease": {
        "governs": (bool, type(None)),
        "epoch": (int, type(None)),
        "remaining_s": (*NUMBER, type(None)),
        "fence_epoch": (int, type(None)),
    },
    "primary": (dict, type(None)),
    "power": (dict, type(None)),
    "destinations": [],
    "run": (dict, type(None)),
    "workload": (dict, type(None)),
}


def conforms(value: Any, shape: Any, where: str = "") -> None:
    """`value` has exactly the keys and types of `shape`."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        assert set(value) == set(shape), where
        for key, inner in shape.items():
            conforms(value[key], inner, f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for each in value if shape else []:
            conforms(each, shape[0], f"{where}[]")
    else:
        assert isinstance(value, shape), f"{where}: {value!r}"


def test_create(sus: Callable[..., Ran], tmp_path: Path) -> None:
    path = tmp_path / "app.sus"
    made = sus(
        "create", path, "--size", "4MiB", "--log-size", "2MiB", "--durability", "memory", "--json"
    ).json
    conforms(made, INFO)
    assert (made["image_bytes"], made["log_bytes"], made["durability"]) == (4 << 20, 2 << 20, "memory")
    assert made["epoch"] == 1
    assert made["clean"]
    assert sus("info", path, "--json").json == made
    text = sus("create", tmp_path / "other.sus", "--size", "4MiB", "--log-size", "2MiB").out
    assert "created" in text
    assert "4 MiB" in text


def test_info(sus: Callable[..., Ran], filled: Path) -> None:
    data = sus("info", filled, "--json").json
    conforms(data, INFO)
    text = sus("info", filled).out
    for shown in (data["store_uuid"], data["replica_uuid"], "8 MiB", "2 MiB", "memory", "cleanly"):
        assert shown in text
    with sustain.open(filled):
        assert "no" in sus("info", filled).out.splitlines()[-1]
        assert not sus("info", filled, "--json").json["clean"]


def test_objects(sus: Callable[..., Ran], filled: Path) -> None:
    data = sus("objects", filled, "--json").json
    conforms(
        data,
        {
            "path": str,
            "position": int,
            "objects": [{"name": str, "kind": str, "bytes": int}],
            "image_bytes": int,
            "used_bytes": int,
            "free_bytes": int,
        },
    )
    assert [(each["name"], each["kind"]) for each in data["objects"]] == [
        ("balances", "array"),
        ("blob", "file"),
        ("users", "map"),
    ]
    assert all(each["bytes"] > 0 for each in data["objects"])
    assert data["used_bytes"] + data["free_bytes"] <= data["image_bytes"] == 8 << 20
    text = sus("objects", filled).out
    assert "balances" in text
    assert "free" in text


def test_objects_of_an_empty_store(sus: Callable[..., Ran], tmp_path: Path) -> None:
    path = tmp_path / "app.sus"
    sustain.create(path, size="4MiB", log_size="2MiB").close()
    assert "no objects" in sus("objects", path).out


def test_verify_a_sound_store(sus: Callable[..., Ran], filled: Path) -> None:
    data = sus("verify", filled, "--json").json
    conforms(
        data,
        {
            "path": str,
            "ok": bool,
            "position": int,
            "pages": int,
            "maps": int,
            "entries": int,
            "arrays": int,
            "files": int,
        },
    )
    assert data["ok"]
    assert (data["maps"], data["entries"], data["arrays"], data["files"]) == (1, 500, 1, 1)
    assert "sound" in sus("verify", filled).out
    with sustain.open(filled) as writer:  # beside a writer that goes on
        writer.map("users")[b"more"] = b"1"
        writer.commit()
        assert sus("verify", filled, "--json").json["entries"] == 501


def test_verify_finds_damage_in_each_used_page(sus: Callable[..., Ran], filled: Path) -> None:
    with sustain.open(filled) as store:
        store.checkpoint()
    image = filled.stat().st_size - (8 << 20)
    sound = filled.read_bytes()
    used = [at for at in range(image, len(sound), 4096) if any(sound[at : at + 4096])]
    assert len(used) > 10
    for at in used:
        with filled.open("r+b") as file:
            file.seek(at + 1000)
            file.write(bytes([sound[at + 1000] ^ 4]))
        ran = sus("verify", filled)
        ran.failed_with(str(filled))
        found = sus("verify", filled, "--json")
        assert found.status == 1
        conforms(found.json, {"path": str, "ok": bool, "error": str, "hint": str})
        with filled.open("r+b") as file:
            file.seek(at + 1000)
            file.write(sound[at + 1000 : at + 1001])
    assert sus("verify", filled).status == 0


def test_status_of_a_closed_store(sus: Callable[..., Ran], filled: Path) -> None:
    data = sus("status", filled, "--json").json
    conforms(data, STATUS)
    assert data["role"] == "not open"
    assert not data["writer"]["alive"]
    assert data["writer"]["pid"] is None
    assert data["destinations"] == []
    assert data["run"] is None
    text = sus("status", filled).out
    assert "not open" in text
    assert "no destinations" in text


def test_status_of_a_live_store(sus: Callable[..., Ran], filled: Path) -> None:
    import os

    with sustain.open(filled) as store:
        store.map("users")[b"more"] = b"1"
        position = store.commit()
        data = sus("status", filled, "--json").json
        conforms(data, STATUS)
        assert data["role"] == "primary"
        assert data["writer"] == {"alive": True, "pid": os.getpid()}
        assert data["shipper"] == {"alive": False, "pid": None}
        assert data["positions"]["committed"] == data["positions"]["appended"] == position
        assert data["positions"]["last_commit_age_s"] < 60
        assert data["poisoned"] is False
        assert data["lease"]["governs"] is False
        assert str(position) in sus("status", filled).out


def test_status_shows_the_lease(sus: Callable[..., Ran], filled: Path) -> None:
    from sustain._native import Control, boottime_ns

    with sustain.open(filled):
        control = Control(str(filled), writable=True)
        control.set_lease(1, boottime_ns() + 10_000_000_000)
        lease = sus("status", filled, "--json").json["lease"]
        assert lease["governs"]
        assert 0 < lease["remaining_s"] <= 10
        assert "left" in sus("status", filled).out
        control.set_lease(1, boottime_ns() - 5_000_000_000)
        assert sus("status", filled, "--json").json["lease"]["remaining_s"] < -4
        assert "refused" in sus("status", filled).out
        control.close()


def test_status_shows_destinations(sus: Callable[..., Ran], filled: Path) -> None:
    from sustain._native import LogTail

    with sustain.open(filled) as store:
        first = store.commit()
        store.map("users")[b"more"] = b"1"
        second = store.commit()
        tail = LogTail(str(filled))
        known = tail.claim_slot("tcp://10.0.0.2:7411", True)
        tail.update_slot(known, state="streaming", acked=first, acked_commit_time_ns=1)
        tail.claim_slot("tcp://10.0.0.3:7411", False)
        data = sus("status", filled, "--json").json
        conforms(
            data["destinations"],
            [
                {
                    "url": str,
                    "state": str,
                    "required": bool,
                    "acked": (int, type(None)),
                    "lag_bytes": (int, type(None)),
                    "lag_s": (*NUMBER, type(None)),
                    "bandwidth_bytes_per_s": (int, type(None)),
                    "drain_s": (*NUMBER, type(None)),
                    "budget_bytes": (int, type(None)),
                    "left_alone_s": (*NUMBER, type(None)),
                    "left_alone_why": (str, type(None)),
                    "proof": (dict, type(None)),
                }
            ],
        )
        there, unknown = data["destinations"]
        assert there["acked"] == first
        assert there["lag_bytes"] == second - first
        assert (unknown["acked"], unknown["lag_bytes"], unknown["lag_s"]) == (None, None, None)
        text = sus("status", filled).out
        assert "tcp://10.0.0.2:7411" in text
        assert "unknown" in text
        tail.close()


def test_status_shows_drain_time_against_runtime(sus: Callable[..., Ran], filled: Path) -> None:
    from sustain._native import Control, LogTail

    with sustain.open(filled) as store:
        assert sus("status", filled, "--json").json["power"] is None
        control, tail = Control(str(filled), writable=True), LogTail(str(filled))
        control.set_power(1, None)
        assert "there is no budget" in sus("status", filled).out
        control.set_power(1, 90_000_000_000)
        slot = tail.claim_slot("tcp://10.0.0.2:7411", True)
        behind = store.position - 1000
        tail.update_slot(slot, state="streaming", acked=behind, bandwidth_bytes_per_s=500)
        tail.update_slot(slot, budget_bytes=45_000)
        tail.set_limits(45_000, behind + 500, behind + 40_000, 50_000_000)
        data = sus("status", filled, "--json").json
        conforms(data, STATUS)
        conforms(
            data["power"],
            {
                "state": str,
                "usable_s": (*NUMBER, type(None)),
                "drain_s": (*NUMBER, type(None)),
                "budget_bytes": (int, type(None)),
                "commits": str,
                "waiting_s": (*NUMBER, type(None)),
            },
        )
        assert data["power"] == {
            "state": "on AC",
            "usable_s": 90.0,
            "drain_s": 2.0,
            "budget_bytes": 45_000,
            "commits": "delayed",
            "waiting_s": None,
        }
        (shown,) = data["destinations"]
        assert (shown["bandwidth_bytes_per_s"], shown["drain_s"], shown["budget_bytes"]) == (500, 2.0, 45_000)
        text = sus("status", filled).out
        for words in ("on AC", "90 s for a drain", "would take 2 s", "commits are delayed", "500 B/s"):
            assert words in text
        status = store.status()
        assert status.power is not None
        assert (status.power.state, status.power.commits) == ("on AC", "delayed")
        assert status.destinations[0].drain_s == 2.0
        tail.set_limits(0, 1, 1, 0)
        assert "commits wait" in sus("status", filled).out
        control.clear_power()
        tail.close()
        control.close()


def test_status_shows_what_sustain_run_wrote(sus: Callable[..., Ran], filled: Path) -> None:
    Path(f"{filled}.run.json").write_text(json.dumps({"name": "a", "role": "primary", "lease": "file:///l"}))
    assert sus("status", filled, "--json").json["run"]["name"] == "a"
    assert "file:///l" in sus("status", filled).out
    Path(f"{filled}.run.json").write_text("{half a fi")
    assert sus("status", filled, "--json").json["run"] is None


def test_doctor(sus: Callable[..., Ran], tmp_path: Path) -> None:
    ran = sus("doctor", tmp_path, "--lease", f"file://{tmp_path}", "--json")
    assert ran.status == 0
    finding = {"name": str, "state": str, "found": str, "means": str, "enable": str}
    names = ("replicated_stores", "region_evacuation", "large_pages", "power_aware_placement")
    systems = {name: [finding] for name in names}
    conforms(ran.json, {"path": str, "ok": bool, "systems": systems})
    findings = {each["name"]: each for each in ran.json["systems"]["replicated_stores"]}
    assert findings["kernel"]["found"].startswith("Linux")
    assert "compare" in findings["finding changed array pages"]["found"]
    assert findings["lease"]["state"] == "ok"
    assert list(tmp_path.iterdir()) == []
    text = sus("doctor", tmp_path).out
    for name in findings.keys() - {"lease"}:
        assert name in text


def test_doctor_where_nothing_can_be_kept(sus: Callable[..., Ran], tmp_path: Path) -> None:
    ran = sus("doctor", tmp_path / "no" / "app.sus", "--json")
    assert ran.status == 1
    assert not ran.json["ok"]


@pytest.mark.parametrize(
    ("modes", "release", "state"),
    [
        (["scan", "pagemap", "compare"], (6, 8), "ok"),
        (["pagemap", "compare"], (6, 1), "reduced"),
        (["compare"], (6, 8), "reduced"),
    ],
)
def test_doctor_on_other_kernels(modes: list[str], release: tuple[int, int], state: str) -> None:
    from sustain.cli import doctor

    finding = doctor.check_capture(modes, release, 0, 1000)
    assert finding.state == state
    assert bool(finding.enable) == (state != "ok")
    assert doctor.check_kernel((5, 4)).state == "missing"
    assert doctor.check_kernel(None).state == "unknown"
    assert doctor.check_on_demand(True, 0, 0).state == "ok"
    assert "sysctl" in doctor.check_on_demand(False, 0, 1000).enable
    assert "seccomp" in doctor.check_on_demand(False, None, 0).enable
    assert doctor.check_overcommit(2).state == "reduced"


def test_power(sus: Callable[..., Ran], tmp_path: Path) -> None:
    path = tmp_path / "power"
    path.write_text("ups.status: OL CHRG\nbattery.runtime: 610\nbattery.runtime.low: 60\n")
    data = json.loads(sus("power", f"file://{path}", "--json").out)
    assert (data["power"], data["on_battery"], data["usable_s"]) == ("on AC", False, 610 - 72)
    assert data["charge_percent"] is None
    text = sus("power", f"file://{path}").out
    assert "on AC" in text
    assert "unknown" in text


def test_power_that_cannot_be_asked(sus: Callable[..., Ran], tmp_path: Path) -> None:
    ran = sus("power", f"file://{tmp_path}/none")
    assert ran.status == 1
    assert "error:" in ran.err
    assert "hint:" in ran.err
    assert sus("power", "mains").status == 2
