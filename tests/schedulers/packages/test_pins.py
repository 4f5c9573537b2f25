"""A guest is placed by libvirt's pins and gets back what it had; on libvirt's own test driver, of eight processors."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import affinity, libvirt_pinning
from sustain.host.libvirt import Domain
from sustain.host.libvirt_pinning import Part
from sustain.schedulers.journal import Journal
from sustain.schedulers.packages.act import Actuator
from sustain.schedulers.packages.handles import DomainHandle
from tests.host.test_libvirt import TEST, WHY
from tests.schedulers.packages.groups import Located, place, release

EVERYWHERE = frozenset(range(8))
ONE, OTHER = frozenset(range(4)), frozenset(range(4, 8))
FIRST, SECOND, REST = Part("vcpu", 0), Part("vcpu", 1), Part("emulator")


@pytest.fixture
def domain() -> Iterator[Domain]:
    pytest.importorskip("libvirt", reason=WHY)
    domain = Domain(TEST, "test")
    yield domain
    for part in (FIRST, SECOND, REST):
        pin(domain, part, EVERYWHERE)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "j") as held:
        yield held


@pytest.fixture
def located(domain: Domain) -> Located:
    return Located({"vm": DomainHandle(TEST, "test", life(domain))})


@pytest.fixture
def actuator(journal: Journal, located: Located) -> Actuator:
    return Actuator(journal, located)


def life(domain: Domain) -> str:
    running = domain.running()
    assert running is not None
    return running


def pin(domain: Domain, part: Part, cpus: frozenset[int]) -> None:
    libvirt_pinning.write(domain, life(domain), part, cpus)


def test_it_is_placed_moved_and_released(actuator: Actuator, domain: Domain, journal: Journal) -> None:
    before = libvirt_pinning.read(domain)
    for cpus in (ONE, OTHER):
        (effect,) = actuator.carry_out([place("vm", cpus, "guest")])
        assert (effect.outcome, effect.written, effect.detail) == ("done", 3, "")
        assert set(libvirt_pinning.read(domain).values()) == {cpus}
        (effect,) = actuator.carry_out([place("vm", cpus, "guest")])
        assert (effect.outcome, effect.written) == ("done", 0)
    (effect,) = actuator.carry_out([release("vm", "guest")])
    assert (effect.outcome, effect.written) == ("done", 3)
    assert libvirt_pinning.read(domain) == before
    assert journal.entries() == ()


def test_what_a_user_has_pinned_keeps_to_it(actuator: Actuator, domain: Domain, journal: Journal) -> None:
    inside, outside = frozenset((1, 5)), frozenset((6,))
    pin(domain, FIRST, inside)
    pin(domain, SECOND, outside)
    before = libvirt_pinning.read(domain)
    (effect,) = actuator.carry_out([place("vm", ONE, "guest")])
    assert (effect.outcome, effect.written) == ("done", 2)
    assert effect.detail == "parts that somebody has pinned elsewhere stay there: 1"
    assert libvirt_pinning.read(domain) == {FIRST: {1}, SECOND: outside, REST: ONE}
    assert {each.outcome for each in actuator.restore().undone} == {"restored"}
    assert libvirt_pinning.read(domain) == before
    assert journal.entries() == ()


def test_what_somebody_else_pins_meanwhile_is_left_alone(
    actuator: Actuator, domain: Domain, journal: Journal
) -> None:
    actuator.carry_out([place("vm", ONE, "guest")])
    pin(domain, SECOND, frozenset((7,)))
    (effect,) = actuator.carry_out([place("vm", OTHER, "guest")])
    assert (effect.outcome, effect.written) == ("done", 2)
    assert "pinned since are left alone: 1" in effect.detail
    (effect,) = actuator.carry_out([release("vm", "guest")])
    assert (effect.outcome, effect.written) == ("done", 2)
    assert libvirt_pinning.read(domain) == {FIRST: EVERYWHERE, SECOND: {7}, REST: EVERYWHERE}
    assert journal.entries() == ()
    actuator.carry_out([place("vm", ONE, "guest")])
    for part in (FIRST, SECOND, REST):
        pin(domain, part, frozenset((7,)))
    effects = actuator.carry_out([place("vm", ONE, "guest"), release("vm", "guest")])
    assert [each.outcome for each in effects] == ["changed", "changed"]
    effects = actuator.carry_out([place("vm", ONE, "guest")])
    assert [each.outcome for each in effects] == ["refused"], "what a user has pinned is a limit from then on"


def test_one_that_was_started_anew(actuator: Actuator, located: Located, domain: Domain) -> None:
    actuator.carry_out([place("vm", ONE, "guest")])
    located.handles["vm"] = DomainHandle(TEST, "test", "another:1")
    assert [each.outcome for each in actuator.carry_out([place("vm", OTHER, "guest")])] == ["gone"]
    assert set(libvirt_pinning.read(domain).values()) == {ONE}


def test_a_libvirt_that_is_away_for_a_moment_is_asked_again(
    actuator: Actuator, located: Located, domain: Domain, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"
    located.handles["other"] = DomainHandle(nowhere, "test", "another:1")
    (effect,) = actuator.carry_out([place("other", ONE, "guest")])
    assert effect.outcome == "again later", effect.detail
    actuator.carry_out([place("vm", ONE, "guest")])

    def gone(*_: object) -> None:
        raise HostError("no answer", hint="look at it", errno=errno.ETIMEDOUT)

    with monkeypatch.context() as patch:
        patch.setattr(libvirt_pinning, "write", gone)
        effects = actuator.carry_out([place("vm", OTHER, "guest"), release("vm", "guest")])
    assert [each.outcome for each in effects] == ["again later", "again later"]
    assert set(libvirt_pinning.read(domain).values()) == {ONE}
    assert actuator.carry_out([release("vm", "guest")])[0].done
    assert set(libvirt_pinning.read(domain).values()) == {EVERYWHERE}
    assert journal.entries() == ()


def test_half_of_it_is_put_back(
    actuator: Actuator, domain: Domain, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = libvirt_pinning.write

    def refuse(
        its: Domain, life: str, part: Part, cpus: frozenset[int], expected: frozenset[int] | None = None
    ) -> affinity.Outcome:
        if part == SECOND and cpus == ONE:
            raise HostError("no", hint="ask later")
        return write(its, life, part, cpus, expected)

    monkeypatch.setattr(libvirt_pinning, "write", refuse)
    before = libvirt_pinning.read(domain)
    (effect,) = actuator.carry_out([place("vm", ONE, "guest")])
    assert effect.outcome == "refused"
    assert "vcpu 1: no (ask later); what was bound is as before again" in effect.detail
    assert libvirt_pinning.read(domain) == before
    assert journal.entries() == ()
