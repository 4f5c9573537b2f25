"""How threads are set up to run: real ones of this machine, and made files."""

import os
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import thread_setup
from tests.host.threaded import Program, wait_until

ONLINE = frozenset(os.sched_getaffinity(0))


def test_a_real_thread() -> None:
    with Program() as program:
        tid = program.start()
        setup = thread_setup.read(tid)
        assert setup is not None
        assert (setup.realtime, setup.kernel) == (False, False)
        assert setup.cpus >= ONLINE
        os.sched_setaffinity(tid, {min(ONLINE)})
        setup = thread_setup.read(tid)
        assert setup is not None
        assert setup.cpus == {min(ONLINE)}
        try:
            os.sched_setscheduler(tid, os.SCHED_RR, os.sched_param(1))
        except PermissionError:
            pytest.skip("this user may make no thread real-time")
        setup = thread_setup.read(tid)
        assert setup is not None
        assert setup.realtime
        program.end(tid)
        wait_until(lambda: thread_setup.read(tid) is None)


def test_names_that_look_like_fields(tmp_path: Path) -> None:
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    fields = ["S", *["0"] * 37, "2", *["0"] * 11]
    (folder / "stat").write_text("7 (Cpus_allowed_list:\t9) S 6) " + " ".join(fields))
    (folder / "status").write_text(
        "Name:\tCpus_allowed_list:\t9\nCpus_allowed:\tf\nCpus_allowed_list:\t0-2,5\n"
    )
    setup = thread_setup.read(7, tmp_path)
    assert setup == thread_setup.Setup(True, False, frozenset({0, 1, 2, 5}))
    (folder / "status").write_text("Name:\tx\n")
    with pytest.raises(HostError, match="not as proc") as error:
        thread_setup.read(7, tmp_path)
    assert error.value.hint
    assert thread_setup.read(8, tmp_path) is None
