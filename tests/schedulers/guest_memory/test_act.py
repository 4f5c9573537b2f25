"""Carrying plans out: on made-up guests that follow, stop, hang and die; and putting back, also after a kill."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host.processes import Identity, identify
from sustain.schedulers.guest_memory import act
from sustain.schedulers.guest_memory.act import Actuator
from sustain.schedulers.guest_memory.model import Action, Balloon, Effect, Kind, PageOut, Reclaim
from sustain.schedulers.journal import Journal
from tests.host.held import MIB, Holder, own_cgroup, reading_in, some_swap

GIB = 1 << 30


class MadeGuest:
    """A guest whose balloon follows at once as far as `least_bytes`, and then needs no more memory than it is left."""

    kind: Kind = "qemu"

    def __init__(self, name: str, size_bytes: int = GIB) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.least_bytes = 0
        self.driver = True
        self.its_life: str | None = "1:1"
        self.who: Identity | None = None
        self.directory: str | None = None
        self.touched_bytes = size_bytes
        self.target_bytes = size_bytes
        self.asked: list[int] = []
        self.hang: threading.Event | None = None

    def life(self) -> str | None:
        return self.its_life

    def process(self) -> Identity | None:
        return self.who

    def cgroup(self) -> str | None:
        return self.directory

    def balloon(self) -> int | None:
        if self.hang is not None:
            self.hang.wait()
        if self.its_life is None:
            raise HostError("the socket is gone")
        return max(self.target_bytes, self.least_bytes) if self.driver else self.size_bytes

    def set_balloon(self, to_bytes: int) -> None:
        self.asked.append(to_bytes)
        self.target_bytes = to_bytes

    def resident(self) -> int | None:
        return min(self.touched_bytes, max(self.target_bytes, self.least_bytes))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal") as opened:
        yield opened


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(act, "_STILL_S", 0.05)
    monkeypatch.setattr(act, "_POLL_S", 0.01)


def balloon(guest: MadeGuest, to_bytes: int, life: str = "1:1") -> Balloon:
    return Balloon(guest=guest.name, life=life, from_bytes=GIB, to_bytes=to_bytes, reason="test")


def one(actuator: Actuator, action: Action) -> Effect:
    (effect,) = actuator.carry_out([action])
    assert effect.action == action
    return effect


def test_a_balloon_moves_and_the_host_gains(journal: Journal) -> None:
    guest = MadeGuest("a")
    actuator = Actuator({"a": guest}, journal)
    effect = one(actuator, balloon(guest, GIB // 2))
    assert (effect.done, effect.freed_bytes, effect.problem) == (True, GIB // 2, None)
    (entry,) = journal.entries()
    assert (entry.kind, entry.prior, entry.sets) == ("balloon", GIB, (GIB // 2,))
    back = one(actuator, balloon(guest, GIB))
    assert (back.done, back.freed_bytes) == (True, -GIB // 2)
    assert journal.entries() == ()  # as it was: there is nothing to put back


def test_the_prior_value_is_noted_before_the_change(journal: Journal) -> None:
    class Watched(MadeGuest):
        def set_balloon(self, to_bytes: int) -> None:
            assert [entry.prior for entry in journal.entries() if entry.kind == "balloon"] == [GIB]
            super().set_balloon(to_bytes)

    guest = Watched("a")
    actuator = Actuator({"a": guest}, journal)
    assert one(actuator, balloon(guest, GIB - 64 * MIB)).done
    assert one(actuator, balloon(guest, GIB - 128 * MIB)).done
    (entry,) = journal.entries()
    assert (entry.prior, entry.sets) == (GIB, (GIB - 128 * MIB, GIB - 64 * MIB))


def test_what_the_guest_cannot_give_is_not_asked_of_it_any_longer(journal: Journal) -> None:
    guest = MadeGuest("a")
    guest.least_bytes = 768 * MIB
    actuator = Actuator({"a": guest}, journal)
    effect = one(actuator, balloon(guest, GIB // 2))
    assert not effect.done
    assert effect.freed_bytes == 256 * MIB
    assert "gives no more" in (effect.problem or "")
    assert guest.asked == [GIB // 2, 768 * MIB]
    assert actuator.restore().failed == ()
    assert guest.target_bytes == GIB


class Squeezed(MadeGuest):
    """A guest that frees a page now and then, all of which its balloon takes."""

    def balloon(self) -> int:
        if self.target_bytes < self.touched_bytes:
            self.touched_bytes -= 4096
        else:
            self.touched_bytes = self.target_bytes
        return self.touched_bytes


@pytest.mark.parametrize("still_s", [0.05, 60.0])
def test_a_balloon_that_takes_page_by_page_is_stopped(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, still_s: float
) -> None:
    """Since it hardly moves, or since time is up: else it would take whatever the guest frees for itself."""
    monkeypatch.setattr(act, "_STILL_S", still_s)
    monkeypatch.setattr(act, "_END", 0.5)
    guest = Squeezed("a")
    effect = one(Actuator({"a": guest}, journal, limit_s=0.5), balloon(guest, GIB // 2))
    assert (effect.done, effect.under_way) == (False, False)
    assert ("gives no more" if still_s < 1 else "not there in time") in (effect.problem or "")
    assert guest.target_bytes > GIB - 16 * MIB
    assert guest.target_bytes == guest.touched_bytes  # nothing more is asked of it


def test_a_guest_without_a_driver_is_left_as_it_was(journal: Journal) -> None:
    guest = MadeGuest("a")
    guest.driver = False
    effect = one(Actuator({"a": guest}, journal), balloon(guest, GIB // 2))
    assert not effect.done
    assert "no driver" in (effect.problem or "")
    assert guest.target_bytes == GIB
    assert journal.entries() == ()


def test_what_the_host_did_not_gain_is_said(journal: Journal) -> None:
    guest = MadeGuest("a")
    guest.touched_bytes = GIB // 4  # most of its memory was never used
    effect = one(Actuator({"a": guest}, journal), balloon(guest, GIB // 2))
    assert (effect.done, effect.freed_bytes) == (True, 0)
    assert "the host gained 0" in (effect.problem or "")


def test_another_life_no_guest_no_balloon(journal: Journal) -> None:
    guest, gone = MadeGuest("a"), MadeGuest("b")
    gone.its_life = None
    actuator = Actuator({"a": guest, "b": gone}, journal)
    effects = actuator.carry_out(
        [balloon(guest, GIB // 2, life="9:9"), balloon(gone, GIB // 2), balloon(MadeGuest("c"), GIB // 2)]
    )
    assert [each.done for each in effects] == [False, False, False]
    assert ["anew" in (effects[0].problem or ""), "gone" in (effects[1].problem or "")] == [True, True]
    assert (guest.asked, gone.asked, journal.entries()) == ([], [], ())
    assert "no cgroup" in (
        one(actuator, Reclaim(guest="a", life="1:1", amount_bytes=1, reason="")).problem or ""
    )
    assert "no process" in (
        one(actuator, PageOut(guest="a", life="1:1", amount_bytes=1, reason="")).problem or ""
    )


def test_a_guest_that_dies_during_the_action(journal: Journal) -> None:
    class Dying(MadeGuest):
        def set_balloon(self, to_bytes: int) -> None:
            super().set_balloon(to_bytes)
            self.its_life = None

    guest = Dying("a")
    effect = one(Actuator({"a": guest}, journal), balloon(guest, GIB // 2))
    assert not effect.done
    assert "socket is gone" in (effect.problem or "")


def test_one_that_hangs_holds_up_nobody(journal: Journal) -> None:
    hung, guest = MadeGuest("hung"), MadeGuest("a")
    hung.hang = threading.Event()
    actuator = Actuator({"hung": hung, "a": guest}, journal, limit_s=2.0)
    began = time.monotonic()
    effects = actuator.carry_out([balloon(hung, GIB // 2), balloon(guest, GIB // 2)])
    assert time.monotonic() - began < 20
    assert [each.done for each in effects] == [False, True]
    assert "within 2 s" in (effects[0].problem or "")
    again = actuator.carry_out([balloon(hung, GIB // 2), balloon(guest, GIB)])
    assert [each.done for each in again] == [False, True]
    assert "earlier action" in (again[0].problem or "")
    # It comes back after all was put back: too late to change anything.
    assert actuator.restore().failed == ()
    thread = actuator._guests["hung"].thread
    assert thread is not None
    hung.hang.set()
    thread.join(10)
    assert hung.asked == []
    hung.hang = None
    assert one(actuator, balloon(hung, GIB // 2)).done


def killed(journal: Journal, guest: MadeGuest, to_bytes: int) -> None:
    """What is left by an agent that was killed after it asked for that, and before the balloon had come there."""

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    actuator = Actuator({guest.name: guest}, journal)
    own = act._Guest()
    actuator._settle = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        actuator._balloon(own, guest, balloon(guest, to_bytes), actuator._round)


@pytest.mark.parametrize(
    ("now", "outcome", "then"),
    [
        (GIB // 2, "restored", GIB),  # where we left it
        (GIB // 2 + 8 * MIB, "restored", GIB),  # it has taken a little back, having run out of memory
        (GIB // 2 + 64 * MIB, "changed", GIB // 2 + 64 * MIB),
        (GIB // 4, "changed", GIB // 4),
        (GIB, "restored", GIB),
    ],
)
def test_restore_puts_back_what_nobody_else_has_set(
    journal: Journal, now: int, outcome: str, then: int
) -> None:
    guest = MadeGuest("a")
    actuator = Actuator({"a": guest}, journal)
    assert one(actuator, balloon(guest, GIB // 2)).done
    guest.target_bytes = now
    (undone,) = actuator.restore().undone
    assert (undone.outcome, guest.target_bytes) == (outcome, then)
    assert journal.entries() == ()


@pytest.mark.parametrize(
    ("stands", "then"), [(GIB - MIB, GIB), (GIB * 3 // 4, GIB), (GIB // 2, GIB), (GIB // 4, GIB // 4)]
)
def test_restore_of_a_balloon_that_was_on_its_way(journal: Journal, stands: int, then: int) -> None:
    guest = MadeGuest("a")
    killed(journal, guest, GIB // 2)
    guest.target_bytes = stands
    report = Actuator({"a": guest}, journal).restore()
    assert report.failed == ()
    assert guest.target_bytes == then
    assert journal.entries() == ()


def test_a_balloon_on_its_way_that_cannot_be_put_back_is_put_back_the_next_time(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> int:
        raise HostError("no answer")

    guest = MadeGuest("a")
    killed(journal, guest, GIB // 2)
    guest.target_bytes = GIB * 3 // 4
    with monkeypatch.context() as patch:
        patch.setattr(guest, "balloon", lambda: refuse(guest))
        (undone,) = Actuator({"a": guest}, journal).restore().undone  # one change, not two
    assert (undone.entry.key, undone.outcome) == ("balloon:a", "failed")
    (undone,) = Actuator({"a": guest}, journal).restore().undone
    assert (undone.entry.key, undone.outcome, guest.target_bytes) == ("balloon:a", "restored", GIB)
    assert journal.entries() == ()


def test_a_balloon_that_stops_as_all_is_called_off_is_still_known_to_be_on_its_way(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called off between the look at which it had stopped, and asking for no more than that."""
    guest = MadeGuest("a")
    guest.least_bytes = GIB * 3 // 4
    settle = Actuator._settle

    def called_off(self: Actuator, handle: MadeGuest, start: int, goal: int, this: act._Round) -> int | None:
        came = settle(self, handle, start, goal, this)

        def goes_on(_: act._Round) -> bool:
            this.end.set()
            return True

        monkeypatch.setattr(act._Round, "goes_on", goes_on)
        return came

    monkeypatch.setattr(Actuator, "_settle", called_off)
    effect = one(Actuator({"a": guest}, journal), balloon(guest, GIB // 2))
    assert (effect.done, effect.under_way, guest.target_bytes) == (False, True, GIB // 2)
    assert [each.outcome for each in Actuator({"a": guest}, journal).restore().undone] == ["restored"]
    assert (guest.target_bytes, journal.entries()) == (GIB, ())


def test_a_defect_in_one_guest_s_action_is_its_effect(journal: Journal) -> None:
    good, bad = MadeGuest("good"), MadeGuest("bad")
    bad.resident = lambda: 1 // 0  # type: ignore[method-assign]
    actuator = Actuator({"good": good, "bad": bad}, journal)
    done, failed = actuator.carry_out([balloon(good, GIB // 2), balloon(bad, GIB // 2)])
    assert done.done
    assert (failed.done, failed.under_way) == (False, False)
    assert "unexpected ZeroDivisionError" in (failed.problem or "")


def test_restore_of_a_guest_that_is_gone_or_cannot_be_reached(journal: Journal) -> None:
    guest = MadeGuest("a")
    gone = guest.its_life = f"{(1 << 22) + 1}:1"  # of no process
    assert one(Actuator({"a": guest}, journal), balloon(guest, GIB // 2, life=gone)).done
    assert [each.outcome for each in Actuator({}, journal).restore().undone] == ["gone"]
    first = identify(1)
    assert first is not None
    runs = guest.its_life = f"{first.pid}:{first.start_ticks}"  # and is no guest that anybody knows of
    assert one(Actuator({"a": guest}, journal), balloon(guest, GIB // 4, life=runs)).done
    (failed,) = Actuator({}, journal).restore().failed
    assert "cannot be reached" in failed.problem
    assert len(journal.entries()) == 1  # for the next time
    other = MadeGuest("a")  # has its name now
    other.its_life = "2:2"
    assert len(Actuator({"a": other}, journal).restore().failed) == 1
    renamed = {"a": other, "a.1": guest}
    assert [each.outcome for each in Actuator(renamed, journal).restore().undone] == ["restored"]
    assert (guest.target_bytes, other.asked) == (GIB // 2, [])  # what it was when this life was first noted


def test_what_a_guest_had_stays_noted_when_another_has_its_name(journal: Journal) -> None:
    """Of a former one that is gone nothing is kept, and nothing is done to who has its name."""
    first = identify(1)
    assert first is not None
    a, b, c = MadeGuest("a"), MadeGuest("a"), MadeGuest("a")
    a.its_life = f"{first.pid}:{first.start_ticks}"
    b.its_life, c.its_life = f"{(1 << 22) + 1}:1", f"{(1 << 22) + 2}:2"  # of no process
    for guest, size in ((a, GIB // 2), (b, GIB // 4), (c, GIB // 8)):
        assert one(Actuator({"a": guest}, journal), balloon(guest, size, life=guest.its_life)).done
    assert [(each.key, each.sets) for each in journal.entries()] == [
        ("balloon:a", (GIB // 8,)),
        (f"balloon:a@{a.its_life}", (GIB // 2,)),
    ]
    report = Actuator({"a": c, "first": a}, journal).restore()
    assert [each.outcome for each in report.undone] == ["restored", "restored"]
    assert (a.target_bytes, b.target_bytes, c.target_bytes) == (GIB, GIB // 4, GIB)


def test_a_cgroup_that_was_made_anew_gets_nothing_of_the_former_one(journal: Journal) -> None:
    with own_cgroup() as group:
        target: dict[str, int | str] = {
            "directory": str(group.directory),
            "inode": group.inode,
            "kills": 0,
        }
        group.directory.rmdir()
        group.directory.mkdir()
        group.set_limit(50 * MIB)  # as was set last
        journal.note(f"cgroup-limit:{group.directory}", "cgroup-limit", target, 100 * MIB, 50 * MIB)
        assert [each.outcome for each in Actuator({}, journal).restore().undone] == ["gone"]
        assert group.own_limit_bytes() == 50 * MIB


def test_restore_of_a_domain_that_is_shut_off_or_no_longer_configured(journal: Journal) -> None:
    life = "0d5a1e5c-7c11-4a5f-9f0e-6a1d0a4b7e33:7"
    guest = MadeGuest("a")
    guest.kind = "libvirt"
    guest.its_life = life
    assert one(Actuator({"a": guest}, journal), balloon(guest, GIB // 2, life=life)).done
    journal.note("statistics:a", "statistics", {"guest": "a", "life": life}, 0, 5)
    other = MadeGuest("a")  # of that name, and no domain
    for known in ({}, {"a": other}):
        failed = Actuator(known, journal).restore().failed
        assert [each.entry.key for each in failed] == ["balloon:a", "statistics:a"]
        assert all("unknown" in each.problem and "configure it again" in each.problem for each in failed)
        assert len(journal.entries()) == 2  # for the next time
    guest.its_life = life
    renamed = MadeGuest("a")
    renamed.kind, renamed.its_life = "libvirt", "3534ac6d-3235-4d0b-81e4-45be85b0d4a5:7"
    report = Actuator({"a": renamed, "b": guest}, journal).restore()
    assert [each.outcome for each in report.undone] == [
        "restored",
        "gone",
    ]  # made-up guests have no statistics
    assert one(Actuator({"a": guest}, journal), balloon(guest, GIB // 2, life=life)).done
    assert [each.outcome for each in Actuator({"a": renamed}, journal).restore().undone] == ["gone"]
    assert one(Actuator({"a": guest}, journal), balloon(guest, GIB // 4, life=life)).done
    guest.its_life = None  # it is shut off
    assert [each.outcome for each in Actuator({"a": guest}, journal).restore().undone] == ["gone"]
    assert journal.entries() == ()
    assert (other.asked, renamed.asked) == ([], [])


def test_what_was_found_first_is_kept_when_the_process_is_not_found_for_once(journal: Journal) -> None:
    guest = MadeGuest("a")
    actuator = Actuator({"a": guest}, journal)
    guest.who = identify(1)
    assert one(actuator, balloon(guest, GIB * 3 // 4)).done
    guest.who = None
    assert one(actuator, balloon(guest, GIB // 2)).done
    assert actuator.restore().failed == ()
    assert guest.target_bytes == GIB


def test_nothing_is_changed_that_cannot_be_noted(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = MadeGuest("a")

    def full(*_: object, **__: object) -> None:
        raise HostError("no room")

    monkeypatch.setattr(journal, "note", full)
    effect = one(Actuator({"a": guest}, journal), balloon(guest, GIB // 2))
    assert not effect.done
    assert guest.asked == []


def test_pages_go_to_swap_and_come_back(journal: Journal) -> None:
    guest = MadeGuest("a")
    with some_swap(128 * MIB), Holder(96 * MIB) as holder:
        guest.who = holder.who
        actuator = Actuator({"a": guest}, journal)
        action = PageOut(guest="a", life="1:1", amount_bytes=24 * MIB, reason="test")
        effect = one(actuator, action)
        seen = holder.census()
        assert effect.done
        assert abs(seen.swapped_bytes - 24 * MIB) < 3 * MIB
        assert effect.freed_bytes is not None
        assert 16 * MIB < effect.freed_bytes <= 24 * MIB  # a zram keeps a little of it in memory
        assert "no way to ask" in (effect.problem or "")
        assert holder.touch()


def test_what_is_in_use_is_found_out_and_left_alone(journal: Journal) -> None:
    guest = MadeGuest("a")
    hot = 32 * MIB
    with some_swap(128 * MIB), Holder(96 * MIB) as holder:
        guest.who = holder.who
        actuator = Actuator({"a": guest}, journal)
        action = PageOut(guest="a", life="1:1", amount_bytes=48 * MIB, reason="test")
        moved_of_hot = []
        for _ in range(6):
            one(actuator, action)
            moved_of_hot.append(holder.census(0, hot).swapped_bytes)
            assert holder.touch(0, hot)
        assert moved_of_hot[0] > hot // 2
        assert sum(moved_of_hot[1:]) < 3 * hot  # tried again ever less often
        assert 0 in moved_of_hot
        cold = holder.census(hot, holder.used_bytes)
        assert cold.swapped_bytes > 0.8 * (holder.used_bytes - hot)


def test_no_swap_is_said(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/swaps").write_text("Filename Type Size Used Priority\n")
    with Holder(96 * MIB) as holder:
        for each in (str(holder.who.pid), "self"):
            (tmp_path / "proc" / each).symlink_to(Path("/proc") / each)
        guest = MadeGuest("a")
        guest.who = holder.who
        actuator = Actuator({"a": guest}, journal, root=tmp_path)
        effect = one(actuator, PageOut(guest="a", life="1:1", amount_bytes=MIB, reason="test"))
        assert not effect.done
        assert "no swap" in (effect.problem or "")
        assert holder.census().swapped_bytes == 0


def test_a_process_that_is_no_guest(journal: Journal) -> None:
    guest = MadeGuest("a")
    with Holder(16 * MIB) as holder:
        guest.who = holder.who
        effect = one(
            Actuator({"a": guest}, journal), PageOut(guest="a", life="1:1", amount_bytes=MIB, reason="test")
        )
        assert "no RAM of a guest" in (effect.problem or "")


class Frames:
    """A guest that says of its frames what the test wants; it lies in its process from `start` on."""

    def __init__(self, start: int, size_bytes: int, inactive: Callable[[int], list[tuple[int, int]]]) -> None:
        self.start = start
        self.end_bytes = size_bytes
        self.inactive = inactive
        self.silent = False

    def inactive_anonymous(self, address: int) -> list[tuple[int, int]]:
        if self.silent:
            raise HostError("no answer in time")
        return self.inactive(address)

    def place(self, address: int) -> int | None:
        return None if address == 0 else self.start + address


class FramedGuest(MadeGuest):
    def __init__(self, name: str, frames: Frames) -> None:
        super().__init__(name)
        self._frames = frames

    def frames(self) -> Frames:
        return self._frames


def test_only_frames_that_the_guest_calls_inactive_are_moved(journal: Journal) -> None:
    def inactive(chunk: int) -> list[tuple[int, int]]:
        """In each 16 MiB: 3 of the first 4 MiB, and every second page of the last 4."""
        return [(chunk, chunk + 3 * MIB)] + [
            (at, at + 4096) for at in range(chunk + 12 * MIB, chunk + 16 * MIB, 8192)
        ]

    with some_swap(128 * MIB), Holder(128 * MIB) as holder:
        before = holder.census()
        guest = FramedGuest("a", Frames(holder.start, holder.size_bytes, inactive))
        guest.who = holder.who
        action = PageOut(guest="a", life="1:1", amount_bytes=96 * MIB, reason="test")
        effect = one(Actuator({"a": guest}, journal), action)
        assert effect.done
        assert "no more memory that is anonymous" in (effect.problem or "")
        after = holder.census()
        allowed = {
            page
            for chunk in range(16 * MIB, 96 * MIB, 16 * MIB)
            for a, b in inactive(chunk)
            for page in range(a, b, 4096)
        }
        went = {page - holder.start for a, b in after.swapped for page in range(a, b, 4096)}
        assert went <= allowed
        assert len(went) > 0.6 * len(allowed)
        # The last 4 MiB of a chunk would split large pages for half of them: that is worth it; 1 of 2 MiB as well.
        assert before.huge_bytes is None or after.huge_bytes is not None
        assert holder.touch()


def test_a_guest_that_answers_no_more_is_not_paged_out_and_one_that_never_did_is_said(
    journal: Journal,
) -> None:
    with some_swap(128 * MIB), Holder(96 * MIB) as holder:
        frames = Frames(holder.start, holder.size_bytes, lambda at: [(at, at + 4 * MIB)])
        guest = FramedGuest("a", frames)
        guest.who = holder.who
        action = PageOut(guest="a", life="1:1", amount_bytes=8 * MIB, reason="test")
        actuator = Actuator({"a": guest}, journal)
        assert one(actuator, action).done
        moved = holder.census().swapped_bytes
        frames.silent = True
        effect = one(actuator, action)
        assert not effect.done
        assert "no answer in time" in (effect.problem or "")
        assert holder.census().swapped_bytes == moved
        blind = one(Actuator({"a": guest}, journal), action)
        assert blind.done
        assert "calls free is not known: no answer in time" in (blind.problem or "")


def test_a_cgroup_is_reclaimed_from_and_its_limit_is_as_before(journal: Journal, tmp_path: Path) -> None:
    guest = MadeGuest("a")
    with own_cgroup() as group, reading_in(group, tmp_path / "file", 48 * MIB):
        guest.directory = str(group.directory)
        limit = group.own_limit_bytes()
        action = Reclaim(guest="a", life="1:1", amount_bytes=24 * MIB, reason="test")
        effect = one(Actuator({"a": guest}, journal), action)
        assert effect.done
        assert effect.problem is None
        assert effect.freed_bytes is not None
        assert effect.freed_bytes > 20 * MIB
        assert group.own_limit_bytes() == limit
        assert group.kills()
    assert journal.entries() == ()


def test_a_limit_that_a_killed_agent_has_left_is_put_back(journal: Journal) -> None:
    with own_cgroup() as group:
        if group.version == 2:
            pytest.skip("in version 2 no limit is touched")
        actuator = Actuator({}, journal)
        before = group.own_limit_bytes()
        actuator._noter(group, "cgroup-limit:x")(-1, 64 * MIB)
        group.set_kills(False)
        group.set_limit(64 * MIB)
        assert [each.outcome for each in actuator.restore().undone] == ["restored"]
        assert group.own_limit_bytes() == before
        assert group.kills()
        actuator._noter(group, "cgroup-limit:x")(-1, 64 * MIB)
        group.set_limit(128 * MIB)  # by somebody else
        assert [each.outcome for each in actuator.restore().undone] == ["changed"]
        assert group.own_limit_bytes() == 128 * MIB
        actuator._noter(group, "cgroup-limit:x")(-1, 64 * MIB)
    assert [each.outcome for each in actuator.restore().undone] == ["gone"]
