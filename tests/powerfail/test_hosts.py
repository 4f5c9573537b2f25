"""The simulated hosts themselves: what a power cut is, and that nothing of them is left behind."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.powerfail.hosts import Site, allowed, pids_in
from tests.powerfail.rack import available, until

pytestmark = [
    pytest.mark.skipif(not allowed(), reason="network namespaces need root, ip and tc"),
    pytest.mark.skipif(not available(), reason="nut-server is not installed: scripts/setup-debian.sh test"),
]


def test_a_power_cut_ends_everything_and_the_standby_takes_over(tmp_path: Path) -> None:
    with Site(tmp_path, fed="", app=("--cell", "512")) as site:
        a, b = site.begin()
        assert len(pids_in(a.space)) == 3  # supervisor, command, shipper
        cut_ns = a.cut()
        assert not pids_in(a.space)
        assert not list(a.memory.iterdir())
        until(lambda: b.said("commit"), lambda: f"b goes on\n{b.output()}")
        (start,) = b.said("start")
        assert start["wrong"] == ""
        assert start["n"] <= a.said("commit")[-1]["n"] + 1
        assert all(each["ns"] <= cut_ns + 1_000_000_000 for each in a.said("commit"))
        # Power is back: a has lost its memory, and gets all of it from b.
        a.power_on().start().becomes("standby")
        site.replicated(b, a)
        namespace, bridge = a.space, site.network.tag
    assert not os.path.exists(f"/run/netns/{namespace}")
    assert not os.path.exists(f"/sys/class/net/{bridge}")
    assert not os.path.ismount(a.memory)


def test_what_a_killed_process_had_in_its_socket_does_not_leave_the_host(tmp_path: Path) -> None:
    """The kernel goes on sending for a process that was killed; a host without power does not."""
    with Site(tmp_path, fed="") as site:
        a = site[0]
        a.throttle(100_000)
        pour = "import socket, sys; s = socket.create_connection((sys.argv[1], 9)); s.sendall(bytes(1 << 20))"
        with socket.create_server((site.network.address, 0)) as server:
            port = server.getsockname()[1]
            argv = ["ip", "netns", "exec", a.space, "python3", "-c", pour.replace(", 9)", f", {port})")]
            with subprocess.Popen([*argv, site.network.address]):
                near, _ = server.accept()
                with near:
                    near.settimeout(20)
                    assert near.recv(1000)
                    a.cut()
                    near.settimeout(0.5)
                    assert _until_silence(near) < 1 << 19


def _until_silence(near: socket.socket) -> int:
    """Bytes that still come, until none has come for the time-out."""
    got = 0
    while True:
        try:
            data = near.recv(1 << 20)
        except TimeoutError:
            return got
        assert data, "the connection was closed in good order"
        got += len(data)
