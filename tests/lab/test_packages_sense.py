"""What power-aware placement sees on a real kernel with two packages and cgroups of version 2, and that its active test
carries real work from one package to the other. No emulator has counters of packages, so watts are made there
(packages_sense_guest)."""

from typing import Any

import pytest

from tests.lab import two_sockets, vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def seen(kernel: vm.Kernel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    program = "from tests.lab import packages_sense_guest\nanswer(packages_sense_guest.main())\n"
    found = two_sockets.run(kernel, tmp_path_factory.mktemp("sense"), program, limit_s=500)
    assert isinstance(found, dict)
    return found


def test_groups_of_busy_threads_are_seen_where_they_are(seen: dict[str, Any]) -> None:
    found = seen["groups"]
    assert found["of"] == [0, 0, 1, 1]
    assert 0.2 < found["busy"]["1"] <= 2, "its thread has a part of the emulator's one"
    assert 0.2 < found["used"] <= 1.1
    assert found["places"] == {"vms.a": [2, 3], "vms.b": [0, 1, 2, 3], "db": None}
    assert found["pinned"] == {"vms.a": 0, "vms.b": 1, "db": 1}
    assert found["realtime"] == {"vms.a": 0, "vms.b": 0, "db": 2}
    assert found["threads"] == {"vms.a": 2, "vms.b": 2, "db": 2}
    assert found["nodes"] == 2
    assert found["memory known"] >= 2, "of one group by now, on both nodes"
    assert found["problems"] == []


def test_what_changes_meanwhile_is_seen_at_the_next_look(seen: dict[str, Any]) -> None:
    assert seen["groups"]["moved"] == [0, 1]
    assert seen["groups"]["left"] == ["vms.a", "db"]


def test_without_counters_packages_say_why(seen: dict[str, Any]) -> None:
    assert seen["groups"]["packages"] == [[0, "none", "none", True], [1, "none", "none", True]]
    assert seen["groups"]["virtual"] is True


def test_processors_that_go_off_line_and_come_back(seen: dict[str, Any]) -> None:
    without, again = seen["hotplug"]
    assert without["cpus"] == [0, 1, 2]
    assert again["cpus"] == [0, 1, 2, 3]
    assert 0 in without["known"]
    assert 0 in again["known"]


def test_the_active_test_is_refused_with_what_is_missing(seen: dict[str, Any]) -> None:
    virtual, counters = seen["refused"]
    assert "virtual machine" in virtual
    assert "neither the idle states of packages nor their watts are measurable here" in counters
    assert "powercap" in counters


def test_real_work_on_one_package_and_split_over_two_is_told_apart_by_made_watts(
    seen: dict[str, Any],
) -> None:
    assert seen["tested"] == {"coordinated": ["watts coordinated"], "independent": ["watts independent"]}
