"""`sustain packages run`, whole, on a kernel with two packages: groups are packed, spread under load, and put back,
after SIGTERM and after SIGKILL. That emptying a package saves is told by the operator, since an emulator has no watts
to measure; everything else is real. Of a cgroup the processors that are in effect are compared: the kernel lets nobody
empty a list again while threads are in the cgroup.
"""

from pathlib import Path

import pytest

from tests.lab import two_sockets, vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

PROGRAM = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from sustain.host import firmware

state = Path("/dev/shm/state")
state.mkdir()
told = [dict(package=each, state="pc6", independence="independent", how="told", parked_w=25.0) for each in (0, 1)]
known = dict(title="", findings=told, verdicts=[])
(state / "packages-findings.json").write_text(
    json.dumps(dict(packages_findings=1, hosts={firmware.identify().key: known}))
)
config = Path("/dev/shm/agent.toml")
box = Path("/sys/fs/cgroup/box")
box.mkdir()
waiting = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
boxed = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
(box / "cgroup.procs").write_text(str(boxed.pid))
config.write_text(f'''
[agent]
listen = ""
state_dir = "{state}"
[packages]
period = "2s"
[[packages.groups]]
name = "box"
cgroup = "box"
[[packages.groups]]
name = "one"
pid = {waiting.pid}
[packages.policy]
average = "1s"
peak = "2s"
pack_after = "2s"
spread_after = "1s"
high = 0.95
high_leave = 0.9
headroom = 0.9
pressure_limit = 0.6
most_slowdown = 0.9
''')


def now():
    return (box / "cpuset.cpus.effective").read_text().strip(), sorted(os.sched_getaffinity(waiting.pid))


def until(done, process, what, limit_s=80):
    end_s = time.monotonic() + limit_s
    while not done():
        if process.poll() is not None or time.monotonic() > end_s:
            process.kill()
            raise AssertionError(f"{what}: {now()}; " + "; ".join(process.communicate()))
        time.sleep(0.1)
    print(what, "any more:", f"{time.monotonic():.0f} s", now(), flush=True)


def started():
    words = [sys.executable, "-m", "sustain.cli", "packages", "run", "--config", str(config)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def packed():
    return now()[0] in ("0-1", "2-3") and now()[1] in ([0, 1], [2, 3])


found = dict(before=now())
process = started()
until(packed, process, "not packed")
found["packed"] = now()
busy = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"], preexec_fn=lambda: (
    (box / "cgroup.procs").write_text(str(os.getpid())))) for _ in range(4)]
# Who is busy; one that uses nothing is in nobody's way where it is.
until(lambda: now()[0] == found["before"][0], process, "not spread")
for each in busy:
    each.kill()
process.send_signal(signal.SIGTERM)
out, error = process.communicate(timeout=60)
found.update(spread=True, status=process.returncode, after=now(), out=out, error=error)

process = started()
until(packed, process, "not packed again")
process.kill()
process.communicate()
found["killed"] = now()
done = subprocess.run(
    [sys.executable, "-m", "sustain.cli", "agent", "restore", "--config", str(config), "--json"],
    capture_output=True, text=True,
)
found.update(restored=now(), undone=json.loads(done.stdout)["undone"])
answer(found)
"""


def test_packed_spread_and_put_back(kernel: vm.Kernel, tmp_path: Path) -> None:
    found = two_sockets.run(kernel, tmp_path, PROGRAM, limit_s=800)
    before = found["before"]
    assert before[1] == [0, 1, 2, 3]
    assert found["packed"] != before
    assert found["status"] == 0, found["error"]
    assert found["spread"]
    assert found["after"] == before
    assert found["killed"] != before
    assert found["restored"] == before
    assert {each["outcome"] for each in found["undone"]} == {"restored"}
    assert len(found["undone"]) >= 2  # memory may be among it
