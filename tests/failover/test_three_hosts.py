"""Three hosts with an etcd member each, on a network of their own, one of which is harmed again and again.

Hosts are network namespaces; peers prove themselves by certificates. The oracle is outside: what the client wrote down
when a commit was acknowledged as replicated. It must be there in whatever starts later, and at the end.

`SUSTAIN_THREE_HOSTS_S` is how long it goes on (600 for ten minutes), `SUSTAIN_SEED` makes the same choices again.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sustain
from tests.failover import etcd as real
from tests.failover.conftest import TTL_S, Cluster, Host, until
from tests.failover.test_run import nothing_acknowledged_is_lost, one_primary_at_a_time
from tests.powerfail import hosts as namespaces
from tests.powerfail.hosts import end_processes, set_link
from tests.replication.certificates import Authority

pytestmark = [
    pytest.mark.skipif(not real.available(), reason="no etcd (Debian: etcd-server)"),
    pytest.mark.skipif(not namespaces.allowed(), reason="needs root, for network namespaces"),
]

ONE_LAGS = "the host dies, of the others one lags"
LONG_S = float(os.environ.get("SUSTAIN_THREE_HOSTS_S", "60"))


class Site:
    """The hosts of `cluster`, their network and their etcd; `faults` are what can happen to one of them."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.cluster = cluster
        self.network = namespaces.Network()
        self.etcd = real.Etcd(directory, 3)
        self._links: dict[str, str] = {}
        self._spaces: dict[str, str] = {}
        self._options: dict[str, tuple[str, ...]] = {}
        authority = Authority.made(directory / "ca")
        for host, member in zip(cluster.hosts, self.etcd.members, strict=True):
            space, self._links[host.name], host.address = self.network.add(host.name)
            self._spaces[host.name] = space
            member.host = host.address
            host.prefix = member.prefix = ("ip", "netns", "exec", space)
            self._options[host.name] = tuple(authority.host(host.name, host.address).words())
        for host in cluster.hosts:
            host.lease_url = f"{self.etcd.url}/three"
        self.faults: dict[str, Callable[[Host], None]] = {
            "the host dies": self._dies,
            ONE_LAGS: self._dies_while_one_lags,
            "all of Sustain is killed": lambda host: host.signal_all(signal.SIGKILL),
            "the command is killed": lambda host: self._kill(host, "command"),
            "the shipper is killed": lambda host: self._kill(host, "shipper"),
            "the receiver is killed": lambda host: self._kill(host, "receiver"),
            "the host is cut off": lambda host: set_link(self._links[host.name], up=False),
            "the host stands still": self._stands_still,
            "its etcd is killed": lambda host: self._member(host).stop(),
            "its etcd stands still": lambda host: self._member(host).pause(),
        }

    def start(self) -> None:
        self.etcd.start()
        a, *others = self.cluster.hosts
        a.start("--wait", options=("--create", *self._options[a.name])).becomes("primary")
        for host in others:
            host.start("--wait", options=self._options[host.name])
        self.goes_on(after=0)

    def heal(self, host: Host) -> None:
        """Put right whatever was done to it."""
        set_link(self._links[host.name], up=True)
        member = self._member(host)
        assert member.process is not None
        if member.process.poll() is not None:
            member.start(self.etcd.layout)
        else:
            member.resume()
        if host.alive():
            host.signal_all(signal.SIGCONT)
        else:
            host.start("--wait", options=self._options[host.name])

    def goes_on(self, after: int) -> Host:
        """Wait until commits are acknowledged that began after `after` (ns), and all hold them. The primary."""

        def whole() -> Host | None:
            newest = self.cluster.all_said("acked")
            if not newest or newest[-1]["ns"] <= after:
                return None
            roles = {host.name: host.state().get("role") for host in self.cluster.hosts if host.alive()}
            ready = sorted(str(role) for role in roles.values()) == ["primary", "standby", "standby"]
            primary = next((host for host in self.cluster.hosts if roles.get(host.name) == "primary"), None)
            return primary if ready else None

        primary: Host = until(whole, lambda: f"it goes on\n{self.told()}")
        for host in self.cluster.hosts:
            if host is not primary:
                self.cluster.replicated(primary, host)
        return primary

    def told(self) -> str:
        return "\n".join(f"-- {host.name}\n{host.output()[-3000:]}" for host in self.cluster.hosts)

    def close(self) -> None:
        for space in self._spaces.values():
            end_processes(space)
        self.etcd.end()
        self.cluster.end()
        self.network.close()

    def _member(self, host: Host) -> real.Member:
        return self.etcd.members[self.cluster.hosts.index(host)]

    def _dies(self, host: Host) -> None:
        """Everything at once, and the network first: what a killed process had sent does not arrive."""
        set_link(self._links[host.name], up=False)
        end_processes(self._spaces[host.name])
        assert host.process is not None
        host.process.wait()
        process = self._member(host).process
        assert process is not None
        process.wait()

    def _dies_while_one_lags(self, host: Host) -> None:
        """Only one of the two others holds what was acknowledged last; the one that lags has its link again then."""
        lagging = next(
            each for each in self.cluster.hosts if each is not host and each.state().get("role") == "standby"
        )
        set_link(self._links[lagging.name], up=False)
        before = len(self.cluster.all_said("acked"))

        def enough() -> Host | None:
            # By one of the two that are left: not by `host`, if etcd was led from where the link is down.
            acked = self.cluster.all_said("acked")
            name = acked[-1]["host"]
            return (
                next(each for each in self.cluster.hosts if each.name == name)
                if len(acked) > before + 20
                else None
            )

        primary: Host = until(enough, lambda: f"the other one is enough\n{self.told()}")
        self._dies(primary)
        set_link(self._links[lagging.name], up=True)

    def _kill(self, host: Host, role: str) -> None:
        for pid in host.pids(role):
            os.kill(pid, signal.SIGKILL)

    def _stands_still(self, host: Host) -> None:
        self._member(host).pause()
        host.signal_all(signal.SIGSTOP)


@pytest.fixture
def site(tmp_path: Path, clusters: Callable[..., Cluster]) -> Iterator[Site]:
    made = Site(tmp_path, clusters(3))
    try:
        yield made
    finally:
        made.close()


@pytest.mark.timeout(LONG_S + 600)
def test_what_was_acknowledged_as_replicated_is_there_whichever_host_is_harmed(site: Site) -> None:
    seed = int(os.environ.get("SUSTAIN_SEED") or random.randrange(1 << 32))
    source = random.Random(seed)
    site.start()
    story = [f"seed {seed}"]
    left, until_s = list(site.faults), time.monotonic() + LONG_S
    primary = site.goes_on(after=0)
    try:
        while time.monotonic() < until_s:
            # The primary more than half of the time; every fault comes before one comes again.
            fault = left.pop(source.randrange(len(left)))
            most = fault == ONE_LAGS or source.random() < 0.5
            host = primary if most else source.choice(site.cluster.hosts)
            left = left or list(site.faults)
            story.append(f"{host.name} ({host.state().get('role')}): {fault}")
            site.faults[fault](host)
            # As long as it may take the others to notice, or not; by now something else may be primary.
            threading.Event().wait(source.uniform(0, 2 * TTL_S))
            for each in site.cluster.hosts:
                site.heal(each)
            primary = site.goes_on(after=time.clock_gettime_ns(time.CLOCK_BOOTTIME))
            nothing_acknowledged_is_lost(site.cluster)
            one_primary_at_a_time(site.cluster)
        acked = max(entry["n"] for entry in site.cluster.all_said("acked"))
        primary.signal_all(signal.SIGKILL)
        with sustain.open(primary.store, readonly=True) as store:
            assert int(store.map("counts")[b"n"]) >= acked
    except BaseException:
        print("\n".join(story))
        raise
    assert len(story) > 1 or LONG_S == 0
    print(f"{len(story) - 1} faults, {acked} acknowledged")
