"""SIGKILL and SIGSTOP of writer, shipper and receiver, at random and together.

After every round the primary's state is a prefix that holds every commit that returned, and the replica's is a
prefix of the primary's that holds every commit of which `wait` had said that it has a copy.
"""

import random
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

import sustain
from sustain import _native
from tests.crash.model import Model, check
from tests.crash.processes import LIMIT_S, Victim, rounds, seed

pytestmark = pytest.mark.crash


class Hosts:
    """A primary with its writer and shipper, a standby with its receiver; each process started anew when it is
    gone."""

    def __init__(self, folder: Path, writer: str = "tests.crash.writer", copies_every: int = 50) -> None:
        self.folder = folder
        self.writer = (writer, folder / "a.sus", "--copies-every", str(copies_every))
        self.primary, self.replica = folder / "a.sus", folder / "b.sus"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.running: dict[str, Victim] = {}

    def start(self) -> None:
        """Whatever of the three is not running."""
        commands: dict[str, tuple[Any, ...]] = {
            "receiver": (
                *("sustain.cli", "receive", "--store", self.replica, "--listen", self.address),
                *("--heartbeat", "200ms", "--timeout", "2s"),
            ),
            "shipper": (
                *("sustain.cli", "ship", "--store", self.primary, "--peer", f"tcp://{self.address}"),
                *("--heartbeat", "200ms", "--timeout", "2s"),
            ),
            "writer": self.writer,
        }
        for name, command in commands.items():
            if name not in self.running:
                self.running[name] = Victim(*command, log=self.folder / f"{name}.log")

    def kill(self, name: str) -> dict[str, int]:
        return self.running.pop(name).kill()

    def close(self) -> None:
        for victim in self.running.values():
            victim.signal(signal.SIGCONT)
            victim.kill()


@pytest.mark.parametrize("durability", ["memory", "disk"])
@pytest.mark.timeout(7200)
def test_all_three_killed_and_stopped_at_random(tmp_path: Path, durability: str) -> None:
    chosen = seed()
    print(f"SUSTAIN_CRASH_SEED={chosen}")
    dice = random.Random(chosen)
    hosts = Hosts(tmp_path)
    sustain.create(hosts.primary, size="4MiB", log_size="2MiB", durability=durability).close()
    primary_model, replica_model = Model(), Model()
    acknowledged = copied = 0
    pause = threading.Event()
    try:
        for _ in range(rounds(16)):
            hosts.start()
            if dice.random() < 0.7:
                hosts.running["writer"].wait_for("commit", acknowledged + int(dice.expovariate(1 / 300)))
            else:
                pause.wait(dice.uniform(0, 0.5))
            victims = dice.sample(["writer", "shipper", "receiver"], dice.choice([1, 1, 2, 3]))
            stopped = [each for each in victims if dice.random() < 0.4]
            for name in stopped:
                hosts.running[name].signal(signal.SIGSTOP)
            if stopped:
                pause.wait(dice.uniform(0, 0.3))
            said = dict(hosts.running["writer"].last)
            for name in victims:
                if name not in stopped:
                    heard = hosts.kill(name)
                    said = heard if name == "writer" else said
            acknowledged = max(acknowledged, said.get("commit", 0))
            copied = max(copied, said.get("copied", 0))
            # The replica first: the primary may go on meanwhile, and holds at least as much.
            replica = look(hosts.replica, replica_model)
            primary = look(hosts.primary, primary_model)
            assert replica is None or replica <= primary
            assert primary >= acknowledged
            assert (replica or 0) >= copied, f"of {copied} a copy was promised, {replica} is there"
            if "writer" not in hosts.running:
                assert primary <= acknowledged + 1
                acknowledged = primary
            for name in stopped:
                hosts.running[name].signal(signal.SIGCONT)
                if dice.random() < 0.3:
                    heard = hosts.kill(name)
                    if name == "writer":  # it went on for a moment
                        acknowledged = max(acknowledged, heard.get("commit", 0))
                        copied = max(copied, heard.get("copied", 0))
        finish(hosts, primary_model, replica_model, acknowledged)
    finally:
        hosts.close()


def look(path: Path, model: Model) -> int | None:
    """The commit that the store at `path` is at, by a reader of its own; None when there is no whole store yet."""
    if not path.exists():
        return None
    try:
        store = sustain.open(path, readonly=True, verify="full")
    except sustain.SustainError:
        if _native.Control(str(path)).superblock()["incomplete"]:
            return None
        raise
    with store:
        return check(store, model)


def finish(hosts: Hosts, primary_model: Model, replica_model: Model, acknowledged: int) -> None:
    """Left alone, the replica catches up, and both are equal."""
    hosts.start()
    hosts.running["writer"].wait_for("commit", acknowledged)
    last = hosts.running.pop("writer").end()["commit"]
    pause = threading.Event()
    for _ in range(int(LIMIT_S / 0.02)):
        if look(hosts.replica, replica_model) == last:
            break
        pause.wait(0.02)
    hosts.kill("shipper")
    hosts.kill("receiver")
    for path, model in ((hosts.primary, primary_model), (hosts.replica, replica_model)):
        with sustain.open(path, verify="full") as store:
            assert check(store, model) == last
