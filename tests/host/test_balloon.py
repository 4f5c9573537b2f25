"""The balloon over QMP: the same checks for a real QEMU, whose guest has no driver, and for the fake."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sustain.errors import HostError
from sustain.host import balloon
from sustain.host.balloon import Statistics
from sustain.host.qmp import Qmp, QmpRefused
from sustain.testing.guest import FakeQemu

SIZE = 64 << 20


@pytest.fixture(params=["real", "fake"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "real":
        yield request.getfixturevalue("qemu")[0]
    else:
        with FakeQemu(tmp_path / "fake", SIZE, driver=False) as fake:
            yield fake.path


def test_a_balloon_without_a_driver(path: str) -> None:
    with Qmp(path) as qmp:
        device = balloon.find(qmp)
        assert device is not None
        assert balloon.size(qmp) == SIZE
        assert balloon.actual(qmp) == SIZE
        balloon.set_target(qmp, SIZE // 2)
        assert balloon.actual(qmp) == SIZE  # nobody follows
        assert balloon.deflates(qmp, device) is False
        assert balloon.period(qmp, device) == 0
        balloon.set_period(qmp, device, 3)
        assert balloon.period(qmp, device) == 3
        assert balloon.statistics(qmp, device) == Statistics(updated_s=0)


def test_no_balloon(tmp_path: Path) -> None:
    with FakeQemu(tmp_path / "fake", SIZE, balloon=False) as fake, Qmp(fake.path) as qmp:
        assert balloon.find(qmp) is None
        assert balloon.actual(qmp) is None
        with pytest.raises(QmpRefused):
            balloon.set_target(qmp, SIZE)


def test_a_balloon_that_deflates_and_one_that_does_not_say(tmp_path: Path) -> None:
    with FakeQemu(tmp_path / "fake", SIZE) as fake, Qmp(fake.path) as qmp:
        device = balloon.find(qmp)
        assert device is not None
        fake.deflates = True
        assert balloon.deflates(qmp, device) is True
        assert balloon.deflates(qmp, "/machine/peripheral/other") is None


def test_what_the_driver_says() -> None:
    said = balloon.parse(
        {
            "stat-free-memory": 5,
            "stat-total-memory": 2**64 - 1,  # QEMU's word for "not sent"
            "stat-available-memory": -1,  # and an older one
            "stat-swap-in": 0,
            "stat-something-new": 7,
            "stat-disk-caches": "many",
            "stat-major-faults": -5,
        },
        12,
    )
    assert said == Statistics(updated_s=12, free_bytes=5, swap_in_bytes=0)


def test_statistics_that_are_none(tmp_path: Path) -> None:
    with FakeQemu(tmp_path / "fake", SIZE) as fake, Qmp(fake.path) as qmp:
        device = balloon.find(qmp)
        assert device is not None
        fake.statistics = [1]  # type: ignore[assignment]
        with pytest.raises(HostError, match="are not statistics"):
            balloon.statistics(qmp, device)


@pytest.mark.parametrize(
    "said", [{}, [], 7, None, {"base-memory": "much"}, {"base-memory": -1}, {"base-memory": 1e300}, "x"]
)
def test_a_size_that_is_none(tmp_path: Path, said: object) -> None:
    """Any user may start something that looks like QEMU, and answers what it likes."""

    class Liar(FakeQemu):
        def _return(self, command: str, arguments: dict[str, Any]) -> Any:
            asked = command == "query-memory-size-summary"
            return said if asked else super()._return(command, arguments)

    wanted = pytest.raises(HostError, match="no size of memory")
    with Liar(tmp_path / "fake", SIZE) as fake, Qmp(fake.path) as qmp, wanted:
        balloon.size(qmp)
