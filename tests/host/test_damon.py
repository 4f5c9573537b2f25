"""DAMON's files as Linux 6.12 shows them, in a made tree: what is written where, and what is read of it. What the
kernel does with it is in test_damon_kernel.py."""

import errno
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.errors import HostError
from sustain.host import damon
from sustain.host.damon import Attributes, Damon, Region, Totals

PAGE = 4096
PAGES = [(at, at + PAGE) for at in (0x10000, 0x30000, 0x31000)]
QUICK = Attributes(100_000, 1_000_000)


def admin(root: Path) -> Path:
    return root / "sys/kernel/mm/damon/admin/kdamonds"


def made(root: Path, *, kdamonds: int = 0, operations: str = "vaddr\nfvaddr\npaddr\n") -> Path:
    """The tree; its directories are there before they are asked for, as nobody makes them here."""
    top = admin(root)
    context = top / "0/contexts/0"
    for folder in (
        "monitoring_attrs/intervals",
        "monitoring_attrs/nr_regions",
        *(f"targets/0/regions/{number}" for number in range(3)),
        *(
            f"schemes/{each}/access_pattern/{name}"
            for each in (0, 1)
            for name in ("sz", "nr_accesses", "age")
        ),
        *(f"schemes/{each}/stats" for each in (0, 1)),
        "schemes/1/tried_regions",
    ):
        (context / folder).mkdir(parents=True)
    (context / "avail_operations").write_text(operations)
    (top / "0/contexts/nr_contexts").write_text("0\n")
    (top / "0/state").write_text("off\n")
    (top / "nr_kdamonds").write_text(f"{kdamonds}\n")
    return top


def says(folder: Path, **values: int) -> None:
    folder.mkdir(exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")


def files(folder: Path, names: Iterable[str]) -> list[str]:
    return [(folder / name).read_text() for name in names]


def test_no_damon(tmp_path: Path) -> None:
    assert not damon.present(tmp_path)
    with pytest.raises(HostError, match="no DAMON") as caught:
        Damon(lambda _: None, tmp_path)
    assert "CONFIG_DAMON_VADDR" in caught.value.hint
    assert damon.clean_up(0, tmp_path) == "gone"


def test_one_that_cannot_watch_processes_is_left_as_it_was(tmp_path: Path) -> None:
    top, notes = made(tmp_path, operations="paddr\n"), list[int | None]()
    with pytest.raises(HostError, match=r"cannot watch processes \(it knows paddr\)") as caught:
        Damon(notes.append, tmp_path, slots=1)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert (top / "nr_kdamonds").read_text() == "0"
    assert notes == [0, (top / "0").stat().st_ino, None]


def test_somebody_elses(tmp_path: Path) -> None:
    top, notes = made(tmp_path, kdamonds=1), list[int | None]()
    (top / "0/state").write_text("on\n")
    with pytest.raises(HostError, match="1 kdamonds are set up by somebody else") as caught:
        Damon(notes.append, tmp_path)
    assert caught.value.errno == errno.EBUSY
    assert notes == []
    inode = (top / "0").stat().st_ino
    assert damon.clean_up(0, tmp_path) == damon.clean_up(inode + 1, tmp_path) == "changed"
    assert (top / "0/state").read_text() == "on\n"
    assert damon.clean_up(inode, tmp_path) == "restored"  # those would have been ours
    assert files(top, ("0/state", "nr_kdamonds")) == ["off", "0"]


def test_what_was_begun_and_not_set_up_is_taken_away(tmp_path: Path) -> None:
    top = made(tmp_path, kdamonds=damon.SLOTS)
    assert damon.clean_up(0, tmp_path) == "restored"
    (top / "nr_kdamonds").write_text(str(damon.SLOTS))
    (top / "0/contexts/nr_contexts").write_text("1")  # somebody has begun to use them
    assert damon.clean_up(0, tmp_path) == "changed"


def test_a_watch(tmp_path: Path) -> None:
    top, notes = made(tmp_path), list[int | None]()
    ours = Damon(notes.append, tmp_path, slots=1)
    watch = ours.watch(42, list(reversed(PAGES)), QUICK)
    context = top / "0/contexts/0"
    attributes = context / "monitoring_attrs"
    assert files(context, ("operations", "targets/0/pid_target", "targets/0/regions/nr_regions")) == [
        *("fvaddr", "42", "3")
    ]
    assert files(attributes, ("intervals/sample_us", "intervals/aggr_us")) == ["100000", "1000000"]
    assert files(attributes, ("nr_regions/min", "nr_regions/max")) == ["3", "3"]
    regions = [files(context / f"targets/0/regions/{number}", ("start", "end")) for number in range(3)]
    assert regions == [[str(start), str(end)] for start, end in PAGES]
    least = [(context / f"schemes/{each}/access_pattern/nr_accesses/min").read_text() for each in (0, 1)]
    assert least == ["1", "0"]
    assert (top / "0/state").read_text() == "on"
    with pytest.raises(HostError, match="no slot is free"):
        ours.watch(43, PAGES, QUICK)

    says(context / "schemes/0/stats", nr_tried=7)
    says(context / "schemes/1/stats", nr_tried=30)
    assert watch.totals() == Totals(seen=30, used=7)
    assert (top / "0/state").read_text() == "update_schemes_stats"
    tried = context / "schemes/1/tried_regions"
    (tried / "total_bytes").write_text("8192\n")
    says(tried / "2", start=PAGES[0][0], end=PAGES[0][1], nr_accesses=9, age=2)
    says(tried / "1", start=PAGES[1][0], end=PAGES[1][1], nr_accesses=0, age=5)
    assert watch.regions() == [Region(*PAGES[0], 9, 2), Region(*PAGES[1], 0, 5)]

    watch.close()
    assert (top / "0/contexts/nr_contexts").read_text() == "0"
    ours.watch(43, PAGES, QUICK)
    ours.close()
    assert ((top / "nr_kdamonds").read_text(), notes[-1]) == ("0", None)


def test_what_cannot_be_noted_is_not_set_up(tmp_path: Path) -> None:
    top = made(tmp_path)

    def refuse(_: int | None) -> None:
        raise HostError("no room")

    with pytest.raises(HostError, match="no room"):
        Damon(refuse, tmp_path)
    assert (top / "nr_kdamonds").read_text() == "0\n"


def test_too_few_regions(tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(ValueError, match="no less than 3"):
        Damon(lambda _: None, tmp_path, slots=1).watch(1, PAGES[:2], QUICK)


def test_blocks_are_whole_and_aligned() -> None:
    mib = 1 << 20
    assert damon.blocks([(mib, 7 * mib), (9 * mib, 11 * mib)]) == [(2 * mib, 4 * mib), (4 * mib, 6 * mib)]


@given(st.integers(1, 64), st.data())
def test_an_estimate_never_is_surer_than_its_samples(samples: int, data: st.DataObject) -> None:
    accesses = data.draw(st.integers(0, samples))
    found = damon.estimate(accesses, samples)
    assert 0 <= found.share <= 1
    assert 1 / samples <= found.error <= max(1 / samples, 0.5 / samples**0.5 + 1e-9)
