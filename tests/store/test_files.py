"""Files inside a store, against a bytearray as the model."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import sustain


def test_basics(store: sustain.Store) -> None:
    blob = store.file("blob")
    assert blob.name == "blob"
    assert blob.size == 0
    assert blob.pread(10, 0) == b""
    assert blob.pwrite(b"hello", 0) == 5
    assert blob.pwrite(memoryview(b" world"), 5) == 6
    assert blob.pwrite(bytearray(b"!"), 11) == 1
    assert blob.size == 12
    assert blob.pread(5, 6) == b"world"
    assert blob.pread(100, 6) == b"world!"
    assert blob.pread(5, 100) == b""
    assert blob.pwrite(b"", 50) == 0
    assert blob.size == 12
    blob.truncate(5)
    assert blob.pread(100, 0) == b"hello"
    blob.truncate(8)
    assert blob.pread(100, 0) == b"hello\0\0\0"
    assert "blob" in repr(blob)


@pytest.mark.parametrize(("length", "offset"), [(-1, 0), (1, -1)])
def test_negative_places_are_refused(store: sustain.Store, length: int, offset: int) -> None:
    with pytest.raises((ValueError, OverflowError, sustain.StoreError)):
        store.file("blob").pread(length, offset)


def test_files_may_have_holes(store: sustain.Store) -> None:
    """A byte far out takes a chunk and a few nodes, not the room before it."""
    blob = store.file("blob")
    blob.pwrite(b"near", 0)
    free = store.usage()["free_bytes"]
    blob.pwrite(b"far", 1 << 40)
    assert free - store.usage()["free_bytes"] < 1 << 20
    assert blob.size == (1 << 40) + 3
    assert blob.pread(10, (1 << 40) - 2) == b"\0\0far"
    assert blob.pread(4, 0) == b"near"
    blob.truncate(2)
    assert blob.pread(10, 0) == b"ne"


def test_offsets_that_cannot_be_change_nothing(store: sustain.Store) -> None:
    blob = store.file("blob")
    blob.pwrite(b"kept", 0)
    for too_far in (
        lambda: blob.pwrite(b"x", (1 << 64) - 1),
        lambda: blob.pwrite(b"x", 1 << 63),
        lambda: blob.truncate(1 << 63),
    ):
        with pytest.raises((sustain.StoreError, OverflowError)):
            too_far()
    assert blob.size == 4
    assert blob.pread(10, 0) == b"kept"


class FileMachine(RuleBasedStateMachine):
    """A file, the bytes it must hold, and the bytes that the last commit held."""

    offsets = st.integers(0, 30_000) | st.sampled_from([0, 4095, 4096, 4097, 8192])

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name, "model.sus")
        self.store = sustain.create(self.path, size="4MiB", log_size="2MiB", durability="memory")
        self.file = self.store.file("f")
        self.store.commit()
        self.model, self.committed = bytearray(), b""

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.directory.cleanup()

    @rule(offset=offsets, length=st.integers(1, 9000), fill=st.integers(1, 255))
    def write(self, offset: int, length: int, fill: int) -> None:
        data = bytes([fill]) * length
        assert self.file.pwrite(data, offset) == length
        if offset > len(self.model):
            self.model += bytes(offset - len(self.model))
        self.model[offset : offset + length] = data

    @rule(size=offsets)
    def truncate(self, size: int) -> None:
        self.file.truncate(size)
        self.model = self.model[:size] + bytes(max(0, size - len(self.model)))

    @rule(offset=offsets, length=st.integers(0, 9000))
    def read(self, offset: int, length: int) -> None:
        assert self.file.pread(length, offset) == self.model[offset : offset + length]

    @rule()
    def commit(self) -> None:
        self.store.commit()
        self.committed = bytes(self.model)

    @rule()
    def rollback(self) -> None:
        self.store.rollback()
        self.model = bytearray(self.committed)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = sustain.open(self.path)
        self.file = self.store.file("f")
        self.model = bytearray(self.committed)

    @invariant()
    def same(self) -> None:
        if hasattr(self, "file"):
            assert self.file.size == len(self.model)
            assert self.file.pread(1 << 20, 0) == self.model


TestFileAgainstBytes = FileMachine.TestCase
TestFileAgainstBytes.settings = settings(max_examples=60, stateful_step_count=30)
