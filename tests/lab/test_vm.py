"""The lab's own way to boot: a kernel that the emulator has killed is booted again, one that died otherwise is not."""

from pathlib import Path

import pytest

from tests.lab import vm

EMULATOR = """#!/bin/sh
echo boot >> {share}/boots
if [ $(wc -l < {share}/boots) -le {crashes} ]; then
    {begun}
    echo "[    1.7] {oops}"
else
    echo fine > {share}/output
    echo 0 > {share}/status
fi
"""


def guest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crashes: int,
    oops: str = "Oops: int3: 0000",
    begun: str = ":",
) -> vm.Guest:
    """One whose emulator ends at once, the first times with `oops` on the console."""
    share = tmp_path / "share"
    share.mkdir()
    script = EMULATOR.format(share=share, crashes=crashes, oops=oops, begun=begun.format(share=share))
    (tmp_path / "qemu-system-x86_64").write_text(script)
    (tmp_path / "qemu-system-x86_64").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return vm.Guest(vm.Kernel("0", tmp_path, tmp_path / "initrd"), share, "true")


def boots(made: vm.Guest) -> int:
    return len((made.share / "boots").read_text().splitlines())


def test_what_the_emulator_has_killed_is_booted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = guest(tmp_path, monkeypatch, crashes=2)
    assert made.run(limit_s=120).output == "fine\n"
    assert boots(made) == 3


def test_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = guest(tmp_path, monkeypatch, crashes=9)
    with pytest.raises(vm.LabError, match="without a status"):
        made.run(limit_s=120)
    assert boots(made) == 3


@pytest.mark.parametrize(
    ("oops", "begun"), [("Kernel panic", ":"), ("Oops: int3: 0000", "echo begun > {share}/output")]
)
def test_nor_when_it_died_otherwise_or_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oops: str, begun: str
) -> None:
    made = guest(tmp_path, monkeypatch, crashes=1, oops=oops, begun=begun)
    with pytest.raises(vm.LabError, match="without a status"):
        made.run(limit_s=120)
    assert boots(made) == 1


def test_who_waits_for_a_file_waits_for_the_next_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = guest(tmp_path, monkeypatch, crashes=1)
    made.start()
    made.wait_for("status", limit_s=120)
    assert made.wait(limit_s=120).status == 0
