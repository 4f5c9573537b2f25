"""What the benchmark on real guests makes of guests that die, without any."""

from pathlib import Path
from typing import Any

import pytest
from bench.guests import Driver, Script

from tests.lab.vm import LabError


class Dying:
    """A guest whose workload answers so many commands; then its kernel panics, and it boots anew."""

    name = "dying"

    def __init__(self, commands: int, last_words: str) -> None:
        self.left = commands
        self.last_words = last_words

    def read(self, path: str) -> str:
        return "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"

    def do(self, command: str, size: Any = "", limit_s: float = 60) -> str:
        self.left -= 1
        if self.left < 0:
            raise LabError(f"guest dying: {self.last_words}\n--- console, its end")
        return "700" if command == "work" else ""


def test_a_guest_that_panics_ends_its_work_and_not_the_run() -> None:
    driver = Driver(Dying(3, "ready"), Script(1000, ((0.0, "busy", 4096), (0.1, "anon", 4096))), 0.5)  # type: ignore[arg-type]
    driver.run()
    assert (driver.guest_killed, driver.died, driver.pages) == (True, None, 700)
    assert 0 < driver.stall_s <= 0.5  # it waits for the rest of the time


@pytest.mark.parametrize("said", ["error busy: Cannot allocate memory", "QEMU ended"])
def test_what_is_no_panic_fails_the_run(said: str, tmp_path: Path) -> None:
    driver = Driver(Dying(3, said), Script(1000, ((0.0, "busy", 4096),)), 0.5)  # type: ignore[arg-type]
    driver.run()
    assert isinstance(driver.died, LabError)
    assert not driver.guest_killed
