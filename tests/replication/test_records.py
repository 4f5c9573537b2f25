"""Reading COMMIT records out of a log that the engine wrote."""

import contextlib
import functools
import itertools
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import sustain
from sustain._native import LogTail, Replica
from sustain.replication.records import chain_at, changes, commit_at, commits, epoch_at, groups


def test_commits_of_a_real_log(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sus")
    with sustain.create(path, size="4MiB", log_size="2MiB", durability="memory") as store:
        users, positions = store.map("users"), [store.commit()]
        for number in range(50):
            users[b"%d" % number] = b"x" * number
            positions.append(store.commit())
        log = LogTail(path)
        try:
            assert log.tail() == 0
            data = bytes(log.log_view(0, positions[-1]))
            found = list(commits(data, 0))
            assert [commit.end for commit in found][-50:] == positions[-50:]
            assert [commit.number for commit in found] == list(range(1, len(found) + 1))
            assert all(later.chain == earlier.checksum for earlier, later in itertools.pairwise(found))
            for commit in found:
                # looked up in the record itself, and, once that is trimmed, in the one behind it
                whole = chain_at(log.log_view, 0, positions[-1], commit.end)
                assert whole == commit.checksum
                behind = chain_at(log.log_view, commit.end, positions[-1], commit.end)
                assert behind == (commit.checksum if commit.end < positions[-1] else None)
            assert chain_at(log.log_view, 0, positions[-1], 0) == 0
        finally:
            log.close()


def logged(path: str) -> tuple[bytes, bytes]:
    """(log, image) of a store with commits of every kind; the log is whole."""
    with sustain.create(path, size="4MiB", log_size="4MiB", durability="memory") as store:
        users, blob = store.map("users"), store.file("blob")
        for number in range(30):
            users[b"%d" % (number % 7)] = b"x" * number * 9
            blob.pwrite(bytes([number]) * 30_000, number * 10_000)
            store.commit()
        blob.truncate(0)
        store.delete("blob")
        end = store.commit()
        log = LogTail(path)
        try:
            assert log.tail() == 0
            with log.log_view(0, end) as data, log.image_view(0, log.image_size() // 4096) as image:
                return bytes(data), bytes(image)
        finally:
            log.close()


def test_the_changes_of_all_commits_make_the_image(tmp_path: Path) -> None:
    data, image = logged(str(tmp_path / "a.sus"))
    made = bytearray(len(image))
    found = list(groups(data, 0))
    assert [each.commit for each in found] == list(commits(data, 0))
    for group in found:
        for change in changes(data, group):
            made[change.offset : change.offset + change.length] = change.data or bytes(change.length)
    assert made == image


def test_an_epoch_is_told_from_a_commit_of_an_application(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sus")
    with sustain.create(path, size="4MiB", log_size="2MiB", durability="memory") as store:
        store.map("users")[b"a"] = b"1"
        store.commit()
    replica = Replica(path)
    start, tail = replica.promote(7), replica.words()["tail"]
    end, uuid = replica.end, replica.superblock()["replica_uuid"]
    data = replica.read_log(tail, end - tail)
    replica.close()
    (group,) = groups(data[start - tail :], start)
    assert (group.opens_epoch, list(changes(data[start - tail :], group))) == (7, [])
    assert epoch_at(data, start - tail, start) == (7, uuid)
    assert epoch_at(data, start - tail, start + 8) is None
    assert epoch_at(data[: start - tail + 60], start - tail, start) is None


@functools.cache
def sample() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        return logged(f"{directory}/a.sus")[0][:70_000]


@given(at=st.integers(0, 69_999), bits=st.integers(1, 255), length=st.integers(0, 70_000))
def test_damage_is_an_end_or_a_value_error(at: int, bits: int, length: int) -> None:
    data = bytearray(sample()[:length])
    if at < length:
        data[at] ^= bits
    for group in groups(bytes(data), 0):
        with contextlib.suppress(ValueError):
            assert all(change.length >= 0 for change in changes(bytes(data), group))


@given(st.binary(max_size=400), st.integers(0, 2**64 - 1))
def test_arbitrary_bytes(data: bytes, lsn: int) -> None:
    assert len(list(commits(data, lsn))) <= len(data) // 72
    commit_at(data, 0, lsn)
