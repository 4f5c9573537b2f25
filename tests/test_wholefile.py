"""A file that is replaced whole: whatever a crash comes between, the name holds the old content or the new one."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sustain import wholefile

OLD, NEW = b"the old content, which is long", b"new" * 5000
CALLS = ("open", "pwrite", "fsync", "replace")


class Crash(BaseException):
    """The process ends here."""


class Calls:
    """What is asked of the system, in order, and its end before the call with number `crash_at`. A write is torn."""

    def __init__(
        self, patch: pytest.MonkeyPatch, crash_at: int = 1 << 30, piece_bytes: int = 1 << 30
    ) -> None:
        self.made: list[str] = []
        self._crash_at = crash_at
        self._piece_bytes = piece_bytes
        for name in CALLS:
            patch.setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, real: Callable[..., int]) -> Callable[..., int]:
        def call(*args: object, **options: object) -> int:
            if name == "pwrite":
                fd, data, at = args
                assert isinstance(data, bytes)
                size = len(data) // 2 if len(self.made) == self._crash_at else self._piece_bytes
                args = (fd, data[:size], at)
                if len(self.made) == self._crash_at:
                    real(*args)
            if len(self.made) == self._crash_at:
                raise Crash
            self.made.append(name)
            return real(*args, **options)

        return call


@pytest.mark.parametrize("durable", [True, False])
def test_a_crash_before_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    path = tmp_path / "file"
    seen = set()
    for step in range(20):
        path.write_bytes(OLD)
        with monkeypatch.context() as patch:
            Calls(patch, crash_at=step, piece_bytes=len(NEW) // 3)
            try:
                wholefile.replace(path, NEW, durable=durable)
            except Crash:
                pass
            else:
                break
        assert path.read_bytes() in (OLD, NEW), f"step {step}"
        seen.add(path.read_bytes())
    else:
        raise AssertionError("it never came to its end")
    assert OLD in seen
    assert path.read_bytes() == NEW
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_content_is_durable_before_the_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        calls = Calls(patch)
        wholefile.replace(tmp_path / "file", NEW, durable=True)
    assert calls.made == ["open", "pwrite", "fsync", "replace", "open", "fsync"]


def test_what_need_not_be_durable_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        calls = Calls(patch)
        wholefile.replace(tmp_path / "file", NEW, durable=False)
    assert "fsync" not in calls.made


def test_a_draft_that_a_crash_has_left_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / "file.new").write_bytes(NEW + b"longer than what comes")
    wholefile.replace(path, b"short", durable=True, mode=0o600)
    assert path.read_bytes() == b"short"


def test_a_new_file_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        wholefile.replace(tmp_path / "all", b"", durable=False)
        wholefile.replace(tmp_path / "owner", b"", durable=False, mode=0o600)
    finally:
        os.umask(umask)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("all", "owner")}
    assert modes == {"all": 0o644, "owner": 0o600}


def test_the_systems_errors_are_the_callers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        wholefile.replace(tmp_path / "none" / "file", NEW, durable=True)
