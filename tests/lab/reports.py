"""What the tests that ran inside a guest came to, told apart by their files: one boot can run those of several."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field

from tests.lab import vm


@dataclass(frozen=True)
class Report:
    """All that the guest printed; the names of tests that passed, and that failed with what they said, by file."""

    output: str
    passed: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)

    def of(self, *files: str) -> list[str]:
        """The tests of these files, or all, that passed. AssertionError with all that was printed when one failed."""
        files = files or tuple(self.passed | self.failed)
        wrong = [each for file in files for each in self.failed.get(file, [])]
        assert not wrong, f"{wrong}\n{self.output}"
        return [each for file in files for each in self.passed.get(file, [])]


def run(guest: vm.Guest, limit_s: float) -> Report:
    """Boot one whose script leaves `report.xml`, pytest's, in the shared directory and ends with its status.
    AssertionError when pytest did something else than run tests."""
    result = guest.run(limit_s)
    print(f"Linux {guest.kernel.release}: {result.seconds:.0f} s\n{result.output}")
    assert result.status in (0, 1), result.output
    report = Report(result.output)
    for case in ET.parse(guest.share / "report.xml").getroot().iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        name = case.get("name", "")
        if not list(case):
            report.passed.setdefault(file, []).append(name)
        elif case.find("skipped") is None:
            report.failed.setdefault(file, []).append(name)
    assert result.status == 0 or report.failed, result.output
    return report
