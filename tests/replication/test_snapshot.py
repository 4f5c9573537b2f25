"""What a snapshot sends, step by step: a real log and image, and an application that commits between any two
steps."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sustain
from sustain._native import LogTail, Replica
from sustain.errors import PeerUnreachable
from sustain.replication.session import Snapshot
from sustain.replication.snapshot import history_before, send_snapshot
from sustain.replication.wire import PROTOCOL, Hello, Kind, SnapshotBegin, decode

PAGES = 600  # of the array that changes; more than two runs


class Watched:
    """A LogTail that says when a page run is about to be read, and may lie about what is applied."""

    def __init__(self, log: LogTail) -> None:
        self.log = log
        self.before_read: Callable[[int], None] = lambda _first: None
        self.words_of: Callable[[dict[str, Any]], dict[str, Any]] = lambda words: words

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    def image_view(self, first: int, pages: int) -> memoryview:
        self.before_read(first)
        return self.log.image_view(first, pages)

    def words(self) -> Any:
        return self.words_of(dict(self.log.words()))


class Incoming:
    """A `snapshot.Link` and its channel that put everything straight into a replica, as a receiver would."""

    def __init__(self, log: LogTail, path: str) -> None:
        self.log = log
        self.path = path
        self.channel = self
        self.replica: Replica | None = None
        self.shipped: list[tuple[str, int]] = []
        self.pinned: list[int] = []

    def send(
        self, kind: Kind, a: int = 0, b: int = 0, _c: int = 0, payload: bytes | memoryview = b""
    ) -> None:
        if kind is Kind.SNAPSHOT_BEGIN:
            begin = decode(SnapshotBegin, payload)
            self.replica = Replica.create_for_snapshot(
                self.path,
                begin.image_size,
                begin.log_size,
                "memory",
                begin.store,
                begin.epoch,
                begin.history,
                begin.start,
                begin.start_seq,
                begin.start_chain,
            )
        elif kind is Kind.PAGES:
            assert self.replica is not None
            self.shipped.append(("pages", a))
            self.replica.write_pages(a, bytes(payload))
        elif kind is Kind.SNAPSHOT_END:
            assert self.replica is not None
            assert self.replica.end == a
            self.replica.finish_snapshot()

    def pin(self, lsn: int) -> None:
        self.pinned.append(lsn)
        self.log.set_floor(lsn)

    def progress(self, _done: int, _total: int) -> None:
        pass

    def ship_log(self, lsn: int, until: int) -> int:
        assert self.replica is not None
        self.shipped.append(("log", until))
        while lsn < until:
            with self.replica.buffer(until - lsn) as room:
                length = len(room)
                room[:] = self.log.log_view(lsn, length)
            self.replica.advance(length)
            lsn += length
        return lsn

    def wait_digests(self) -> dict[int, bytes]:
        return {}

    def wait_done(self, _lsn: int) -> None:
        pass


class Scene:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = sustain.create(directory / "a.sus", size="16MiB", log_size="8MiB", durability="memory")
        self.array: Any = self.store.array("a", shape=(PAGES * 512,), dtype="i8")
        self.array[:] = 1
        self.store.commit()
        self.store.checkpoint()
        self.states: dict[int, int] = {}  # the value at each commit, by position
        self.log = LogTail(str(directory / "a.sus"))
        self.watched = Watched(self.log)
        self.link = Incoming(self.log, str(directory / "b.sus"))
        self.value = 1

    def commit(self) -> None:
        """One commit that changes a word of every page: a mixture of two commits shows in any pair of
        pages."""
        self.value += 1
        self.array[::512] = self.value
        self.states[self.store.commit()] = self.value

    def commits(self, count: int) -> None:
        for _ in range(count):
            self.commit()

    def send(self) -> None:
        block = self.log.superblock()
        hello = Hello(
            protocol=PROTOCOL,
            store=block["store_uuid"],
            replica=block["replica_uuid"],
            name="a",
            epoch=block["epoch"],
            history=block["history"],
            log_size=block["log_size"],
            image_size=block["image_size"],
            durability=block["durability"],
            tail=self.log.tail(),
            committed=self.log.committed(),
        )
        send_snapshot(self.link, self.watched, hello, Snapshot("a test"), False)  # type: ignore[arg-type]

    def check(self) -> None:
        """The copy is exactly one of the committed states, that of its end."""
        assert self.link.replica is not None
        end = self.link.replica.end
        self.link.replica.close()
        with sustain.open(self.link.path, verify="full") as copy:
            found = np.asarray(copy.array("a"))[::512]
            assert set(found.tolist()) == {self.states[end]}
            assert copy.position == end

    def close(self) -> None:
        self.log.close()
        del self.array
        self.store.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


def test_commits_before_every_page_run(scene: Scene) -> None:
    scene.commit()
    scene.watched.before_read = lambda _first: scene.commit()
    scene.send()
    assert len([kind for kind, _ in scene.link.shipped if kind == "pages"]) >= 3
    scene.check()


def test_a_large_image_does_not_hold_the_log(scene: Scene) -> None:
    """Many logs' worth is committed during one snapshot: the pin moves along, or a commit would find the log
    full."""

    def commit_and_acknowledge(_first: int) -> None:
        scene.commits(200)
        if scene.link.replica is not None:
            scene.log.set_floor(scene.link.replica.end)

    scene.commit()
    scene.watched.before_read = commit_and_acknowledge
    scene.send()
    assert scene.link.shipped[1][0] == "log", scene.link.shipped[:4]
    scene.check()


def test_log_between_pages_never_passes_what_is_applied(scene: Scene) -> None:
    """A commit that is in the log and not yet in the image must not be shipped before the pages that lack
    it."""
    scene.commit()
    applied = scene.log.words()["applied"]
    scene.watched.words_of = lambda words: words | {"applied": applied}
    scene.watched.before_read = lambda _first: scene.commits(40)
    scene.send()
    before_last_page = scene.link.shipped[
        : max(at for at, each in enumerate(scene.link.shipped) if each[0] == "pages")
    ]
    assert all(until <= applied for kind, until in before_last_page if kind == "log")
    scene.check()


def test_a_recovery_during_a_snapshot_begins_it_again(scene: Scene) -> None:
    def words_of(words: dict[str, Any]) -> dict[str, Any]:
        between = any(kind == "log" for kind, _ in scene.link.shipped)
        return words | {"recoveries": 4 if between else 2}

    scene.commit()
    scene.watched.words_of = words_of
    scene.watched.before_read = lambda _first: scene.commits(50)
    with pytest.raises(PeerUnreachable, match="restarted"):
        scene.send()


def test_the_pin_is_set_before_it_is_believed(scene: Scene) -> None:
    scene.commit()
    points = iter([(0, 0, 0), scene.log.snapshot_point(), scene.log.snapshot_point()])
    scene.watched.snapshot_point = lambda: next(points)  # type: ignore[attr-defined]
    scene.send()
    assert scene.link.pinned == [0, scene.log.snapshot_point()[0]]


@pytest.mark.parametrize(
    ("start", "expected"),
    [(0, [(1, 0)]), (100, [(1, 0)]), (101, [(1, 0), (2, 100)]), (900, [(1, 0), (2, 100), (5, 300)])],
)
def test_history_before(start: int, expected: list[tuple[int, int]]) -> None:
    assert history_before([(1, 0), (2, 100), (5, 300)], start) == expected
