"""Archives for tests: places of both kinds, a store with its whole history, and restores to compare with it."""

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sustain
from sustain._native import Control
from sustain.errors import NotAnArchive, SustainError
from sustain.replication.archive.contents import read_contents
from sustain.replication.archive.names import SegmentName, SnapshotName
from sustain.replication.archive.place import Place, open_place
from sustain.replication.archive.restore import Restore, Restored, Wish
from sustain.replication.urls import parse_archive
from tests.powerfail.regions.s3 import bucket, s3_endpoint
from tests.replication.conftest import Lab, Running, until

__all__ = ["bucket", "s3_endpoint"]


class Told:
    """A store that changes, and an oracle of what it held after each commit."""

    def __init__(self, store: sustain.Store, path: str, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.positions: list[int] = []
        self.states: list[dict[bytes, bytes]] = []
        self.times: list[int] = []
        self._control = Control(path)
        self._path = path

    def change(self, commits: int) -> int:
        """So many commits of random changes; the last position."""
        users = self.store.map("users")
        state = dict(self.states[-1]) if self.states else {}
        for _ in range(commits):
            for _ in range(self.random.randint(1, 4)):
                key = b"k%03d" % self.random.randrange(200)
                if key in state and self.random.random() < 0.2:
                    del users[key], state[key]
                else:
                    users[key] = state[key] = self.random.randbytes(self.random.randrange(1, 300))
            self.positions.append(self.store.commit())
            self.states.append(dict(state))
            words = self._control.words()
            assert words is not None
            self.times.append(words["commit_time_ns"])
        return self.positions[-1]

    def at(self, position: int) -> dict[bytes, bytes]:
        """What the store held at the last commit at or before `position`."""
        held = [at for at, each in enumerate(self.positions) if each <= position]
        return self.states[held[-1]] if held else {}

    def expected_by(self, time_ns: int) -> int:
        """Position of the last commit before the first one that is later than `time_ns`."""
        later = [at for at, each in enumerate(self.times) if each > time_ns]
        return self.positions[later[0] - 1] if later else self.positions[-1]

    def close(self) -> None:
        self._control.close()


class Kit:
    """What the tests of this directory do all the time."""

    def __init__(self, lab: Lab, url: str, seed: int = 1) -> None:
        self.lab, self.url = lab, url
        self.said: list[str] = []
        self._seed = seed
        self._numbers = iter(range(10**6))
        self._told: list[Told] = []

    @property
    def place(self) -> Place:
        return open_place(parse_archive(self.url))

    @property
    def directory(self) -> Path:
        return Path(self.url.removeprefix("file://"))

    def tell(self, name: str = "a", **options: Any) -> Told:
        told = Told(self.lab.create(name, **options), self.lab.path(name), self._seed)
        self._told.append(told)
        return told

    def ship(self, options: str = "every=20ms", name: str = "a", **more: Any) -> Running:
        return self.lab.ship(f"{self.url}?{options}", name=name, **more)

    def arrived(self, told: Told, position: int | None = None) -> int:
        """Wait until the archive acknowledges `position` (all that is committed); the position."""
        position = told.positions[-1] if position is None else position
        told.store.wait(position, copies=1, timeout=30)
        return position

    def restore(self, *urls: str, position: int | None = None, at_ns: int | None = None) -> Restored:
        path = self.lab.path(f"restored-{next(self._numbers)}")
        places = [open_place(parse_archive(each)) for each in urls or (self.url,)]
        return Restore(places, self.said.append).run(path, Wish(position, at_ns), "memory")

    def held(self, restored: Restored) -> dict[bytes, bytes]:
        """What a restored store holds, after its own check of every page."""
        with sustain.open(restored.path) as store:
            store.verify()
            held = dict(store.map("users").items())
        Path(restored.path).unlink()
        return held

    def objects(self) -> list[Path]:
        """Files of a directory's archive, hidden ones too."""
        return sorted(path for path in self.directory.rglob("*") if path.is_file())

    def segments(self) -> list[SegmentName]:
        """As they are listed now; none while there is no archive yet."""
        with contextlib.suppress(NotAnArchive):
            return read_contents(self.place).segments()
        return []

    def snapshots(self) -> list[SnapshotName]:
        with contextlib.suppress(NotAnArchive):
            return read_contents(self.place).snapshots()
        return []

    def end(self) -> None:
        for told in self._told:
            told.close()


@pytest.fixture
def directory(lab: Lab, tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(lab, f"file://{tmp_path}/arch")
    yield kit
    kit.end()


@pytest.fixture(params=["directory", "bucket"])
def kit(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Iterator[Kit]:
    """An empty archive of either kind."""
    there = f"file://{tmp_path}" if request.param == "directory" else request.getfixturevalue("bucket")
    kit = Kit(lab, f"{there}/some/app")
    yield kit
    kit.end()


def fails(action: Callable[[], object], kind: type[SustainError]) -> SustainError:
    """The error that `action` raises; it names what is wrong, and does not leave half a store."""
    with pytest.raises(kind) as caught:
        action()
    return caught.value


__all__ += ["Kit", "Told", "fails", "until"]
