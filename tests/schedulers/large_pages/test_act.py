"""Mapping blocks large and small on the kernel of the machine that runs this, and in the lab: programs that exit, fork,
execute, unmap and are killed meanwhile; and a scheduler that is killed itself."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import kernel, large_pages, pagemap, smaps
from sustain.host.madvise import Advice, Advisor
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages.act import Actuator
from sustain.schedulers.large_pages.hand import Came, Hand
from sustain.schedulers.large_pages.model import Action, Collapse, Demote, Purpose
from sustain.schedulers.large_pages.ours import Ours
from tests.host.held import own_cgroup, some_swap
from tests.schedulers.large_pages.touching import Toucher, touching

pytestmark = pytest.mark.skipif(
    not pagemap.has_scan() or os.geteuid() != 0, reason="it needs Linux 6.7 (PAGEMAP_SCAN) and root"
)
MIB = 1 << 20


def collapse(toucher: Toucher, *blocks: int, purpose: Purpose = "pays") -> list[Action]:
    return [
        Collapse(
            target="t",
            pid=toucher.pid,
            started=toucher.who.start_ticks,
            address=toucher.address(block),
            purpose=purpose,
            reason="a test",
        )
        for block in blocks
    ]


def demote(toucher: Toucher, *blocks: int, purpose: Purpose = "cold") -> list[Action]:
    return [
        Demote(
            target="t",
            pid=toucher.pid,
            started=toucher.who.start_ticks,
            address=toucher.address(block),
            purpose=purpose,
            reason="a test",
        )
        for block in blocks
    ]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "j") as held:
        yield held


@pytest.mark.parametrize("kind", ["private", "shared", "memfd"])
def test_large_then_small_then_as_it_was(kind: str, journal: Journal) -> None:
    with touching([1, 2, 3, 4], kind) as toucher:
        actuator = Actuator(journal)
        assert not toucher.counted().huge.any(), "phase one: nothing is large"
        effects = actuator.carry_out(collapse(toucher, 3, 1))
        assert [each.outcome for each in effects] == ["done", "done"], effects
        assert [each.action.address for each in effects] == [toucher.address(3), toucher.address(1)]
        assert all(each.bytes == 0 and (each.seconds or 0) > 0 for each in effects)
        assert toucher.counted().huge.tolist() == [False, True, False, True]
        (effect,) = actuator.carry_out(demote(toucher, 1))
        assert effect.done, effect
        assert toucher.counted().huge.tolist() == [False, False, False, True]
        assert toucher.say("check")["right"]
        (undone,) = actuator.restore().undone
        assert undone.outcome == "restored", undone.problem
        assert not toucher.counted().huge.any()
        assert journal.entries() == ()
        assert toucher.say("check")["right"]


def test_what_was_found_large_is_large_again(journal: Journal) -> None:
    with touching([1, 2, 3], huge=True) as toucher:
        if not toucher.counted().huge.all():
            pytest.skip("this machine maps nothing large by itself")
        actuator = Actuator(journal)
        assert all(each.done for each in actuator.carry_out(demote(toucher, 0, 2)))
        assert toucher.counted().huge.tolist() == [False, True, False]
        assert all(each.outcome == "restored" for each in actuator.restore().undone)
        assert toucher.counted().huge.all()
        assert journal.entries() == ()


@pytest.mark.parametrize(("kind", "touched"), [("private", 1), ("private", 0), ("memfd", 1), ("memfd", 0)])
def test_kept_but_for_what_was_recounted(kind: str, touched: int, journal: Journal) -> None:
    with touching([touched] * 3, kind) as toucher:
        actuator = Actuator(journal, keep=True)
        actuator.carry_out(collapse(toucher, 0, 1))
        (effect,) = actuator.carry_out(demote(toucher, 1, purpose="recount"))
        assert (effect.outcome, effect.bytes) == ("done", 0 if kind == "private" else None)
        assert toucher.counted().huge.tolist() == [True, False, False]
        assert [each.outcome for each in actuator.restore().undone] == ["restored"]
        assert toucher.counted().huge.tolist() == [True, True, False]
        assert journal.entries() == ()


def test_what_is_filled_is_told(journal: Journal) -> None:
    with touching([1, 1]) as toucher:
        toucher.say("cut 1")
        (effect,) = Actuator(journal).carry_out(collapse(toucher, 1))
        assert (effect.outcome, effect.bytes) == ("done", 4096)
        assert toucher.counted().present.tolist() == [512, 512]
        (effect,) = Actuator(journal).carry_out(demote(toucher, 1))
        back = (kernel.release() or (0, 0)) >= (6, 12)  # from then on a split gives zeros back
        assert (effect.outcome, effect.bytes) == ("done", -4096 if back else 0)
        assert toucher.counted().present.tolist() == [512, 511 if back else 512]


def test_a_block_that_is_large_already_is_not_ours(journal: Journal) -> None:
    with touching([1, 1]) as toucher:
        with Hand(toucher.who) as hand:
            assert hand.enlarge(toucher.address(0)).outcome == "done"
        (effect,) = Actuator(journal).carry_out(collapse(toucher, 0))
        assert (effect.outcome, effect.detail) == ("done", "it was mapped large already")
        assert journal.entries() == ()


def test_memory_that_is_never_large_says_why(journal: Journal) -> None:
    with touching([1, 1]) as toucher:
        toucher.say("forbid 1")
        one, other = Actuator(journal).carry_out(collapse(toucher, 0, 1))
        assert one.done
        assert (other.outcome, other.detail) == ("not eligible", "it was advised MADV_NOHUGEPAGE")
        toucher.say("never")
        (effect,) = Actuator(journal).carry_out(collapse(toucher, 0)[:1])
        assert effect.done, "it is large already"
    with touching([1, 1]) as toucher:
        toucher.say("never")
        (effect,) = Actuator(journal).carry_out(collapse(toucher, 0))
        assert (effect.outcome, "PR_SET_THP_DISABLE" in effect.detail) == ("not eligible", True)


def test_what_a_process_has_forbidden_since_is_not_put_back(journal: Journal) -> None:
    with touching([1, 1]) as toucher:
        with Hand(toucher.who) as hand:
            assert hand.enlarge(toucher.address(0)).outcome == "done"
        actuator = Actuator(journal)
        assert actuator.carry_out(demote(toucher, 0))[0].done
        toucher.say("forbid 0")
        (undone,) = actuator.restore().undone
        assert (undone.outcome, journal.entries()) == ("restored", ()), undone


def test_one_that_unmaps_executes_or_ends(journal: Journal) -> None:
    with touching([1, 1, 1]) as toucher:
        image = smaps.image(toucher.pid)
        actuator = Actuator(journal, lambda _: image)
        unmapped = collapse(toucher, 2)
        toucher.say("unmap 1")
        (effect,) = actuator.carry_out(unmapped)
        assert effect.outcome == "gone", effect
        actuator.carry_out(collapse(toucher, 0))
        old = collapse(toucher, 1)
        toucher.become_anew()
        (effect,) = actuator.carry_out(old)
        assert (effect.outcome, effect.detail) == ("gone", "it is another program by now")
        assert [each.outcome for each in actuator.restore().undone] == ["gone"]
        actions = collapse(toucher, 0, 1)
    effects = actuator.carry_out(actions)
    assert [each.outcome for each in effects] == ["gone", "gone"]
    assert journal.entries() == ()


def test_one_that_executes_between_two_blocks(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does what it is asked in the program that there is then: so that one is looked at each time."""
    with touching([1, 1, 1]) as toucher:
        actuator = Actuator(journal)
        enlarge, asked = Hand.enlarge, []

        def at_the_second(hand: Hand, address: int) -> Came:
            asked.append(address)
            if len(asked) == 2:
                toucher.become_anew()
                with Hand(toucher.who) as now:
                    return enlarge(now, toucher.address(0))
            return enlarge(hand, address)

        monkeypatch.setattr(Hand, "enlarge", at_the_second)
        effects = actuator.carry_out(collapse(toucher, 0, 1, 2))
        assert [each.outcome for each in effects] == ["done", "gone", "gone"], effects
        assert len(asked) == 2
        assert toucher.counted().huge.tolist() == [True, False, False]


def test_what_was_done_to_the_next_program_is_noted(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with touching([1]) as toucher:
        first = smaps.image(toucher.pid)
        assert first is not None
        images = iter([first, first, first + 1])
        monkeypatch.setattr(smaps, "image_of", lambda *_: next(images))
        (effect,) = Actuator(journal).carry_out(collapse(toucher, 0))
        assert (effect.outcome, effect.detail) == ("gone", "it is another program by now")
        assert [each.image for each in Ours(journal).spans()] == [first, first + 1]
        assert toucher.counted().huge.all()


@pytest.mark.parametrize("large", [True, False])
def test_a_block_that_became_another_before_its_turn_is_noted(
    large: bool, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was found when all were noted, nothing was to be done with it."""
    with touching([1, 1]) as toucher:
        with Hand(toucher.who) as hand:
            if large:
                hand.enlarge(toucher.address(1))
        actuator, meddled = Actuator(journal), []
        name = "enlarge" if large else "reduce"
        do = getattr(Hand, name)

        def meddle(hand: Hand, address: int) -> Came:
            if not meddled:
                meddled.append(address)
                (Hand.reduce if large else Hand.enlarge)(hand, toucher.address(1))
            return do(hand, address)  # type: ignore[no-any-return]

        monkeypatch.setattr(Hand, name, meddle)
        actions = collapse(toucher, 0, 1) if large else demote(toucher, 0, 1)
        assert all(each.done for each in actuator.carry_out(actions))
        assert toucher.counted().huge.tolist() == [large, large]
        (span,) = Ours(journal).spans()
        assert span.changed & span.bit(toucher.address(1))
        assert not actuator.restore().failed
        assert toucher.counted().huge.tolist() == [False, not large]


def test_one_that_forks(journal: Journal) -> None:
    with touching([0, 0, 0]) as toucher:
        actuator = Actuator(journal)
        assert actuator.carry_out(collapse(toucher, 0))[0].done
        toucher.say("fork")
        # Pages that a child has too are mapped large for one of them (Linux 6.12: once one was written since),
        # and small only where all can be split.
        (effect,) = actuator.carry_out(collapse(toucher, 1))
        assert effect.done or (effect.outcome, "(EINVAL)" in effect.detail) == ("again later", True), effect
        toucher.touch([0, 3, 0])
        toucher.say("rounds 1")
        (effect,) = actuator.carry_out(collapse(toucher, 1))
        assert effect.done, effect
        (effect,) = actuator.carry_out(demote(toucher, 0))
        large = toucher.counted().huge[0]
        assert effect.done != large
        assert effect.done or "other processes map it too" in effect.detail
        assert toucher.say("check")["right"]
        report = actuator.restore()
        assert bool(report.failed) == bool(toucher.counted().huge.any())


def test_one_that_is_swapped_out_meanwhile(journal: Journal) -> None:
    with some_swap(), touching([0, 0]) as toucher, Advisor(toucher.who) as advisor:
        actuator = Actuator(journal)
        advisor.advise([(toucher.start, toucher.start + MIB)], Advice.PAGEOUT)
        left = int(toucher.counted().present[0])
        assert left < 400
        (effect,) = actuator.carry_out(collapse(toucher, 0))
        # The kernel brings back what is in swap, or says that it was busy with it.
        assert effect.outcome in ("done", "again later"), effect
        assert toucher.counted().huge[0] == effect.done
        if effect.done:
            assert effect.bytes == (512 - left) * 4096
        assert toucher.say("check")["right"]
        assert not actuator.restore().failed
        assert not toucher.counted().huge.any()
        advisor.advise([(toucher.start, toucher.start + 2 * MIB)], Advice.PAGEOUT)
        actuator.carry_out(demote(toucher, 0))
        assert toucher.say("check")["right"]
    assert journal.entries() == ()


def test_one_whose_cgroup_is_full(journal: Journal) -> None:
    with own_cgroup() as group, touching([0, 0]) as toucher:
        actuator = Actuator(journal)
        procs = group.directory / "cgroup.procs"
        procs.write_text(str(toucher.pid))
        group.set_limit(MIB)
        (effect,) = actuator.carry_out(collapse(toucher, 0))
        assert (effect.outcome, "EBUSY" in effect.detail) == ("again later", True), effect
        assert not toucher.counted().huge.any()
        assert journal.entries() == ()
        group.set_limit(64 * MIB)
        assert actuator.carry_out(collapse(toucher, 0))[0].done
        assert not actuator.restore().failed
        toucher.process.kill()
        toucher.process.wait()


def test_no_faster_than_allowed_and_no_longer(journal: Journal) -> None:
    with touching([1] * 8) as toucher:
        actuator = Actuator(journal, most_per_s=2, limit_s=2)  # the eighth would be due after 3.5 s
        effects = actuator.carry_out(collapse(toucher, *range(8)))
        done = [each.done for each in effects]
        assert done[0]
        assert not done[7]
        assert done == sorted(done, reverse=True)
        assert {each.outcome for each in effects if not each.done} == {"again later"}
        assert toucher.counted().huge.tolist() == done
        actuator.restore()
        assert not toucher.counted().huge.any()
        actuator.stop()
        assert {each.outcome for each in actuator.carry_out(collapse(toucher, 0))} == {"again later"}
        assert journal.entries() == ()


def test_where_no_large_page_is_to_be_had_putting_back_tries_one(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with touching([1] * 4) as toucher:
        actuator = Actuator(journal)
        with Hand(toucher.who) as hand:
            for block in range(3):
                assert hand.enlarge(toucher.address(block)).outcome == "done"
        assert all(each.done for each in actuator.carry_out(demote(toucher, 0, 1, 2)))
        assert actuator.carry_out(collapse(toucher, 3))[0].done
        tried: list[int] = []

        def advise(hand: Hand, start: int, end: int, advice: Advice) -> int:
            if advice is not Advice.COLLAPSE:
                return real(hand, start, end, advice)
            tried.append(start)
            return errno.ENOMEM

        real, beats = Hand._advise, 0

        def beat() -> None:
            nonlocal beats
            beats += 1

        with monkeypatch.context() as patch:
            patch.setattr(Hand, "_advise", advise)
            patch.setattr(smaps, "read", lambda *_: pytest.fail("page tables are walked for nothing"))
            (undone,) = actuator.restore(beat).undone
        assert undone.outcome == "failed"
        assert "3 blocks are not as they were" in undone.problem
        assert "memory is fragmented or short" in undone.problem
        assert tried == [toucher.address(0)]
        assert beats == 4
        assert not toucher.counted().huge.any(), "what was to be small is"
        assert [each.outcome for each in actuator.restore().undone] == ["restored"]
        assert toucher.counted().huge.tolist() == [True, True, True, False]


def test_why_blocks_stay_small_is_read_once_for_all(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with touching([1] * 3) as toucher:
        reads: list[int] = []
        real = smaps.read
        monkeypatch.setattr(smaps, "read", lambda pid, root: reads.append(pid) or real(pid, root))
        monkeypatch.setattr(Hand, "_advise", lambda *_: errno.EINVAL)
        effects = Actuator(journal).carry_out(collapse(toucher, 0, 1, 2))
        assert {each.outcome for each in effects} == {"again later"}
        assert reads == [toucher.pid]


def test_what_was_not_put_back_when_it_is_to_stop_stays_noted(journal: Journal) -> None:
    with touching([1] * 2) as toucher:
        actuator = Actuator(journal)
        assert all(each.done for each in actuator.carry_out(collapse(toucher, 0, 1)))
        (undone,) = actuator.restore(actuator.stop).undone
        assert (undone.outcome, "it was to stop" in undone.problem) == ("failed", True)
        assert len(journal.entries()) == 1
        assert toucher.counted().huge.any()
        assert not Actuator(journal).restore().failed
        assert not toucher.counted().huge.any()


def test_a_device_that_holds_pages_is_said(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as can be told from what the kernel does not do."""
    with touching([1]) as toucher:
        actuator = Actuator(journal)
        actuator.carry_out(collapse(toucher, 0))
        monkeypatch.setattr(Hand, "_advise", lambda *_: 0)
        split: list[int] = []
        monkeypatch.setattr(large_pages, "split", lambda pid, *_: split.append(pid))
        (effect,) = actuator.carry_out(demote(toucher, 0))
        assert (effect.outcome, split) == ("again later", [toucher.pid])
        assert "a device holds pages of it" in effect.detail


@pytest.mark.parametrize(
    ("code", "outcome", "why"),
    [
        (0, "not eligible", "other processes map it too"),
        (errno.EINVAL, "not eligible", "it is locked"),
        (errno.EAGAIN, "again later", "EAGAIN"),
        (errno.EPERM, "refused", "CAP_SYS_PTRACE"),
        (errno.ENOSYS, "refused", "Linux 5.10"),
    ],
)
def test_one_block_that_cannot_be_split_is_not_the_targets_fault(
    code: int, outcome: str, why: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what we may not, or the kernel cannot, says anything of its other blocks."""

    def no_debugfs(*_: object) -> None:
        raise HostError("it is not there", hint="mount it")

    with touching([1]) as toucher:
        actuator = Actuator(journal)
        actuator.carry_out(collapse(toucher, 0))
        monkeypatch.setattr(Hand, "_advise", lambda *_: code)
        monkeypatch.setattr(large_pages, "split", no_debugfs)
        (effect,) = actuator.carry_out(demote(toucher, 0))
        assert (effect.outcome, why in effect.detail) == (outcome, True), effect
        assert "it is not there (mount it)" in effect.detail


def test_without_a_note_nothing_is_done(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    with touching([1]) as toucher:
        actuator = Actuator(journal)

        def full(*_: object, **__: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("sustain.schedulers.journal._write", full)
        (effect,) = actuator.carry_out(collapse(toucher, 0))
        assert effect.outcome == "again later"
        assert "cannot be written" in effect.detail
        assert not toucher.counted().huge.any()


_VICTIM = """
import sys
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages.act import Actuator
from sustain.schedulers.large_pages.model import Collapse, Demote
pid, started, start, blocks = map(int, sys.argv[2:])
def make(kind, block, purpose):
    return kind(target="t", pid=pid, started=started, address=start + block * (2 << 20), purpose=purpose, reason="")
actuator = Actuator(Journal(sys.argv[1]), most_per_s=1e6)
print("begins", flush=True)
while True:
    actuator.carry_out([make(Collapse, block, "pays") for block in range(blocks)])
    actuator.carry_out([make(Demote, block, "recount") for block in range(0, blocks, 2)])
    actuator.carry_out([make(Collapse, block, "counted") for block in range(0, blocks, 4)])
    actuator.carry_out([make(Demote, block, "cold") for block in range(blocks)])
"""


@pytest.mark.parametrize("after_s", [0.0, 0.003, 0.01, 0.02, 0.035, 0.06, 0.1, 0.15])
def test_killed_at_any_moment_nothing_is_left(after_s: float, tmp_path: Path) -> None:
    """What is found large stays, the rest is small again; the moment is the test's, not luck's: any is right."""
    with touching([1] * 8, huge=False) as toucher:
        with Hand(toucher.who) as hand:
            hand.enlarge(toucher.address(6))
        before = toucher.counted().huge.tolist()
        assert before == [False] * 6 + [True, False]
        arguments = (toucher.pid, toucher.who.start_ticks, toucher.start, toucher.blocks)
        victim = subprocess.Popen(
            [sys.executable, "-c", _VICTIM, str(tmp_path / "j"), *map(str, arguments)], stdout=subprocess.PIPE
        )
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"begins\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            victim.wait(after_s)
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        victim.stdout.close()
        with Journal(tmp_path / "j") as journal:
            report = Actuator(journal).restore()
            assert not report.failed, report
            assert toucher.counted().huge.tolist() == before
            assert journal.entries() == ()
        assert toucher.say("check")["right"]


def test_a_program_that_is_killed_while_it_is_worked_on(journal: Journal) -> None:
    with touching([1] * 8) as toucher:
        actuator = Actuator(journal, most_per_s=1e6, limit_s=60)
        actions = [
            each for _ in range(500) for each in (*collapse(toucher, *range(8)), *demote(toucher, *range(8)))
        ]
        first = threading.Event()
        enlarge = Hand.enlarge

        def tell(hand: Hand, address: int) -> object:
            first.set()
            return enlarge(hand, address)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Hand, "enlarge", tell)
            killer = threading.Thread(
                target=lambda: (first.wait(30), toucher.process.kill(), toucher.process.wait())
            )
            killer.start()
            effects = actuator.carry_out(actions)
            killer.join()
    assert len(effects) == len(actions)
    assert effects[-1].outcome == "gone"
    assert [each.outcome for each in actuator.restore().undone] in ([], ["gone"])
    assert journal.entries() == ()


def test_a_stranger_with_the_same_number_is_not_touched() -> None:
    with touching([1]) as toucher, pytest.raises(HostError):
        Hand(toucher.who._replace(start_ticks=1))
