"""SIGKILL of a SQLite application at any moment: SQLite's own check, and every acknowledged transaction."""

import random
import shutil
import threading
from pathlib import Path

import pytest

import sustain
from sustain import _native
from tests.crash.databases import NAME, OTHER, Model, prepare, transaction
from tests.crash.processes import Victim, rounds, seed
from tests.crash.test_kill_replication import Hosts

pytestmark = pytest.mark.crash


@pytest.mark.parametrize("durability", ["memory", "disk"])
@pytest.mark.timeout(7200)
def test_application_killed_at_random(tmp_path: Path, durability: str) -> None:
    chosen = seed()
    print(f"SUSTAIN_CRASH_SEED={chosen}")
    dice = random.Random(chosen)
    path = tmp_path / "app.sus"
    sustain.create(path, size="8MiB", log_size="2MiB", durability=durability).close()
    model, pause, acknowledged = Model(), threading.Event(), 0
    for _ in range(rounds(20)):
        beside = ["--beside"] if dice.random() < 0.5 else []
        with Victim("tests.crash.sqlite_writer", path, *beside, log=tmp_path / "writer.log") as writer:
            if dice.random() < 0.7:
                writer.wait_for("open")
                writer.wait_for("commit", writer.last["open"] + int(dice.expovariate(1 / 60)))
            else:  # in its start, its recovery, or the first transaction of all
                pause.wait(dice.uniform(0, 0.5))
            said = writer.kill()
        acknowledged = max(acknowledged, said.get("commit", 0))
        # Sometimes the recovery is left to the next one, which may be killed in it; a reader must not mind.
        with sustain.open(path, readonly=dice.random() < 0.5, verify="full") as store:
            n = model.check(store)
            if "beside" in {name for name, _, _ in store.objects()}:
                entries = store.map("beside")
                assert entries.get(b"one") == entries.get(b"two")
        assert acknowledged <= n <= acknowledged + 1, f"acknowledged {acknowledged}, recovered {n}"
        acknowledged = n
    assert acknowledged > 0


@pytest.mark.parametrize("durability", ["memory", "disk"])
@pytest.mark.timeout(7200)
def test_a_replica_is_taken_over_at_any_moment(tmp_path: Path, durability: str) -> None:
    """The application, its shipper and the receiver are killed in any combination. A copy of the replica is then made a
    primary: it holds what it was said to hold, and the application goes on with it."""
    chosen = seed()
    print(f"SUSTAIN_CRASH_SEED={chosen}")
    dice = random.Random(chosen)
    hosts = Hosts(tmp_path, "tests.crash.sqlite_writer", copies_every=5)
    sustain.create(hosts.primary, size="8MiB", log_size="2MiB", durability=durability).close()
    model, copied, takeovers, pause = Model(), 0, 0, threading.Event()
    try:
        for _ in range(rounds(10)):
            hosts.start()
            writer = hosts.running["writer"]
            if dice.random() < 0.7:
                writer.wait_for("copied", copied + int(dice.expovariate(1 / 60)))
            else:
                pause.wait(dice.uniform(0, 0.5))
            victims = dice.sample(["writer", "shipper", "receiver"], dice.choice([1, 2, 3]))
            copied = max(copied, writer.last.get("copied", 0))
            for name in dict.fromkeys([*victims, "receiver"]):
                said = hosts.kill(name)
                copied = max(copied, said.get("copied", 0))
            if whole(hosts.replica):
                n = take_over(hosts.replica, tmp_path / "taken.sus", model)
                assert n >= copied, f"of {copied} a copy was promised, {n} is there"
                takeovers += 1
            else:
                assert copied == 0
    finally:
        hosts.close()
    assert takeovers > 0


def test_readers_beside_the_application(tmp_path: Path) -> None:
    """Each refresh is to a state between two transactions, and not before what was acknowledged; the replica's too."""
    hosts = Hosts(tmp_path, "tests.crash.sqlite_writer", copies_every=5)
    sustain.create(hosts.primary, size="8MiB", log_size="2MiB", durability="memory").close()
    try:
        hosts.start()
        writer = hosts.running["writer"]
        writer.wait_for("copied")
        for path, word in ((hosts.primary, "commit"), (hosts.replica, "copied")):
            model, said = Model(), 0
            with sustain.open(path, readonly=True) as reader:
                for _ in range(rounds(8)):
                    said = writer.wait_for(word, said)
                    reader.refresh()
                    assert model.check(reader) >= said
    finally:
        hosts.close()


def whole(path: Path) -> bool:
    """Whether a first snapshot has come."""
    return path.exists() and not _native.Control(str(path)).superblock()["incomplete"]


def take_over(replica: Path, copy: Path, model: Model) -> int:
    """What a promoted copy of the replica holds, and whether the application can go on with it."""
    shutil.copyfile(replica, copy)
    promoted = _native.Replica(str(copy))
    promoted.promote(promoted.epoch + 1)
    promoted.close()
    with sustain.open(copy, verify="full") as store:
        n = model.check(store)
        connection = store.sqlite(NAME)
        prepare(connection, OTHER)
        for each in range(n + 1, n + 30):
            transaction(each, connection)
        connection.close()
        ahead = Model()
        ahead.check(store)
        assert ahead.n == n + 29
    copy.unlink()
    return n
