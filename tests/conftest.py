"""How all tests run: whether one passes does not hang on how fast this machine is, and two may run at once."""

from typing import Any

import pytest

_LONGEST = ("sense", "act", "host", "run")  # of tests/lab/test_packages_*


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
