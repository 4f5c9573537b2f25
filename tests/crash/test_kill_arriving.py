"""SIGKILL of the application and of the fetch of an arriving store, at random, and power losses on a disk.

What is found in the end is the source's store with a prefix of the commits made here, every one that returned
among them; and a bit that lies about what is durable is found out.
"""

import random
import signal
import threading
from pathlib import Path

import pytest

import sustain
from sustain._native import arrival_of, on_demand_available
from sustain.replication.credentials import NO_CREDENTIALS
from sustain.replication.fetch import begin
from tests.crash.arriving import Model, check, lose_power, make
from tests.crash.processes import Victim, rounds, seed

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(not on_demand_available(), reason="this process may not serve page faults"),
]


class Hosts:
    def __init__(self, folder: Path, durability: str) -> None:
        self.folder = folder
        self.source, self.new = folder / "a.sus", folder / "b.sus"
        make(self.source, durability)
        port = folder / "port"
        self.receiver = Victim(
            *("sustain.cli", "receive", "--store", self.source, "--listen", "127.0.0.1:0"),
            *("--port-file", port),
            log=folder / "receiver.log",
        )
        pause = threading.Event()
        while not port.exists():
            assert self.receiver.alive
            pause.wait(0.01)
        self.url = f"tcp://127.0.0.1:{port.read_text().strip()}"

    def writer(self) -> Victim:
        return Victim("tests.crash.arriving", "write", self.new, log=self.folder / "writer.log")

    def fetch(self) -> Victim:
        return Victim("tests.crash.arriving", "fetch", self.new, self.url, log=self.folder / "fetch.log")

    def begin(self, durability: str) -> None:
        for each in self.folder.glob("b.sus*"):
            each.unlink()
        begin(self.url, str(self.new), NO_CREDENTIALS, durability=durability)

    def close(self) -> None:
        self.receiver.kill()


def finished(path: Path) -> bool:
    return arrival_of(str(path)) is None


@pytest.mark.parametrize("durability", ["memory", "disk"])
@pytest.mark.timeout(3600)
def test_killed_while_it_arrives(tmp_path: Path, durability: str) -> None:
    chosen = seed()
    print(f"SUSTAIN_CRASH_SEED={chosen}")
    dice = random.Random(chosen)
    hosts = Hosts(tmp_path, durability)
    kills = losses = lost_pages = 0
    try:
        for _ in range(rounds(2)):
            hosts.begin(durability)
            model, acknowledged = Model(), 0
            while not finished(hosts.new):
                with hosts.fetch() as fetch, hosts.writer() as writer:
                    if dice.random() < 0.7:
                        writer.wait_for("open")
                        writer.wait_for("commit", writer.last["open"] + int(dice.expovariate(1 / 60)))
                    else:
                        threading.Event().wait(dice.uniform(0, 0.6))
                    order = [fetch, writer] if dice.random() < 0.5 else [writer, fetch]
                    stopped = dice.random() < 0.2
                    if stopped:
                        order[1].signal(signal.SIGSTOP)
                    order[0].kill()
                    if not stopped and dice.random() < 0.5:
                        threading.Event().wait(dice.uniform(0, 0.2))
                    said = writer.kill()
                    fetch.kill()
                kills += 1
                acknowledged = max(acknowledged, said.get("commit", 0))
                if durability == "disk" and dice.random() < 0.5:
                    losses += 1
                    lost_pages += lose_power(hosts.new)
            with sustain.open(hosts.new, verify="full") as store:
                n = check(store, model)
            assert acknowledged <= n <= acknowledged + 1, f"acknowledged {acknowledged}, found {n}"
    finally:
        hosts.close()
    print(f"{kills} kills, {losses} power losses, {lost_pages} pages fetched again")
    assert kills >= 4


def test_a_bit_that_lies_is_found_out(tmp_path: Path) -> None:
    """The checker above, with a broken subject: pages are called durable before they are."""
    hosts = Hosts(tmp_path, "disk")
    try:
        hosts.begin("disk")
        with hosts.fetch() as fetch, hosts.writer() as writer:
            writer.wait_for("commit", 5)
            fetch.kill()
            writer.kill()
        assert lose_power(hosts.new, bits_lie=True) > 0
        with hosts.fetch() as fetch, hosts.writer() as writer, pytest.raises(AssertionError, match="ended"):
            writer.wait_for("commit", 1_000_000)
        assert "does not match its sum" in (tmp_path / "writer.log").read_text()
    finally:
        hosts.close()
