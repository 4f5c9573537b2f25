"""Kernel release and settings, on real files in a temporary tree and on this host."""

from pathlib import Path

import pytest

from sustain.host import kernel


@pytest.mark.parametrize(
    ("text", "release"),
    [("6.18.44-fc", (6, 18)), ("6.1.0-13-amd64\n", (6, 1)), ("5.10", (5, 10)), ("linux", None), ("", None)],
)
def test_release(tmp_path: Path, text: str, release: tuple[int, int] | None) -> None:
    file = tmp_path / "proc/sys/kernel/osrelease"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert kernel.release(tmp_path) == release


def test_setting(tmp_path: Path) -> None:
    file = tmp_path / "proc/sys/vm/overcommit_memory"
    file.parent.mkdir(parents=True)
    file.write_text("2\n")
    assert kernel.setting("vm.overcommit_memory", tmp_path) == 2
    file.write_text("strange\n")
    assert kernel.setting("vm.overcommit_memory", tmp_path) is None


def test_nothing_there_is_unknown(tmp_path: Path) -> None:
    assert kernel.release(tmp_path) is None
    assert kernel.setting("vm.overcommit_memory", tmp_path) is None


def test_this_host() -> None:
    found = kernel.release()
    assert found is not None
    assert found >= (4, 0)
    assert kernel.setting("vm.overcommit_memory") in (0, 1, 2)
