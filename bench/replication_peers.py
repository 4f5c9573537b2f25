"""The whole picture beside Redis and PostgreSQL: acknowledged writes lost at a kill of the primary, rate, lag.

All have a primary and one replica on this machine, replicating asynchronously over loopback, in files on tmpfs. One
client writes 64-byte values, one after the other, each acknowledged before the next; at a random moment (the seed is
in the notes) the primary is killed with SIGKILL; what was acknowledged is compared with what the replica has.
- Redis: append-only file, fsync every second; the client speaks the protocol over a socket, so its rate
  is mostly that of loopback round trips. `WAIT 1` is its way to wait for a replica.
- PostgreSQL: streaming replication to a hot standby, which is promoted after the kill. One UPDATE by primary key is a
  transaction, which waits for the flush of the primary's log. `synchronous_standby_names` is its way to wait.
- Sustain: the application is the primary: writer, shipper and all are killed. `store.wait(copies=1)`
  waits. Not equal: Sustain is a library and the others are servers; the rates say what an application gets, not
  whose loop is faster. A process kill leaves bytes in the kernel's socket buffers, which still arrive:
  the loss of a whole host would lose a little more on all sides. Ours writes many times as fast, so
  more is on its way at any moment.

Lag: a second client asks the primary for its position and the replica until it has that one, while the writes go on;
its own calls are part of it (two round trips for the servers, two reads of shared memory for ours).
"""

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench.harness import Answer, memory_dir, quiet_collector
from bench.hosts import Writer, receiver, shipper, streaming, until
from bench.peers.pmemobj import PeerMissing
from bench.peers.postgres import PostgresServer
from bench.peers.redis import RedisClient, RedisServer

QUESTION = "acknowledged writes lost at a kill of the primary, rate and lag, beside Redis and PostgreSQL"
KEYS = 10_000
BETWEEN_LAGS_S = 0.005

Run = dict[str, float]


class Lags:
    """How long after it was the primary's a position is the replica's, sampled by a thread."""

    def __init__(self, newest: Callable[[], int], held: Callable[[], int]) -> None:
        self._newest = newest
        self._held = held
        self._stop = threading.Event()
        self._found_s: list[float] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(BETWEEN_LAGS_S):
            position, begun = self._newest(), time.perf_counter()
            while self._held() < position:
                if self._stop.is_set():
                    return  # not to be known any more
                time.sleep(0.0001)
            self._found_s.append(time.perf_counter() - begun)

    @contextmanager
    def sampled(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def figures(self) -> Run:
        """Median and worst, ms; nothing when there was no time for one."""
        if not self._found_s:
            return {}
        return {"lag_ms": statistics.median(self._found_s) * 1e3, "lag_most_ms": max(self._found_s) * 1e3}


def write(seconds: float, one: Callable[[int], object]) -> tuple[int, float]:
    """Call `one` with 1, 2, … for that long; how many returned, and the time."""
    begun = time.perf_counter()
    number = 0
    while time.perf_counter() - begun < seconds:
        one(number + 1)
        number += 1
    return number, time.perf_counter() - begun


def postgres_run(directory: Path, seconds: float, *, wait: bool) -> Run:
    """One kill of a PostgreSQL primary after `seconds` of writing, and the promotion of its standby."""
    directory.mkdir()
    for each in (directory, directory.parent):
        each.chmod(0o711)  # PostgreSQL's user passes through; nothing in there is secret
    with closing(PostgresServer(directory / "primary", synchronous=wait)) as primary:
        # Made before there is a standby: a synchronous commit would wait for one.
        primary.client.execute("SET synchronous_commit = local")
        primary.client.execute("CREATE TABLE bench (key int PRIMARY KEY, number bigint, filler bytea)")
        primary.client.execute(
            "INSERT INTO bench SELECT key, 0, %s FROM generate_series(0, %s) key", (bytes(56), KEYS - 1)
        )
        primary.client.execute("SET synchronous_commit = on")
        with closing(PostgresServer(directory / "standby", primary)) as standby:
            primary.wait_for_standby()
            return _postgres_kill(primary, standby, seconds)


def _postgres_kill(primary: PostgresServer, standby: PostgresServer, seconds: float) -> Run:
    update, filler = b"UPDATE bench SET number = %s, filler = %s WHERE key = %s", bytes(56)
    execute = primary.client.execute
    with closing(primary.connect()) as there, closing(standby.connect()) as here:

        def position(connection: object, function: bytes) -> Callable[[], int]:
            query = b"SELECT pg_wal_lsn_diff(" + function + b"(), '0/0')::bigint"
            return lambda: connection.execute(query).fetchone()[0]  # type: ignore[attr-defined]

        lags = Lags(position(there, b"pg_current_wal_flush_lsn"), position(here, b"pg_last_wal_replay_lsn"))
        with lags.sampled():
            number, spent = write(seconds, lambda at: execute(update, (at, filler, at % KEYS)))
    primary.kill()
    begun = time.perf_counter()
    standby.promote()
    newest = standby.one("SELECT max(number) FROM bench")
    standby.client.execute(update, (newest, filler, newest % KEYS))
    promotion_ms = (time.perf_counter() - begun) * 1e3
    return {
        "lost": number - newest,
        "writes": number,
        "rate": number / spent,
        "promotion_ms": promotion_ms,
        **lags.figures(),
    }


def redis_run(directory: Path, seconds: float, *, wait: bool) -> Run:
    """One kill of a Redis primary after `seconds` of writing."""
    directory.mkdir()
    primary = RedisServer(directory / "primary")
    replica = RedisServer(directory / "replica", primary)
    try:
        primary.wait_for_replica(replica)
        call, filler = primary.client.call, bytes(56)

        def one(number: int) -> None:
            call(b"SET", b"key:%012d" % (number % KEYS), number.to_bytes(8, "big") + filler)
            if wait:
                call(b"WAIT", b"1", b"0")

        with closing(RedisClient(primary.port)) as there, closing(RedisClient(replica.port)) as here:
            lags = Lags(
                lambda: int(there.info(b"replication")["master_repl_offset"]),
                lambda: int(here.info(b"replication")["slave_repl_offset"]),
            )
            with lags.sampled():
                number, spent = write(seconds, one)
        primary.kill()
        replica.client.call(b"REPLICAOF", b"NO", b"ONE")
        values = replica.client.call(b"MGET", *(b"key:%012d" % key for key in range(min(KEYS, number + 1))))
        assert isinstance(values, list)
        newest = max((int.from_bytes(value[:8], "big") for value in values if value), default=0)
        return {"lost": number - newest, "writes": number, "rate": number / spent, **lags.figures()}
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
            standby = Control(str(there))
            lags = Lags(lambda: committed(control), lambda: committed(standby))
            first, begun = control.words(), time.perf_counter()
            with lags.sampled():
                time.sleep(seconds)  # the length of the measurement, not a wait for something
            writer.process.kill()
            shipping.process.kill()
            spent = time.perf_counter() - begun
        last = control.words()
        shipping.kill()
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
    return {"lost": max(0, lost), "writes": writes, "rate": writes / spent, **lags.figures()}


def committed(control: object) -> int:
    """Position of the newest commit; 0 before the first."""
    words = control.words()  # type: ignore[attr-defined]
    return words["committed"] if words else 0


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
        "PostgreSQL": lambda where, seconds: postgres_run(where, seconds, wait=False),
        "PostgreSQL, synchronous": lambda where, seconds: postgres_run(where, seconds, wait=True),
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
    table = {name: summary(runs) for name, runs in found.items() if runs}
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
        "all replicate asynchronously unless they wait; the process's own copy is kept out of the count",
    ]
    return result


def summary(runs: list[Run]) -> Run:
    """The row of one contender."""
    row = {
        "lost, median": statistics.median(run["lost"] for run in runs),
        "lost, most": max(run["lost"] for run in runs),
        "lost, ms of writing": statistics.median(run["lost"] / run["rate"] * 1e3 for run in runs),
        "writes/s": statistics.median(run["rate"] for run in runs),
    }
    for name, words in (
        ("lag_ms", "lag, median ms"),
        ("lag_most_ms", "lag, most ms"),
        ("promotion_ms", "promotion, ms"),
    ):
        values = [run[name] for run in runs if name in run]
        if values:
            row[words] = statistics.median(values)
    return row
