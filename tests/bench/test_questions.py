"""Each question, as a smoke run: the documented shape, and that its peers really ran. Never its speed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.__main__ import QUESTIONS

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {
    "question", "unit", "ours", "peers", "limit", "ratio", "reach", "met", "runs", "machine",
    "quick", "missing", "details", "notes",
}  # fmt: skip
PEERS = {
    "commit_memory": {"LMDB", "SQLite", "libpmemobj"},
    "commit_disk_1": {"SQLite WAL FULL", "pwrite+fdatasync"},
    "commit_disk_16": {"sustain, one thread", "pwrite+fdatasync, 16 threads", "SQLite WAL FULL, 16 threads"},
    "commit_array": {"copy", "pickle", "LMDB"},
    "sqlite_on_store": {"WAL FULL", "DELETE FULL"},
    "ship_throughput": {"raw loopback TCP"},
    "ship_tls": {"raw loopback TCP", "without TLS", "bare TLS, nothing else"},
    "commit_with_shipper": {"without a shipper"},
    "ship_two": {"one destination", "none"},
    "recovery": {"memory copy"},
    "takeover": set(),
    "handover": set(),
    "restore_on_demand": {"restored in full first"},
    "replication_peers": {
        "sustain, wait",
        "Redis",
        "Redis, WAIT 1",
        "PostgreSQL",
        "PostgreSQL, synchronous",
    },
    "archive_upload": {"obstore, objects of 16 MiB", "obstore, one object in parts"},
    "archive_restore": {"cp of the same bytes"},
    "region_scan": {"BLAKE2b of each page", "memory read, one core"},
    "region_save": {"cp of the same file", "raw loopback TCP", "rsync", "dd | nc"},
    "region_restore": {"cp of the same file", "raw loopback TCP", "rsync", "dd | nc"},
    "region_save_tcp": {"cp of the same file", "raw loopback TCP", "rsync", "dd | nc"},
    "region_restore_tcp": {"cp of the same file", "raw loopback TCP", "rsync", "dd | nc"},
    "region_tracking_cost": {"the program alone"},
    "region_outage": {"saving everything"},
    "drain": {"raw TCP on this link", "the link"},
    "agent_idle": set(),
    "guest_census": {"smaps_rollup", "entries of pagemap"},
    "guest_sampling": {"clear_refs and smaps"},
    "guest_memory_plan": set(),
    "guest_memory_policies": {"MOM", "Proxmox", "nothing"},
    "guest_memory_guests": {"MOM, goal 0.2", "Proxmox, goal 0.2", "nothing"},
    "large_pages_plan": set(),
    "large_pages_policies": {"address order", "random order", "oracle"},
    "large_pages_speed": {"address order", "all small", "all large"},
    "large_pages_counting": set(),
    "packages_policies": {"static, mean", "static, peak", "irqbalance", "threshold", "optimum"},
    "packages_plan": set(),
    "packages_sensing": {"ps -eL", "all threads at each reading"},
}
MAY_MISS = {
    "libpmemobj": Path("/usr/include/libpmemobj.h").exists,
    "Redis": lambda: bool(shutil.which("redis-server")),
    "Redis, WAIT 1": lambda: bool(shutil.which("redis-server")),
    "PostgreSQL": lambda: any(Path("/usr/lib/postgresql").glob("*/bin/initdb")),
    "PostgreSQL, synchronous": lambda: any(Path("/usr/lib/postgresql").glob("*/bin/initdb")),
    "rsync": lambda: bool(shutil.which("rsync")),
    "dd | nc": lambda: bool(shutil.which("nc")),
}


def bench(*words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    made = subprocess.run(
        [sys.executable, "-m", "bench", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_in_the_documented_shape_and_its_peers_ran(name: str) -> None:
    answer: dict[str, Any] = json.loads(bench(name, "--quick", "--json"))
    assert set(answer) == SHAPE
    assert answer["quick"] is True
    assert answer["ours"] >= 0 if name == "replication_peers" else answer["ours"] > 0
    assert answer["reach"]
    assert answer["met"] is None  # a smoke run judges nothing
    figures = {**answer["peers"], **answer["limit"]}
    for peer in PEERS[name]:
        if peer in MAY_MISS and not MAY_MISS[peer]():
            assert peer in answer["missing"]
        else:
            assert figures[peer] is not None
            assert figures[peer] >= 0


def test_lists_every_question() -> None:
    assert set(json.loads(bench("--json"))) == set(QUESTIONS) == set(PEERS)


def test_an_unknown_question_is_wrong_usage() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "bench", "nothing"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 2
    assert "no such question" in made.stderr
