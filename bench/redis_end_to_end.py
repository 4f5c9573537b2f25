"""The whole picture beside Redis: acknowledged writes lost at a kill of the primary, and the rate.

Both have a primary and one replica on this machine, replicating asynchronously over loopback. One
client writes 64-byte values, one after the other, each acknowledged before the next; at a random moment
(the seed is in the notes) the primary is killed with SIGKILL; what was acknowledged is compared with
what the replica has.
- Redis: append-only file, fsync every second; the client speaks the protocol over a socket, so its rate
  is mostly that of loopback round trips. `WAIT 1` is its way to wait for a replica.
- Sustain: the application is the primary: writer, shipper and all are killed. `store.wait(copies=1)`
  waits. Not equal: Sustain is a library and Redis a server; the rates say what an application gets, not
  whose loop is faster. A process kill leaves bytes in the kernel's socket buffers, which still arrive:
  the loss of a whole host would lose a little more on both sides. Ours writes many times as fast, so
  more is on its way at any moment.
"""

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from bench.harness import Answer, memory_dir, quiet_collector
from bench.hosts import Writer, receiver, shipper, streaming, until
from bench.peers.pmemobj import PeerMissing
from bench.peers.redis import RedisServer

QUESTION = "acknowledged writes lost at a kill of the primary, and the rate, beside Redis"
KEYS = 10_000

Run = dict[str, float]


def redis_run(directory: Path, seconds: float, *, wait: bool) -> Run:
    """One kill of a Redis primary after `seconds` of writing."""
    directory.mkdir()
    primary = RedisServer(directory / "primary")
    replica = RedisServer(directory / "replica", primary)
    try:
        primary.wait_for_replica(replica)
        call, filler = primary.client.call, bytes(56)
        begun = time.perf_counter()
        number = 0
        while time.perf_counter() - begun < seconds:
            call(b"SET", b"key:%012d" % ((number + 1) % KEYS), (number + 1).to_bytes(8, "big") + filler)
            if wait:
                call(b"WAIT", b"1", b"0")
            number += 1
        spent = time.perf_counter() - begun
        primary.kill()
        replica.client.call(b"REPLICAOF", b"NO", b"ONE")
        values = replica.client.call(b"MGET", *(b"key:%012d" % key for key in range(min(KEYS, number + 1))))
        assert isinstance(values, list)
        newest = max((int.from_bytes(value[:8], "big") for value in values if value), default=0)
        return {"lost": number - newest, "writes": number, "rate": number / spent}
    finally:
        primary.close()
        replica.close()


def our_run(directory: Path, seconds: float, *, wait: bool) -> Run:
    """One kill of everything on our primary after `seconds` of writing."""
    from sustain._native import Control, Engine

    directory.mkdir()
    here, there = directory / "here.sus", directory / "there.sus"
    Engine.format(str(here), 64 << 20, 64 << 20, "memory")
    control = Control(str(here))
    receiving, port = receiver(there)
    with receiving, shipper(here, port) as shipping:
        until(lambda: streaming(control), shipping, receiving)
        with Writer("steady", here, *(["wait"] if wait else [])) as writer:
            writer.ready()
            first, begun = control.words(), time.perf_counter()
            time.sleep(seconds)  # the length of the measurement, not a wait for something
            writer.process.kill()
            shipping.process.kill()
            spent = time.perf_counter() - begun
        last = control.words()
        shipping.kill()
        standby = Control(str(there))
        until(lambda: settled(standby), receiving)
        held = standby.words()
        assert first is not None
        assert last is not None
        assert held is not None
        writes = last["commit_seq"] - first["commit_seq"]
        standby.close()
    control.close()
    # With `wait` a write counts as acknowledged once the wait has returned: all but the last commit.
    lost = last["commit_seq"] - held["commit_seq"] - (1 if wait else 0)
    return {"lost": max(0, lost), "writes": writes, "rate": writes / spent}


def settled(control: object) -> bool:
    """Whether the receiver has applied all that it got: no movement over a few looks."""
    seen = []
    for _ in range(20):
        words = control.words()  # type: ignore[attr-defined]
        seen.append(words["committed"])
        time.sleep(0.005)
    return len(set(seen)) == 1


def answer(quick: bool = False) -> Answer:
    """Writes lost, the median of the kills."""
    rounds = 1 if quick else 7
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    contenders: dict[str, Callable[[Path, float], Run]] = {
        "sustain": lambda where, seconds: our_run(where, seconds, wait=False),
        "sustain, wait": lambda where, seconds: our_run(where, seconds, wait=True),
        "Redis": lambda where, seconds: redis_run(where, seconds, wait=False),
        "Redis, WAIT 1": lambda where, seconds: redis_run(where, seconds, wait=True),
    }
    found: dict[str, list[Run]] = {name: [] for name in contenders}
    missing: dict[str, str] = {}
    for _ in range(rounds):
        for name, contender in contenders.items():
            if name in missing:
                continue
            seconds = source.uniform(0.1, 0.2) if quick else source.uniform(0.8, 1.6)
            with memory_dir() as directory, quiet_collector():
                try:
                    found[name].append(contender(directory / "run", seconds))
                except PeerMissing as error:
                    missing[name] = str(error)
    table = {
        name: {
            "lost, median": statistics.median(run["lost"] for run in runs),
            "lost, most": max(run["lost"] for run in runs),
            "lost, ms of writing": statistics.median(run["lost"] / run["rate"] * 1e3 for run in runs),
            "writes/s": statistics.median(run["rate"] for run in runs),
        }
        for name, runs in found.items()
        if runs
    }
    result = Answer(
        question=QUESTION,
        unit="writes lost",
        ours=table["sustain"]["lost, median"],
        peers={
            name: table[name]["lost, median"] if name in table else None
            for name in contenders
            if name != "sustain"
        },
        limit={},
        runs=rounds,
        missing=missing,
        details=dict(table.items()),
        quick=quick,
    )
    result.ask(
        "with wait(copies=1) nothing acknowledged is lost",
        table["sustain, wait"]["lost, most"],
        lambda lost: lost == 0,
    )
    result.notes = [
        f"seed {seed}",
        "both replicate asynchronously; both keep the process's own copy out of the count",
    ]
    return result
