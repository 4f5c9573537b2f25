"""Stores for tests: small, `memory` durability (no test here is about the disk), one per capture mode where
asked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import sustain
from sustain import _native


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store may be made."""
    return tmp_path / "app.sus"


@pytest.fixture
def store(path: Path) -> Iterator[sustain.Store]:
    """An empty store, open for writing."""
    with sustain.create(path, size="16MiB", log_size="8MiB", durability="memory") as opened:
        yield opened


@pytest.fixture(params=_native.capture_modes())
def capture(request: pytest.FixtureRequest) -> str:
    """Each way to find changed array pages that this kernel offers."""
    return str(request.param)


@pytest.fixture
def captured(path: Path, capture: str) -> Iterator[sustain.Store]:
    """An empty store that finds changed pages in the asked way."""
    sustain.create(path, size="16MiB", log_size="8MiB", durability="memory").close()
    with sustain.open(path, capture=capture) as opened:
        assert opened.capture == capture
        yield opened
