"""What was found out about a host, from one run to the next."""

import json
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.schedulers.packages.findings import Findings
from sustain.schedulers.packages.model import Finding, Verdict
from sustain.testing import FakeClock


def found(independence: str = "independent", how: str = "active test", package: int = 0) -> Finding:
    return Finding(package=package, state="pc6", independence=independence, how=how)  # type: ignore[arg-type]


def verdict(at_s: float, saving: float = 9.0) -> Verdict:
    return Verdict(package=1, kept=True, unit="W", saving=saving, low=5, high=13, load=1.5, at_s=at_s)


def test_what_is_added_is_there_for_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "state/findings.json"
    clock = FakeClock()
    first = Findings(path, "host a", clock, "Dell R640")
    assert first.read() == ((), (), None)
    assert not path.exists(), "nothing is written while nothing is known"
    assert first.add([found()])
    assert not first.add([found()]), "it is known"
    second = Findings(path, "host a", clock)
    assert second.read() == ((found(),), (), None)
    first.add([found(package=1)])
    assert len(second.read()[0]) == 2, "it sees what the other has added"
    assert json.loads(path.read_text())["hosts"]["host a"]["title"] == "Dell R640"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_another_firmware_is_not_used_and_is_kept(tmp_path: Path) -> None:
    path, clock = tmp_path / "f", FakeClock()
    Findings(path, "old", clock).add([found()], [verdict(1.0)])
    new = Findings(path, "new", clock)
    assert new.read() == ((), (), None)
    new.add([found("coordinated")])
    assert Findings(path, "old", clock).read()[0] == (found(),)
    assert Findings(path, "new", clock).read()[0] == (found("coordinated"),)


def test_a_verdict_is_as_old_after_a_reboot_as_it_is(tmp_path: Path) -> None:
    path, clock = tmp_path / "f", FakeClock()
    now_s = clock.boottime_ns() / 1e9
    Findings(path, "h", clock).add((), [verdict(now_s - 60)])

    class Rebooted:
        def boottime_ns(self) -> int:
            return 5 * 10**9

        def realtime_ns(self) -> int:
            return clock.realtime_ns() + 40 * 10**9

    _, (after,), _ = Findings(path, "h", Rebooted()).read()
    assert 5 - after.at_s == pytest.approx(100, abs=1e-3)
    again = Findings(path, "h", clock)
    assert again.read()[1][0].at_s == pytest.approx(now_s - 60, abs=1e-3)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[1]", b'{"packages_findings": 9}', b'{"hosts": 3}']
)
def test_a_damaged_file_is_said_and_not_used_and_not_lost(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    findings = Findings(path, "h", FakeClock())
    known, verdicts, problem = findings.read()
    assert (known, verdicts) == ((), ())
    assert problem is not None
    assert str(path) in problem
    assert findings.read()[2] == problem, "it is said each time"
    findings.add([found()])
    assert findings.read() == ((found(),), (), None)
    assert Path(f"{path}.damaged").read_bytes() == content


def test_what_watching_found_yields_to_a_test_unless_it_is_a_proof(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "f", "h", FakeClock())
    findings.add([found("coordinated")])
    findings.add([found("unknown", "passive")])
    assert findings.read()[0] == (found("coordinated"),)
    findings.add([found("independent", "passive")])
    assert findings.read()[0] == (found("independent", "passive"),)
    findings.add([found("independent")])
    findings.add([found("independent", "passive")])
    assert findings.read()[0] == (found("independent"),), "a test says more"


def test_only_the_newest_verdicts_are_kept(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "f", "h", FakeClock())
    for number in range(70):
        findings.add((), [verdict(number * 100.0)])
    verdicts = findings.read()[1]
    assert len(verdicts) == 64
    assert verdicts[-1].at_s == pytest.approx(6900, abs=1e-3)


def test_without_a_file_it_is_known_as_long_as_the_process() -> None:
    findings = Findings(None, "h", FakeClock())
    findings.add([found()])
    assert findings.read()[0] == (found(),)


def test_where_it_cannot_be_written_that_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="file/f") as error:
        Findings(tmp_path / "file/f", "h", FakeClock()).add([found()])
    assert error.value.hint
    (tmp_path / "directory").mkdir()
    unreadable = Findings(tmp_path / "directory", "h", FakeClock())
    assert "is not known" in (unreadable.read()[2] or "")
    with pytest.raises(HostError, match="Is a directory"):
        unreadable.add([found()])


def test_a_verdict_that_is_told_twice_is_one(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "f", "h", FakeClock())
    assert findings.add((), [verdict(7.0)])
    assert not findings.add((), [verdict(7.0)])
    assert findings.add((), [verdict(107.0)])
    assert len(findings.read()[1]) == 2
