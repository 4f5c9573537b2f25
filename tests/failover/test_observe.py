"""What the supervisor sees of its store."""

import json
import uuid
from pathlib import Path

import sustain
from sustain._native import Control
from sustain.failover.observe import StoreWatch


def _problem(path: Path) -> str:
    watch = StoreWatch(str(path))
    try:
        view, _ = watch.look()
        assert view is not None
        return view.problem
    finally:
        watch.close()


def test_a_copy_with_commits_of_its_own_must_not_take_over(tmp_path: Path) -> None:
    path = tmp_path / "app.sus"
    with sustain.create(path, size="4MiB", log_size="2MiB", durability="disk") as store:
        store.map("m")[b"k"] = b"v"
        end = store.commit()
        replica = uuid.UUID(bytes=store.info()["replica_uuid"])
    report = tmp_path / f"app.sus.orphan-e1-0-{end}.json"
    for owner, expected in ((uuid.uuid4(), False), (replica, True)):
        report.write_text(json.dumps({"replica_uuid": str(owner)}))
        assert (str(report) in _problem(path)) is expected
    report.rename(tmp_path / f"app.sus.orphan-e1-0-{end + 8}.json")  # of another end: it was resolved since
    assert _problem(path) == ""


def test_a_file_that_is_no_store_is_a_problem_not_an_error(tmp_path: Path) -> None:
    path = tmp_path / "app.sus"
    path.write_bytes(b"not a store" * 1000)
    assert str(path) in _problem(path)


def test_an_absent_store_is_nothing(tmp_path: Path) -> None:
    watch = StoreWatch(str(tmp_path / "none.sus"))
    assert watch.look() == (None, ())


def test_control_words_of_a_closed_store_tell_its_end(tmp_path: Path) -> None:
    path = tmp_path / "app.sus"
    with sustain.create(path, size="4MiB", log_size="2MiB") as store:
        store.map("m")[b"k"] = b"v"
        end = store.commit()
    watch = StoreWatch(str(path))
    view, destinations = watch.look()
    watch.close()
    assert view is not None
    assert (view.end, destinations) == (end, ())
    assert Control(str(path)).words() is not None
