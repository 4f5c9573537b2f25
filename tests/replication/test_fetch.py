"""A store is brought here from a peer: whole, or while it is used already."""

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import sustain
from sustain._native import (
    Control,
    Fetcher,
    PageSource,
    Replica,
    create_arriving,
    on_demand_available,
)
from sustain.cli import status
from sustain.replication.credentials import NO_CREDENTIALS
from sustain.replication.fetch import begin
from tests.replication.arriving import PAGE, Hosts, flip, image
from tests.replication.conftest import Lab, contents, fill, until

needs_faults = pytest.mark.skipif(
    not on_demand_available(), reason="this process may not serve page faults (userfaultfd)"
)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.end()


def make(hosts: Hosts, name: str = "a", cells: int = 1 << 18, size: str = "8MiB", keys: int = 500) -> None:
    """A closed store with an array of 0, 1, 2, …, a map and a file."""
    with sustain.create(str(hosts.path(name)), size=size, log_size="4MiB", durability="memory") as store:
        array = store.array("cells", shape=(cells,), dtype="i8")
        for first in range(0, cells, 1 << 17):
            array[first : first + (1 << 17)] = np.arange(first, min(first + (1 << 17), cells))
            store.commit()
        fill(store, 0, keys)
        store.file("blob").pwrite(b"sustain" * 3000, 0)
        store.commit()
        del array


def test_a_whole_store_appears_when_it_is_whole(hosts: Hosts) -> None:
    make(hosts)
    _, url = hosts.source()
    process = hosts.restore(url, on_demand=False)
    assert process.process.stdout is not None
    report = json.loads(process.process.stdout.read())
    assert process.wait() == 0, process.said
    assert report["pages"] == report["fetched"] == (8 << 20) // 4096
    assert report["on_demand"] is False
    assert image(hosts.path("b")) == image(hosts.path("a"))
    assert sorted(each.name for each in hosts.directory.glob("b.sus*")) == ["b.sus"]
    with sustain.open(str(hosts.path("b")), verify="full") as store:
        assert store.info()["epoch"] == Control(str(hosts.path("a"))).superblock()["epoch"]
    # Never over something that is there.
    again = hosts.restore(url, on_demand=False)
    assert again.wait() == 2
    assert "there already" in again.said[-2]


@needs_faults
def test_everything_can_be_used_while_it_arrives(hosts: Hosts) -> None:
    make(hosts)
    before = image(hosts.path("a"))
    _, url = hosts.source()
    process = hosts.restore_asked_only(url)
    store = hosts.open("b")
    array = store.array("cells")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    numbers = np.random.default_rng(seed)
    model = np.arange(1 << 18)
    users = store.map("users")
    for turn in range(30):
        at = numbers.integers(0, 1 << 18, 20)
        assert (array[at] == model[at]).all()
        array[at] = turn
        key = b"%06d" % (turn * 7)
        assert users[key].endswith(str(turn * 7).encode())
        users[key] = b"turn %d" % turn
        store.file("blob").pwrite(b"%02d" % turn, turn * 600)
        if turn % 3 == 2:
            store.rollback()
            assert (array[at] == model[at]).all()
            assert users[key] != b"turn %d" % turn
        else:
            model[at] = turn
            store.commit()
    # A system call reads pages that no instruction of ours has touched.
    array[100_000:130_000].tofile(str(hosts.directory / "cells"))
    assert (np.fromfile(hosts.directory / "cells", dtype="i8") == model[100_000:130_000]).all()
    arrival = hosts.arrival()
    assert arrival is not None
    assert arrival["here"] < arrival["pages"] // 2, arrival
    assert image(hosts.path("a")) == before
    hosts.stream(process)
    assert process.wait() == 0, process.said
    until(lambda: not Control(str(hosts.path("b"))).superblock()["arriving"], "an ordinary store")
    assert not hosts.path("b").with_suffix(".sus.arriving").exists()
    assert (array == model).all()
    array[0] = -1
    store.commit()  # the application goes on, on its own view
    del array
    store.close()
    with sustain.open(str(hosts.path("b")), verify="full") as store:
        model[0] = -1
        assert (store.array("cells") == model).all()
        assert store.verify() == (8 << 20) // 4096


@needs_faults
def test_what_is_fetched_before_the_first_commit_does_not_grow_with_the_store(hosts: Hosts) -> None:
    asked = []
    for name, cells, size in (("small", 6 << 20, "64MiB"), ("large", 120 << 20, "1GiB")):
        make(hosts, name, cells=cells, size=size)
        source, url = hosts.source(name)
        fetch = hosts.restore_asked_only(url, f"new-{name}")
        store = hosts.open(f"new-{name}")
        store.array("cells")[cells // 2] = -1
        store.map("users")[b"first"] = b"commit"
        store.commit()
        asked.append(hosts.asked(f"new-{name}"))
        store.close()
        fetch.kill()
        source.kill()
        for each in hosts.directory.glob(f"*{name}.sus*"):
            each.unlink()
    print("pages asked for before the first commit", asked)
    assert asked[0] < 40
    # Looking for free pages reads the allocation bitmap: one page for each 128 MiB, which a stream brings first.
    bitmap_pages = (1 << 30) // (128 << 20)
    assert asked[1] - asked[0] <= bitmap_pages + 6


@needs_faults
def test_it_ships_to_its_source_meanwhile(hosts: Hosts, lab: Lab) -> None:
    make(hosts)
    source, url = hosts.source()
    process = hosts.restore_asked_only(url)
    store = hosts.open("b")
    shipper = lab.ship(url, name="b")
    array = store.array("cells")
    for turn in range(10):
        array[turn * 20_000 : turn * 20_000 + 9000] = -turn
        store.map("users")[b"turn"] = b"%d" % turn
        store.commit()
    store.wait(store.commit(), copies=1, timeout=20)
    # The source's pages have changed: what is still missing comes from there all the same.
    assert (array[9 * 20_000 : 9 * 20_000 + 9000] == -9).all()
    hosts.stream(process)
    assert process.wait() == 0, process.said
    model = np.arange(1 << 18)
    for turn in range(10):
        model[turn * 20_000 : turn * 20_000 + 9000] = -turn
    assert (array == model).all()
    array[5] = 5
    store.wait(store.commit(), copies=1, timeout=20)
    shipper.stop()
    del array
    store.close()
    source.process.send_signal(signal.SIGTERM)
    assert source.wait() == 0
    assert image(hosts.path("a")) == image(hosts.path("b"))


@needs_faults
def test_nobody_else_changes_what_is_fetched_from(hosts: Hosts, lab: Lab) -> None:
    make(hosts)
    hosts.path("old").write_bytes(hosts.path("a").read_bytes())  # the former primary's copy
    _, url = hosts.source()
    hosts.restore_asked_only(url)
    store = hosts.open("b")
    assert len(store.map("users")) == 500
    old = hosts.open("old")
    fill(old, 900, 5)
    shipper = lab.ship(url, name="old")
    # The fetch has opened an epoch, which the source has heard of.
    until(lambda: any("epoch" in line for line in shipper.said), "the former primary is refused")
    assert (store.array("cells") == np.arange(1 << 18)).all()
    assert b"000900" not in contents(store)


@needs_faults
def test_a_source_that_moved_on_is_refused(hosts: Hosts, lab: Lab) -> None:
    make(hosts)
    source, url = hosts.source()
    fetch = hosts.restore_asked_only(url, limit_s=3.0)
    store = hosts.open("b")
    assert store.map("users")[b"000001"]
    fetch.kill()
    source.kill()
    # Somebody writes to the source's store: its pages are no longer those of the base.
    with sustain.open(str(hosts.path("a"))) as other:
        fill(other, 1000, 50)
    _, url = hosts.source()
    fetch = hosts.restore(url)
    assert fetch.wait() == 1
    assert any("not the one here" in line or "not of this store" in line for line in fetch.said), fetch.said
    users = store.map("users")
    with pytest.raises(sustain.StoreArriving, match="has not arrived"):
        dict(users.items())


@needs_faults
def test_a_damaged_page_is_not_believed(hosts: Hosts) -> None:
    make(hosts)
    good = hosts.path("a").read_bytes()
    hosts.path("good").write_bytes(good)
    # The receiver must not see it before: it is asked for later, by a fetch.
    _, url = hosts.source()
    damaged = (8 << 20) // 4096 // 2
    flip(hosts.path("a"), 300, 4 << 20, 8 << 20)
    flip(hosts.path("a"), damaged, 4 << 20, 8 << 20)
    fetch = hosts.restore(url, "b", "--limit", "5s")
    assert fetch.wait() == 1
    assert any("does not match its sum" in line for line in fetch.said), fetch.said
    program = "import sustain, sys; sustain.open(sys.argv[1]).array('cells').sum(); print('not so')"
    application = hosts.run(program, hosts.path("b"))
    assert application.wait() != 0
    assert any("does not match its sum" in line for line in application.said), application.said
    # Another peer has the same copy, undamaged.
    _, other = hosts.source("good")
    fetch = hosts.restore(url, "b", "--also", other)
    assert fetch.wait() == 0, fetch.said
    with sustain.open(str(hosts.path("b")), verify="full") as store:
        assert (store.array("cells") == np.arange(1 << 18)).all()


@needs_faults
def test_openers_that_need_all_say_so(hosts: Hosts, lab: Lab) -> None:
    make(hosts)
    _, url = hosts.source()
    fetch = hosts.restore_asked_only(url)
    path = str(hosts.path("b"))
    with pytest.raises(sustain.StoreArriving, match="reader"):
        sustain.open(path, readonly=True)
    with pytest.raises(sustain.StoreArriving, match="cannot receive yet"):
        lab.receiver("b")
    store = hosts.open("b")
    told = status.collect(path)
    assert (told["arriving"]["state"], told["arriving"]["pages"]) == ("arriving", (8 << 20) // PAGE)
    assert "pages are here" in status.describe(told)
    with pytest.raises(sustain.StoreArriving, match="nothing is verified"):
        store.verify()
    # A standby without a copy would need a snapshot; it gets one when all is here.
    receiver = lab.receiver("c")
    shipper = lab.ship(receiver, name="b")
    until(lambda: any("not arrived completely" in line for line in shipper.said), "the shipper says why not")
    store.map("users")[b"new"] = b"1"
    position = store.commit()
    hosts.stream(fetch)
    assert fetch.wait() == 0, fetch.said
    store.wait(position, copies=1, timeout=30)
    shipper.stop()
    receiver.stop()
    with sustain.open(lab.path("c"), readonly=True) as copy:
        assert copy.map("users")[b"new"] == b"1"
        assert (copy.array("cells") == np.arange(1 << 18)).all()


def test_a_peer_that_is_not_so_far_yet_is_waited_for_within_the_limit(hosts: Hosts) -> None:
    make(hosts)
    _, url = hosts.source()
    process = hosts.restore(url, "b", "--at-least", str(1 << 40), "--limit", "300ms", on_demand=False)
    assert process.wait() == 1
    assert any("bytes are missing" in line for line in process.said), process.said
    assert not list(hosts.directory.glob("b.sus*"))


def test_only_pages_that_match_their_sums_are_taken(hosts: Hosts) -> None:
    make(hosts)
    replica = Replica(str(hosts.path("a")))
    block, end = replica.superblock(), (replica.end, replica.end_seq, replica.end_chain)
    replica.close()
    path = str(hosts.path("b"))
    begins = (block["store_uuid"], block["epoch"], block["history"], *end, 1.0)
    create_arriving(path, block["image_size"], block["log_size"], "memory", *begins)
    source, fetcher = PageSource(str(hosts.path("a"))), Fetcher(path)
    good = source.read(0, 4)
    bad = bytearray(good)
    bad[-1] ^= 1
    with pytest.raises(sustain.StoreCorrupt, match="page 3 does not match its sum"):
        fetcher.put(0, 4, bytes(bad))
    for wrong in (good[:-1], good + bytes(8), b"", good[:40]):
        with pytest.raises(sustain.StoreCorrupt):
            fetcher.put(0, 4, wrong)
    with pytest.raises(sustain.StoreCorrupt):
        fetcher.put(block["image_size"] // PAGE - 1, 4, good)
    assert fetcher.status()["here"] == 0
    assert fetcher.next_missing(0, 8) == (0, 8)
    assert fetcher.put(0, 4, good) == 4
    # Pages that are here are not looked at any more: they may hold commits.
    assert fetcher.put(0, 4, bytes(bad)) == 0
    assert fetcher.next_missing(0, 8) == (4, 8)
    with pytest.raises(sustain.StoreBusy):
        Fetcher(path)
    with pytest.raises(sustain.StoreError, match="page 4 is not here"):
        fetcher.complete()
    fetcher.close()


LOST = """
import sustain, sys, signal
import numpy as np
store = sustain.open(sys.argv[1])
users, cells = store.map("users"), store.array("cells")
users[b"here"] = b"1"
cells[7] = 7
store.commit()
print("committed", flush=True)
sys.stdin.readline()
kind = sys.argv[2]
if kind == "map":
    try:
        dict(users.items())
    except sustain.StoreArriving as error:
        print(error, error.hint, flush=True)
    try:
        for number in range(500):
            users[b"%06d" % number] = b"half"
    except sustain.StoreArriving:
        pass
    try:
        store.commit()
    except sustain.StoreArriving as error:
        print(error, flush=True)
    store.rollback()
    cells[8] = 8
    store.commit()
    store.close()
    print("went on", flush=True)
else:
    print(cells.sum(), "is not so", flush=True)
"""


@needs_faults
@pytest.mark.parametrize("kind", ["map", "array"])
def test_a_source_that_is_lost_is_reported_when_the_limit_passes(hosts: Hosts, kind: str) -> None:
    make(hosts, keys=3000)
    before = hosts.path("a").read_bytes()
    source, url = hosts.source()
    fetch = hosts.restore_asked_only(url, limit_s=2.0)
    application = hosts.run(LOST, hosts.path("b"), kind)
    stdin, stdout = application.process.stdin, application.process.stdout
    assert stdin is not None
    assert stdout is not None
    assert stdout.readline() == "committed\n"
    source.kill()
    stdin.write("go on\n")
    stdin.flush()
    out = stdout.read()
    if kind == "map":
        assert application.wait() == 0, application.said
        assert "has not arrived" in out
        assert "pages are missing" in out
        assert "has to be rolled back" in out
        assert "went on" in out
    else:
        assert application.wait() == -signal.SIGBUS, application.said
        assert not out
        assert any("has not arrived" in line and "SIGBUS" in line for line in application.said)
    fetch.kill()
    # Nobody fetches: so it is said, too.
    with sustain.open(str(hosts.path("b"))) as store:
        users = store.map("users")
        with pytest.raises(sustain.StoreArriving, match="nobody fetches"):
            dict(users.items())
    # Another peer with the same copy: everything is there, also what was committed here.
    hosts.path("c").write_bytes(before)
    _, other = hosts.source("c")
    fetch = hosts.restore(other)
    assert fetch.wait() == 0, fetch.said
    with sustain.open(str(hosts.path("b")), verify="full") as store:
        model = np.arange(1 << 18)
        if kind == "map":
            model[8] = 8
        assert (store.array("cells") == model).all()
        assert len(store.map("users")) == 3001


@needs_faults
def test_a_fetch_gives_up_with_a_report(hosts: Hosts) -> None:
    make(hosts)
    source, url = hosts.source()
    fetch = hosts.restore_asked_only(url)
    fetch.kill()
    source.kill()
    fetch = hosts.restore(url, "b", "--limit", "500ms")
    assert fetch.wait() == 1
    text = "\n".join(fetch.said)
    assert "2048 of 2048 pages are missing (0…2047)" in text
    assert "cannot be reached" in text
    assert "goes on where it stopped" in text


@needs_faults
def test_a_forked_child_does_not_see_zeros(hosts: Hosts) -> None:
    make(hosts)
    _, url = hosts.source()
    hosts.restore_asked_only(url)
    store = hosts.open("b")
    cells = store.array("cells")
    assert cells[1000] == 1000
    child = os.fork()
    if child == 0:
        os._exit(int(cells[200_000] == 0))  # ends with SIGSEGV: there is no such memory here
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGSEGV
    assert cells[200_000] == 200_000


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_where_faults_may_not_be_served_opening_waits_for_all(hosts: Hosts) -> None:
    make(hosts)
    _, url = hosts.source()
    fetch = hosts.restore_asked_only(url)
    program = """
import os, sys
import numpy as np  # what is imported later cannot be read by that user
import sustain
from sustain._native import on_demand_available
directory = os.path.dirname(sys.argv[1])
for each in os.listdir(directory):
    os.chown(os.path.join(directory, each), 65534, 65534)
os.chown(directory, 65534, 65534)
while os.path.dirname(directory) != directory:
    os.chmod(directory, 0o755)
    directory = os.path.dirname(directory)
    if directory == "/tmp":
        break
os.setgid(65534)
os.setuid(65534)
print(on_demand_available(), flush=True)
store = sustain.open(sys.argv[1])
print(store.array("cells").sum(), store.capture, flush=True)
store.commit()
store.close()
"""
    application = hosts.run(program, hosts.path("b"))
    stdout = application.process.stdout
    assert stdout is not None
    if stdout.readline() == "True\n":
        pytest.skip("every process may serve page faults here")
    hosts.stream(fetch)
    out = stdout.read()
    assert application.wait() == 0, application.said
    assert out.split()[0] == str(sum(range(1 << 18)))
    assert fetch.wait() == 0, fetch.said


@needs_faults
def test_a_claim_ends_an_older_primary_but_not_before_it_has_sent_all(hosts: Hosts, lab: Lab) -> None:
    make(hosts)
    hosts.path("old").write_bytes(hosts.path("a").read_bytes())
    _, url = hosts.source()
    old = hosts.open("old")
    shipper = lab.ship(url, name="old")
    position = fill(old, 2000, 20)
    old.wait(position, copies=1, timeout=20)
    # Without a claim: the copy changes.
    with pytest.raises(sustain.PeerRefused, match="connected"):
        begin(url, str(hosts.path("b")), NO_CREDENTIALS, limit_s=0.2)
    # With one, of a position that the old primary has still to send: it may go on.
    with pytest.raises(sustain.PeerRefused, match="bytes are missing"):
        begin(url, str(hosts.path("b")), NO_CREDENTIALS, epoch=7, at_least=position + 1, limit_s=0.2)
    position = fill(old, 3000, 20)
    old.wait(position, copies=1, timeout=20)
    begun = begin(url, str(hosts.path("b")), NO_CREDENTIALS, epoch=7, at_least=position)
    assert (begun.base, begun.epoch) == (position, 7)
    until(
        lambda: any("epoch" in line for line in shipper.said), "the old primary hears that its time is over"
    )
    fetch = hosts.restore(url)
    assert fetch.wait() == 0, fetch.said
    with sustain.open(str(hosts.path("b")), verify="full") as store:
        assert store.info()["history"][-1] == (7, position)
        assert contents(store) == contents(old)


@needs_faults
@pytest.mark.parametrize("capture", ["pagemap", "compare"])
def test_older_ways_to_find_changed_pages(hosts: Hosts, capture: str) -> None:
    make(hosts)
    _, url = hosts.source()
    fetch = hosts.restore_asked_only(url)
    store = hosts.open("b", capture=capture)
    array = store.array("cells")
    model = np.arange(1 << 18)
    for turn in range(5):
        array[turn * 50_000] = model[turn * 50_000] = -turn
        store.commit()
        array[turn * 50_000 + 1] = 77
        store.rollback()
    arrival = hosts.arrival()
    assert arrival is not None
    if capture == "pagemap":  # comparing everything needs everything
        assert arrival["here"] < 200
    hosts.stream(fetch)
    assert fetch.wait() == 0, fetch.said
    assert (array == model).all()


@needs_faults
def test_many_threads_wait_for_pages_at_once(hosts: Hosts) -> None:
    make(hosts)
    _, url = hosts.source()
    hosts.restore(url)
    program = """
import sys, threading
import numpy as np
import sustain
store = sustain.open(sys.argv[1])
cells, users = store.array("cells"), store.map("users")
wrong = []
def work(number):
    dice = np.random.default_rng(number)
    for turn in range(40):
        at = dice.integers(0, 1 << 18, 64)
        if turn % 4 == number % 4:
            block = int(at[0]) // 4096 * 4096
            if cells[block : block + 4096].sum() != sum(range(block, block + 4096)):
                wrong.append(block)
        elif not (cells[at] == at).all():
            wrong.append(at)
        if users[b"%06d" % (turn * 11 + number)][:1] != b"x":
            wrong.append(turn)
        with store.transaction():
            users[b"thread %d" % number] = b"%d" % turn
threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for each in threads: each.start()
for each in threads: each.join()
assert not wrong, wrong
del cells
store.close()
print("right")
"""
    application = hosts.run(program, hosts.path("b"))
    assert application.process.stdout is not None
    assert application.process.stdout.read() == "right\n", application.said
    assert application.wait() == 0
