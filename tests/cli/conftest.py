"""Run verbs as a person would: arguments in, status, stdout and stderr out."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sustain
from sustain.cli import main
from tests.powerfail.regions.s3 import bucket, s3_endpoint

__all__ = ["bucket", "s3_endpoint"]


@dataclass(frozen=True)
class Ran:
    """What a verb did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object that it printed on one line."""
        (line,) = self.out.splitlines()
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def failed_with(self, *words: str, status: int = 1) -> None:
        """It failed as all verbs do: one error line with these words, one hint line, nothing on stdout."""
        assert self.status == status
        assert self.out == ""
        error, hint = self.err.splitlines()
        assert error.startswith("error: ")
        assert hint.startswith("hint: ")
        assert len(hint) > 10
        assert "Traceback" not in self.err
        for word in words:
            assert word in error


@pytest.fixture
def sus(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`sus("create", path)` runs `sustain create PATH` in this process."""

    def run(*words: object) -> Ran:
        capsys.readouterr()
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ran(status, out, err)

    return run


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A closed store that holds one object of each kind."""
    path = tmp_path / "app.sus"
    with sustain.create(path, size="8MiB", log_size="2MiB", durability="memory") as store:
        store.map("users").update({b"%d" % number: b"value" for number in range(500)})
        store.array("balances", (100, 10), "f8")[:] = 1.5
        store.file("blob").pwrite(b"x" * 10_000, 0)
        store.commit()
    return path
