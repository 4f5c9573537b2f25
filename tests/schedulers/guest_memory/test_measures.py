"""What is told of an observation: known figures, by guest; an unknown is not there."""

from sustain.schedulers.guest_memory.decide import decide
from sustain.schedulers.guest_memory.measures import _GUEST, _HOST, _PLAN, measures
from sustain.schedulers.guest_memory.model import Figures, Guest, Host, Observation, Policy
from sustain.schedulers.guest_memory.plan import GuestPlan

SEEN = Observation(
    at_s=100.0,
    host=Host(total_bytes=1000.0, swap_total_bytes=0.0),
    guests=(
        Guest(
            name="a",
            kind="qemu",
            life="1:1",
            source="guest-agent",
            figures=Figures(size_bytes=10.0, free_bytes=0.0, classes_at_s=93.0),
            problems=("slow",),
        ),
        Guest(name="b", kind="cgroup", life="2", source="none", figures=Figures(resident_bytes=5.0)),
    ),
)


def test_what_is_known_is_told_and_nothing_else() -> None:
    plan = decide(SEEN, None, Policy(), SEEN.at_s).plan
    found = {(each.name, each.labels): each.value for each in measures(SEEN, plan)}
    planned = {
        key: found.pop(key) for key in list(found) if key[0].removeprefix("sustain_guest_memory_") in _PLAN
    }
    a, b = (("guest", "a"),), (("guest", "b"),)
    assert found == {
        ("sustain_host_memory_total_bytes", ()): 1000,
        ("sustain_host_memory_swap_total_bytes", ()): 0,
        ("sustain_guest_memory_size_bytes", a): 10,
        ("sustain_guest_memory_free_bytes", a): 0,
        ("sustain_guest_problems", a): 1,
        ("sustain_guest_classes_age_seconds", (*a, ("source", "guest-agent"))): 7,
        ("sustain_guest_memory_resident_bytes", b): 5,
        ("sustain_guest_problems", b): 0,
    }
    for (name, ((_, guest),)), value in planned.items():
        assert value == getattr(plan.guest(guest), name.removeprefix("sustain_guest_memory_"))
    known = [name for name in _PLAN for row in plan.guests if getattr(row, name) is not None]
    assert len(planned) == len(known) > 0


def test_they_are_figures_that_there_are() -> None:
    assert set(_GUEST) <= set(Figures.__struct_fields__)
    assert set(_PLAN) <= set(GuestPlan.__struct_fields__)
    assert set(_HOST) <= set(Host.__struct_fields__)
