"""The resume decision, against a model in which the truth is known: copies as lists of commits with
identities."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sustain.replication.session import (
    PrimaryFacts,
    Refused,
    ReplicaFacts,
    Resume,
    Rewind,
    Snapshot,
    common_point,
    decide_resume,
)

UUID = b"s" * 16


@dataclass
class Copy:
    """One host's copy: (identity, length, epoch) of each commit, oldest first."""

    commits: list[tuple[int, int, int]] = field(default_factory=list)
    seen: int = 1

    @property
    def end(self) -> int:
        return sum(length for _, length, _ in self.commits)

    @property
    def epoch(self) -> int:
        return self.commits[-1][2] if self.commits else 1

    @property
    def history(self) -> list[tuple[int, int]]:
        entries, at = [(1, 0)], 0
        for _, length, epoch in self.commits:
            if epoch != entries[-1][0]:
                entries.append((epoch, at))
            at += length
        return entries

    def boundaries(self) -> list[int]:
        points = [0]
        for _, length, _ in self.commits:
            points.append(points[-1] + length)
        return points

    def chain(self, lsn: int) -> int | None:
        """Identity of the commit that ends at `lsn`; 0 at the beginning."""
        at = 0
        if lsn == 0:
            return 0
        for identity, length, _ in self.commits:
            at += length
            if at == lsn:
                return identity
        return None

    def is_prefix_of(self, other: "Copy") -> bool:
        return self.commits == other.commits[: len(self.commits)]

    def shared_bytes(self, other: "Copy") -> int:
        total = 0
        for ours, theirs in zip(self.commits, other.commits, strict=False):
            if ours != theirs:
                break
            total += ours[1]
        return total


class World:
    """Hosts that commit, ship and take over, each epoch by one writer, as leases promise."""

    def __init__(self, hosts: int) -> None:
        self.copies = [Copy() for _ in range(hosts)]
        self.identity = 0
        self.epoch = 1

    def commit(self, host: int, length: int) -> None:
        copy = self.copies[host]
        # Only the host that opened the newest epoch of its copy writes; epoch 1 belongs to host 0.
        if self.writers().get(copy.epoch) == host:
            self.identity += 1
            copy.commits.append((self.identity, length, copy.epoch))

    def promote(self, host: int) -> None:
        self.epoch += 1
        self.identity += 1
        self._opened[self.epoch] = host
        self.copies[host].commits.append((self.identity, 72, self.epoch))

    def ship(self, source: int, target: int, commits: int) -> None:
        ours, theirs = self.copies[source], self.copies[target]
        if theirs.is_prefix_of(ours):
            theirs.commits = ours.commits[: len(theirs.commits) + commits]

    _opened: dict[int, int]

    def writers(self) -> dict[int, int]:
        return {1: 0, **self._opened}


@st.composite
def worlds(draw: st.DrawFn) -> list[Copy]:
    world = World(3)
    world._opened = {}
    hosts = st.integers(0, 2)
    for _ in range(draw(st.integers(0, 25))):
        action = draw(st.sampled_from(["commit", "commit", "commit", "ship", "ship", "promote"]))
        if action == "commit":
            world.commit(draw(hosts), draw(st.sampled_from([72, 104, 136])))
        elif action == "promote":
            world.promote(draw(hosts))
        else:
            world.ship(draw(hosts), draw(hosts), draw(st.integers(1, 5)))
    return world.copies


def facts_of(copy: Copy, other: Copy, tail: int = 0) -> PrimaryFacts:
    """`copy` as a primary that looks at the replica `other`."""
    held = tail <= other.end <= copy.end and other.end in copy.boundaries()
    return PrimaryFacts(
        store=UUID,
        epoch=copy.epoch,
        history=copy.history,
        image_size=1,
        log_size=1,
        tail=tail,
        committed=copy.end,
        holds_end=held,
        chain_at_end=copy.chain(other.end) if held else None,
    )


def replica_of(copy: Copy) -> ReplicaFacts:
    return ReplicaFacts(
        has_store=True,
        store=UUID,
        epoch=copy.epoch,
        history=copy.history,
        image_size=1,
        log_size=1,
        end=copy.end,
        end_chain=copy.chain(copy.end) or 0,
    )


@settings(max_examples=500)
@given(worlds())
def test_common_point_is_where_copies_part(copies: list[Copy]) -> None:
    for ours in copies:
        for theirs in copies:
            point = common_point(ours.history, ours.end, theirs.history, theirs.end)
            assert point == ours.shared_bytes(theirs)
            assert point == common_point(theirs.history, theirs.end, ours.history, ours.end)


@settings(max_examples=500)
@given(worlds(), st.data())
def test_decision_is_the_truth(copies: list[Copy], data: st.DataObject) -> None:
    primary, replica = data.draw(st.permutations(copies))[:2]
    tail = data.draw(st.sampled_from(primary.boundaries()))
    decision = decide_resume(facts_of(primary, replica, tail), replica_of(replica))
    if replica.epoch > primary.epoch:
        assert isinstance(decision, Refused)
        assert decision.code == "fenced"
    elif not replica.is_prefix_of(primary):
        assert isinstance(decision, Rewind)
        assert decision.common == replica.shared_bytes(primary)
    elif replica.end < tail:
        assert isinstance(decision, Snapshot)
    else:
        assert decision == Resume(replica.end)


PRIMARY = PrimaryFacts(
    store=UUID,
    epoch=3,
    history=[(1, 0), (3, 1000)],
    image_size=1,
    log_size=1,
    tail=500,
    committed=2000,
    holds_end=True,
    chain_at_end=7,
)
REPLICA = ReplicaFacts(
    has_store=True,
    store=UUID,
    epoch=3,
    history=[(1, 0), (3, 1000)],
    image_size=1,
    log_size=1,
    end=1500,
    end_chain=7,
)


@pytest.mark.parametrize(
    ("primary", "replica", "expected"),
    [
        ({}, {}, Resume(1500)),
        ({}, {"end": 2000}, Resume(2000)),
        ({}, {"end": 500, "history": [(1, 0)]}, Resume(500)),
        ({}, {"end": 1000, "history": [(1, 0)]}, Resume(1000)),
        ({"chain_at_end": None}, {}, Resume(1500)),
        ({}, {"has_store": False, "store": b""}, Snapshot),
        ({}, {"incomplete": True}, Snapshot),
        ({}, {"end": 400, "history": [(1, 0)]}, Snapshot),
        ({}, {"epoch": 4}, Refused),
        ({}, {"store": b"x" * 16}, Refused),
        ({}, {"image_size": 2}, Refused),
        ({}, {"log_size": 2}, Refused),
        # a former primary of epoch 1 that went on past where epoch 3 began
        ({}, {"end": 1001, "history": [(1, 0)]}, Rewind(1000, "")),
        # a former primary of epoch 2, overtaken at 1000, that had begun at 900
        ({}, {"end": 1200, "history": [(1, 0), (2, 900)]}, Rewind(900, "")),
        # same history, but more than the primary has: a primary that came back from an older copy of itself
        ({}, {"end": 2001}, Rewind(2000, "")),
        # same positions, other bytes
        ({"chain_at_end": 8}, {}, Rewind(1000, "")),
        ({"holds_end": False}, {}, Rewind(1000, "")),
        ({}, {"diverged": True}, Rewind(1000, "")),
        # nothing shared
        ({}, {"history": [(2, 0)]}, Rewind(0, "")),
        ({}, {"history": []}, Rewind(0, "")),
        # histories cut to the newest entries still meet
        ({"history": [(3, 1000)]}, {}, Resume(1500)),
        ({}, {"history": [(3, 1000)]}, Resume(1500)),
    ],
)
def test_each_rule(primary: dict[str, object], replica: dict[str, object], expected: object) -> None:
    decision = decide_resume(replace(PRIMARY, **primary), replace(REPLICA, **replica))  # type: ignore[arg-type]
    if isinstance(expected, Resume):
        assert decision == expected
    elif isinstance(expected, Rewind):
        assert isinstance(decision, Rewind)
        assert decision.common == expected.common
    else:
        assert type(decision) is expected
