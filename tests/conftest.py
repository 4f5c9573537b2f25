"""How all tests run: whether one passes does not hang on how fast this machine is, and two may run at once."""

import os
from pathlib import Path
from typing import Any

import pytest

_LONGEST = ("sense", "act", "host", "run")  # of tests/lab/test_packages_*
_ENOUGH = 128  # runs of 2 MiB that are free: more than any test here asks for
_COMPACT, _DROP = Path("/proc/sys/vm/compact_memory"), Path("/proc/sys/vm/drop_caches")


@pytest.fixture
def large_pages_are_to_be_had() -> None:
    """Memory that other tests have left in pieces, or full of clean pages, is put together, as far as that goes: what
    is tested is what we do with large pages, not whether the kernel finds one in time. (It is tested where none is to
    be had, too: schedulers/large_pages/test_scarce_kernel.py.)"""
    if os.geteuid() != 0 or "SUSTAIN_LAB_GUEST" in os.environ:  # guests of the lab have just been started
        return
    from sustain.host import large_pages  # not for tests that need none of it

    for path in (_COMPACT, _DROP, _COMPACT):
        free = large_pages.free()
        if free is None or free >= _ENOUGH or not path.exists():
            return
        path.write_text("1")


def pytest_configure(config: pytest.Config) -> None:
    """No property fails because an example, or making one up, took its time on a busy machine.

    Guests of the lab run without this plugin, whose library takes long to import under emulation.
    """
    if config.pluginmanager.has_plugin("hypothesispytest"):
        from hypothesis import HealthCheck, settings

        settings.register_profile("sustain", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("sustain")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The lab begins at once: it takes longest. What it has on packages comes last, for whoever is done first; of that
    the longest is first, so that both processes end at about the same time."""

    def place(item: pytest.Item) -> tuple[int, int]:
        if on_packages(item.nodeid):
            return 2, next(
                (at for at, name in enumerate(_LONGEST) if f"_{name}.py" in item.nodeid), len(_LONGEST)
            )
        return int(not in_lab(item.nodeid)), 0

    items.sort(key=place)


def in_lab(test: str) -> bool:
    return test.startswith("tests/lab/")


def on_packages(test: str) -> bool:
    """Of the lab, machines of two packages, whose processors are emulated in turns: they take one of ours."""
    return test.startswith("tests/lab/test_packages_")


@pytest.hookimpl(optionalhook=True)  # unless pytest-xdist is there, as in guests of the lab
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of two processes (`make test`) one works through the lab, the other through the rest, file by file; who is done
    first helps with the rest.

    Two guests of the lab would be too much for two processors; the other tests wait most of their time. Only machines
    of two packages, which come last, may be there beside another guest. What is of one file stays together, for the
    sake of what its tests share.
    """
    from xdist.scheduler import LoadScopeScheduling

    class LabBesideTheRest(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            apart = on_packages(nodeid) or not in_lab(nodeid)
            return nodeid.partition("::")[0] if apart else "lab"

    return LabBesideTheRest(config, log)
