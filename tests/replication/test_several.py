"""Several destinations at once: one that is slow, stopped, dead, full or not let in holds up neither the application
(beyond the stall time that was configured) nor the others, is dropped, comes back by itself, and ends whole."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import sustain
from sustain.replication.credentials import NO_CREDENTIALS, Credentials
from sustain.replication.pins import Overruns
from sustain.replication.receive import Receiver
from sustain.replication.urls import join
from sustain.testing.link import Link

from .certificates import Authority
from .conftest import LIMIT_S, LINK, Lab, Running, contents, fill, until
from .test_processes import Processes

STALL_S = 0.3
SLACK_S = (
    10.0  # of a machine that is busy with other things; a commit that nobody lets go on waits for a minute
)
TROUBLES: dict[str, Callable[[Link], None]] = {
    "slow": lambda link: link.slow(1),
    "stopped": Link.stall,
    "dead": Link.down,
}


def ship(
    lab: Lab, good: Receiver, bad: str, required: bool, credentials: Credentials = NO_CREDENTIALS
) -> Running:
    suffix = "?required=1" if required else ""
    urls = [f"tcp://{join(*good.address)}", bad + suffix]
    return lab.ship(*urls, link=replace(LINK, credentials=credentials, timeout_s=1.0), stall_s=STALL_S)


def state_of(store: sustain.Store, url: str) -> str:
    return next(each.state for each in store.status().destinations if each.url == url)


def go_on(store: sustain.Store, is_dropped: Callable[[], bool]) -> int:
    """Commit until the one in trouble is dropped, and a log's length more; the last position."""
    longest_s, left, at, position = 0.0, 120, 0, 0
    deadline = time.monotonic() + 60
    while left:
        began = time.monotonic()
        position = fill(store, at % 40, 1, bytes([at % 251]) * 20_000)  # what does not change is not logged
        longest_s = max(longest_s, time.monotonic() - began)
        at += 1
        left -= is_dropped()
        assert time.monotonic() < deadline, "it is never dropped"
    assert longest_s < STALL_S + SLACK_S
    return position


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_one_in_trouble_holds_up_nobody_and_comes_back_whole(lab: Lab, trouble: str, required: bool) -> None:
    store, good, bad = lab.create(log_size="2MiB"), lab.receiver("b"), lab.receiver("c")
    with Link(bad.address) as link:
        running = ship(lab, good, link.url, required)
        store.wait(fill(store, 0, 10), copies=2, timeout=20)
        TROUBLES[trouble](link)
        position = go_on(store, lambda: state_of(store, link.url) == "needs-snapshot")
        store.wait(position, copies=1, timeout=20)
        assert next(each.acked for each in store.status().destinations if each.url != link.url) == position
        link.flow()
        store.wait(position, copies=2, timeout=60)
        store.wait(fill(store, 50, 10), copies=2, timeout=20)
        assert any("gets a snapshot" in line and link.url in line for line in running.said)
        running.stop()
    both_are_whole(lab, store, good, bad)


def test_one_that_is_stuck_in_a_send_is_dropped(lab: Lab) -> None:
    """It cannot find out by itself that what it sends is not in the log any more."""
    store, bad = lab.create(size="16MiB", log_size="16MiB"), lab.receiver("c")
    with Link(bad.address) as link:
        running = lab.ship(link.url, stall_s=STALL_S)
        store.wait(fill(store, 0, 10), copies=1, timeout=20)
        link.slow(1)
        blob = store.file("blob")

        def write(at: int) -> None:
            blob.pwrite(bytes([at % 251]) * 500_000, 0)
            store.commit()

        for at in range(100):
            write(at)
        assert next(each.lag_bytes for each in store.status().destinations) > 16 << 20
        until(lambda: state_of(store, link.url) == "needs-snapshot", "it is dropped")
        link.flow()
        store.wait(store.commit(), copies=1, timeout=60)
        running.stop()
    bad.stop()
    assert lab.open("c").file("blob").pread(500_000, 0) == blob.pread(500_000, 0)


def both_are_whole(lab: Lab, store: sustain.Store, *receivers: Receiver) -> None:
    expected = contents(store)
    for receiver in receivers:
        receiver.stop()
        with sustain.open(receiver.status()["path"]) as standby:
            standby.verify()
            assert contents(standby) == expected


def test_real_ones_that_are_stopped_and_killed(lab: Lab) -> None:
    """`sustain receive`, three of them: one goes on, one is stopped, one is killed and started again."""
    store, processes = lab.create(log_size="2MiB"), Processes(lab)
    try:
        started = {name: processes.receive(name) for name in "bcd"}
        urls = {name: f"tcp://127.0.0.1:{port}" for name, (_, port) in started.items()}
        running = lab.ship(
            urls["b"], urls["c"], urls["d"], link=replace(LINK, timeout_s=1.0), required=True, stall_s=STALL_S
        )
        store.wait(fill(store, 0, 10), copies=3, timeout=LIMIT_S)
        started["c"][0].send_signal(signal.SIGSTOP)
        started["d"][0].kill()
        dropped = {"needs-snapshot"}
        position = go_on(store, lambda: {state_of(store, urls[name]) for name in "cd"} == dropped)
        store.wait(position, copies=1, timeout=LIMIT_S)
        started["c"][0].send_signal(signal.SIGCONT)
        started["d"] = processes.receive("d", started["d"][1])
        store.wait(position, copies=3, timeout=LIMIT_S)
        running.stop()
        for process, _ in started.values():
            process.terminate()
            assert process.wait(LIMIT_S) == 0
    finally:
        processes.end()
    expected = contents(store)
    for name in "bcd":
        assert contents(lab.open(name)) == expected


def test_a_slow_one_behind_tls_and_a_key(lab: Lab, tmp_path: Path) -> None:
    authority = Authority.made(tmp_path / "ca")
    a, b, c = (replace(authority.host(name).load(), key=b"k" * 32) for name in "abc")
    store, good, bad = (
        lab.create(log_size="2MiB"),
        lab.receiver("b", credentials=b),
        lab.receiver("c", credentials=c),
    )
    with Link(bad.address) as link:
        running = ship(lab, good, link.url, True, a)
        store.wait(fill(store, 0, 10), copies=2, timeout=20)
        link.slow(1)
        position = go_on(store, lambda: state_of(store, link.url) == "needs-snapshot")
        store.wait(position, copies=1, timeout=20)
        link.flow()
        store.wait(position, copies=2, timeout=60)
        running.stop()
    both_are_whole(lab, store, good, bad)


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
def test_one_of_another_ca_is_refused_until_it_has_the_right_certificate(
    lab: Lab, tmp_path: Path, required: bool
) -> None:
    authority, other = Authority.made(tmp_path / "ca"), Authority.made(tmp_path / "other", "another CA")
    files, right = other.host("c"), authority.host("c")
    store = lab.create(log_size="2MiB")
    good = lab.receiver("b", credentials=authority.host("b").load())
    bad = lab.receiver("c", credentials=files.load())
    url = f"tcp://{join(*bad.address)}"
    running = ship(lab, good, url, required, authority.host("a").load())
    store.wait(fill(store, 0, 10), copies=1, timeout=20)
    until(lambda: state_of(store, url) == "refused", "it is refused")
    dropped = (lambda: state_of(store, url) == "needs-snapshot") if required else (lambda: True)
    position = go_on(store, dropped)
    store.wait(position, copies=1, timeout=20)
    assert not bad.status()["has_store"]
    for mine, theirs in zip(
        (files.tls_ca, files.tls_key, files.tls_cert),
        (right.tls_ca, right.tls_key, right.tls_cert),
        strict=True,
    ):
        assert mine is not None
        assert theirs is not None
        shutil.copy(theirs, mine)
    store.wait(position, copies=2, timeout=60)
    running.stop()
    both_are_whole(lab, store, good, bad)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system that has no room for a store."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
def test_one_whose_disk_is_full_comes_when_there_is_room(lab: Lab, small: Path, required: bool) -> None:
    store, good = lab.create(log_size="2MiB"), lab.receiver("b")
    bad = lab.receiver("c", store=str(small / "c.sus"))
    url = f"tcp://{join(*bad.address)}"
    running = ship(lab, good, url, required)
    store.wait(fill(store, 0, 10), copies=1, timeout=20)
    until(lambda: any("No space left" in line for line in running.said), "it says that it is full")
    dropped = (lambda: state_of(store, url) == "needs-snapshot") if required else (lambda: True)
    position = go_on(store, dropped)
    store.wait(position, copies=1, timeout=20)
    subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
    store.wait(position, copies=2, timeout=60)
    running.stop()
    both_are_whole(lab, store, good, bad)


def test_a_link_slower_than_the_commits_is_left_alone_longer_each_time(lab: Lab) -> None:
    """Not one snapshot after the other for ever: and what it costs the application is bounded."""
    store, good, bad = lab.create(log_size="2MiB"), lab.receiver("b"), lab.receiver("c")
    with Link(bad.address) as link:
        link.slow(150_000)  # a snapshot of what is written here would take seconds, a log's length ten
        options = {"link": replace(LINK, overrun_first_s=0.2), "stall_s": STALL_S}
        running = lab.ship(good, link.url, **options)
        until(lambda: any("gets a snapshot" in line for line in running.said), "the first snapshot begins")
        position = go_on(store, lambda: sum("cannot keep up" in line for line in running.said) >= 2)
        store.wait(position, copies=1, timeout=20)
        link.flow()
        store.wait(position, copies=2, timeout=60)
        running.stop()
    both_are_whole(lab, store, good, bad)


def test_the_pauses_between_snapshots_that_come_to_nothing() -> None:
    overruns, now, pauses = Overruns(1.0, 60.0), 0.0, []
    for _ in range(8):
        overruns.begins(now)
        now += 3.0
        pauses.append(overruns.ended(now, overrun=True, caught_up=False))
        now += pauses[-1]
    assert pauses == [0.0, 3.0, 6.0, 12.0, 24.0, 48.0, 60.0, 60.0]
    # The rest, a link that was cut, is no overrun; and one that has caught up begins again.
    assert overruns.ended(now, overrun=False, caught_up=False) == 0.0
    assert overruns.in_a_row == 8
    assert overruns.ended(now, overrun=True, caught_up=True) == 0.0
    assert overruns.in_a_row == 1
    overruns.begins(now)
    assert overruns.ended(now, overrun=True, caught_up=False) == 1.0
