"""What guests are told of the time-stamp counter is what it does."""

import platform
import time

import pytest

from tests.lab import timestamps


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its counter is another")
def test_it_is_what_a_longer_look_finds() -> None:
    with timestamps.counter() as ticks:
        begun_ns, begun = timestamps.moment(ticks)
        time.sleep(0.5)
        ended_ns, ended = timestamps.moment(ticks)
    assert abs((ended - begun) / (ended_ns - begun_ns) * 1e6 / timestamps.khz() - 1) < 0.005
