"""Reading COMMIT records out of a log that the engine wrote."""

import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import sustain
from sustain._native import LogTail
from sustain.replication.records import chain_at, commit_at, commits


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


@given(st.binary(max_size=400), st.integers(0, 2**64 - 1))
def test_arbitrary_bytes(data: bytes, lsn: int) -> None:
    assert len(list(commits(data, lsn))) <= len(data) // 72
    commit_at(data, 0, lsn)
