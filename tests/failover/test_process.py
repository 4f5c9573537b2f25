"""Children, identities, and a lease store that hangs."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sustain.clock import SystemClock
from sustain.errors import LeaseError
from sustain.failover.lease.worker import LeaseWorker
from sustain.failover.process import Child
from sustain.failover.types import ChildState
from sustain.host.processes import Identity, alive, identify, kill, start_ticks, wait_gone
from sustain.testing import FakeClock, MemoryLease, MemoryLeaseStore
from tests.failover.conftest import until

FAR_NS = 1 << 62


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_child_is_asked_first_and_killed_later(tmp_path: Path) -> None:
    child, ready, asked = Child(SystemClock()), tmp_path / "ready", tmp_path / "asked"
    code = f"import signal,pathlib,time; signal.signal(15, lambda *_: pathlib.Path({str(asked)!r}).touch())\n"
    code += f"pathlib.Path({str(ready)!r}).touch()\nwhile True: time.sleep(60)"
    child.start(python(code), os.environ)
    until(ready.exists, "it is ready")
    child.stop(FAR_NS)
    until(asked.exists, "it was asked")
    assert child.view().running
    child.stop(0)
    until(lambda: child.view().state is ChildState.EXITED, "it is killed")
    assert child.view().status == -signal.SIGKILL
    assert child.view().asked


def test_a_child_that_obeys_ends_itself(tmp_path: Path) -> None:
    child, ready = Child(SystemClock()), tmp_path / "ready"
    code = "import signal,sys,pathlib,threading; signal.signal(15, lambda *_: sys.exit(7))\n"
    code += f"pathlib.Path({str(ready)!r}).touch()\nthreading.Event().wait(60)"
    child.start(python(code), os.environ)
    until(ready.exists, "it is ready")
    assert child.identity == identify(child.identity.pid if child.identity else 0)
    child.stop(FAR_NS)
    child.stop(FAR_NS)
    until(lambda: not child.view().running, "it ends")
    assert (child.view().status, child.view().failed) == (7, False)


def test_what_a_child_leaves_behind_is_killed_with_it(tmp_path: Path) -> None:
    child, note = Child(SystemClock()), tmp_path / "pid"
    code = "import subprocess,sys,os,pathlib\n"
    code += "grand = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    code += f"pathlib.Path({str(note)!r}).write_text(str(grand.pid)); os._exit(5)"
    child.start(python(code), os.environ)
    until(lambda: not child.view().running, "it ends")
    grand = int(note.read_text())
    assert (child.view().status, child.view().failed) == (5, True)
    until(lambda: start_ticks(grand) is None, "its child is killed, too")


def test_a_program_that_cannot_be_started_counts_as_failed() -> None:
    child = Child(SystemClock())
    with pytest.raises(OSError, match="nowhere"):
        child.start(["/nowhere/at/all"], os.environ)
    assert (child.view().status, child.view().failed) == (127, True)


def test_only_the_very_process_is_ever_killed() -> None:
    process = subprocess.Popen(python("import time; time.sleep(600)"))
    try:
        who = identify(process.pid)
        assert who is not None
        recycled = Identity(who.pid, who.start_ticks - 1)  # as if the pid had been another's before
        assert not kill(recycled)
        assert not alive(recycled)
        assert wait_gone(recycled, 0)
        assert alive(who)
        assert not wait_gone(who, 0)
        assert not kill(Identity(0, 0))
        assert not kill(Identity(1, start_ticks(1) or 0)), "never the first process"
        mine = identify(os.getpid())
        assert mine is not None
        assert not kill(mine)
        assert kill(who)
        assert wait_gone(who, 30)
    finally:
        process.kill()
        process.wait()
    assert not kill(who)
    assert start_ticks(who.pid) is None


def test_names_with_parentheses_do_not_confuse(tmp_path: Path) -> None:
    stat = tmp_path / "proc/77"
    stat.mkdir(parents=True)
    fields = ["S", *["0"] * 18, "4242", "0"]
    (stat / "stat").write_text(f"77 (a) b) {' '.join(fields)}\n")
    assert start_ticks(77, str(tmp_path)) == 4242
    assert start_ticks(78, str(tmp_path)) is None


def test_a_lease_store_that_hangs_blocks_nobody() -> None:
    """The worker's caller goes on at once, and sees that a change is under way."""
    clock, shared = FakeClock(), MemoryLeaseStore()
    lease = MemoryLease(shared, "a1", clock, 1.0)
    hangs, goes_on = threading.Event(), threading.Event()
    woken = threading.Event()
    worker = LeaseWorker(lease, clock, "a", "a1", woken.set)
    worker.poll_s = 0.005
    worker.start()
    until(lambda: worker.status()[0].view, "the lease is read")
    view = worker.status()[0].view
    assert view is not None
    worker.acquire(view, 1.0, 1)
    until(lambda: worker.status()[0].grant, "it is taken")
    grant = worker.status()[0].grant
    assert grant is not None

    def hang(what: str) -> None:
        hangs.set()
        assert goes_on.wait(60)
        raise LeaseError(f"cannot {what}")

    lease.fault = hang
    worker.renew(grant, "", None)
    assert hangs.wait(30)
    assert worker.status() == (worker.status()[0], True)
    assert not worker.stop(0.01)
    lease.fault = None
    woken.clear()
    goes_on.set()
    assert woken.wait(30)
    until(lambda: not worker.status()[1], "the change has ended")
    assert worker.stop(30)


def test_the_worker_learns_that_its_lease_is_anothers() -> None:
    clock, shared = FakeClock(), MemoryLeaseStore()
    a, b = (MemoryLease(shared, name, clock, 1.0) for name in ("a1", "b1"))
    worker = LeaseWorker(a, clock, "a", "a1", lambda: None)
    worker.poll_s = 0.005
    worker.start()
    try:
        view = until(lambda: worker.status()[0].view, "the lease is read")
        worker.acquire(view, 1.0, 1)
        grant = until(lambda: worker.status()[0].grant, "it is taken")
        b.read()
        clock.advance(2)
        assert b.acquire(b.read(), "b", 1.0, 1) is not None
        worker.renew(grant, "", None)
        lost = until(lambda: worker.status()[0].lost, "it is lost")
        assert lost == "b has the lease now, epoch 3"
        worker.forget()
        assert worker.status()[0].grant is None
        assert shared.record.state.owned
    finally:
        assert worker.stop(30)


def test_a_lease_that_was_given_up_is_not_held_again_by_a_renewal_that_comes_late() -> None:
    clock, shared = FakeClock(), MemoryLeaseStore()
    lease = MemoryLease(shared, "a1", clock, 1.0)
    hangs, goes_on = threading.Event(), threading.Event()
    worker = LeaseWorker(lease, clock, "a", "a1", lambda: None)
    worker.poll_s = 0.005
    worker.start()
    try:
        view = until(lambda: worker.status()[0].view, "the lease is read")
        worker.acquire(view, 1.0, 1)
        grant = until(lambda: worker.status()[0].grant, "it is taken")

        def hang(_: str) -> None:
            hangs.set()
            assert goes_on.wait(60)

        lease.fault = hang
        worker.renew(grant, "", None)
        assert hangs.wait(30)
        worker.forget()  # the deadline has passed
        goes_on.set()
        until(lambda: not worker.status()[1], "the renewal was answered")
        assert shared.record.counter == 2
        assert worker.status()[0].grant is None
    finally:
        goes_on.set()
        assert worker.stop(30)
