"""`sustain ship` and `sustain receive` as processes: ended, killed at random, asked wrong things."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import sustain

from .conftest import LIMIT_S, Lab, contents, fill, until

SEED = int(os.environ.get("SUSTAIN_SEED", "20260102"))
KILLS = int(os.environ.get("SUSTAIN_KILLS", "12"))
FAST = ("--heartbeat", "200ms", "--timeout", "3s")


class Processes:
    """Starts verbs of the command line and ends them, by pid."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._all: list[subprocess.Popen[str]] = []

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "sustain.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._all.append(process)
        # Nobody reads it before it has ended; a pipe that is full would stop it.
        threading.Thread(target=self._drain, args=(process,), daemon=True).start()
        return process

    def _drain(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        process.said = process.stderr.read()  # type: ignore[attr-defined]

    def complaint(self, process: subprocess.Popen[str]) -> str:
        """What an ended process has said on its standard error."""
        return str(until(lambda: getattr(process, "said", None), "its complaint"))

    def receive(self, name: str = "b", port: int = 0) -> tuple[subprocess.Popen[str], int]:
        port_file = Path(self.lab.directory / f"{name}.port")
        port_file.unlink(missing_ok=True)
        listen = ("--listen", f"127.0.0.1:{port}", "--port-file", str(port_file))
        process = self.start("receive", "--store", self.lab.path(name), *listen, *FAST)
        until(lambda: port_file.exists() or process.poll() is not None, "it listens")
        assert process.poll() is None
        return process, int(port_file.read_text())

    def ship(self, *ports: int, name: str = "a", words: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        peers = [word for port in ports for word in ("--peer", f"tcp://127.0.0.1:{port}?required=1")]
        return self.start("ship", "--store", self.lab.path(name), *peers, *FAST, *words)

    def end(self) -> None:
        for process in self._all:
            if process.poll() is None:
                process.kill()
            process.wait(LIMIT_S)


@pytest.fixture
def processes(lab: Lab) -> Iterator[Processes]:
    made = Processes(lab)
    yield made
    made.end()


def test_ship_until_drained(lab: Lab, processes: Processes) -> None:
    store = lab.create()
    position = fill(store, 0, 100)
    receiver, port = processes.receive()
    shipper = processes.ship(port, words=("--until-drained", "--json"))
    assert shipper.wait(LIMIT_S) == 0
    assert shipper.stdout is not None
    report = json.loads(shipper.stdout.read())
    assert (report["end"], report["target"]) == ("drained", position)
    assert report["destinations"] == [{"url": f"tcp://127.0.0.1:{port}", "acked": position}]
    receiver.send_signal(signal.SIGTERM)
    assert receiver.wait(LIMIT_S) == 0
    assert contents(lab.open("b")) == contents(store)


def test_sigterm_drains_when_asked_to(lab: Lab, processes: Processes) -> None:
    store = lab.create()
    _, port = processes.receive()
    shipper = processes.ship(port, words=("--drain-timeout", "20s"))
    store.wait(fill(store, 0, 10), copies=1, timeout=LIMIT_S)
    position = fill(store, 10, 2000)
    shipper.send_signal(signal.SIGTERM)
    assert shipper.wait(LIMIT_S) == 0
    with sustain.open(lab.path("b"), readonly=True) as standby:
        assert standby.position >= position


def test_one_clear_line_and_a_hint(lab: Lab, processes: Processes) -> None:
    lab.create()
    key = lab.directory / "key"
    key.write_bytes(b"k" * 32)
    key.chmod(0o644)
    nowhere = ("ship", "--store", lab.path("a"), "--peer", "tcp://127.0.0.1:1")
    cases = [
        ((*nowhere, "--until-drained", "--drain-timeout", "300ms"), 1, "127.0.0.1:1"),
        (("ship", "--store", lab.path("a"), "--peer", "tcp://192.0.2.1:1"), 1, "without a key"),
        (("ship", "--store", lab.path("a")), 2, "nowhere to ship to"),
        (("ship", "--store", lab.path("none"), "--peer", "tcp://127.0.0.1:1"), 1, "none.sus"),
        ((*nowhere, "--key-file", str(key)), 2, "open to everybody"),
        ((*nowhere, "--heartbeat", "20s"), 2, "--heartbeat"),
        (("receive", "--store", lab.path("b"), "--listen", "0.0.0.0:0"), 2, "without a key"),
        (("receive", "--store", lab.path("a"), "--listen", "127.0.0.1:0"), 1, "a.sus"),
    ]
    for words, status, says in cases:
        process = processes.start(*words)
        assert process.wait(LIMIT_S) == status, words
        said = processes.complaint(process)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, said
        assert says in errors[0]
        assert "\nhint: " in said, said
        assert "Traceback" not in said


@pytest.mark.crash
def test_kill_shipper_and_receiver_at_random(lab: Lab, processes: Processes) -> None:
    print(f"SUSTAIN_SEED={SEED}")
    rng = random.Random(SEED)
    store = lab.create(log_size="4MiB")
    receiver, port = processes.receive()
    shipper = processes.ship(port)
    acknowledged = 0
    for _ in range(KILLS):
        for _ in range(rng.randrange(1, 20)):
            fill(store, rng.randrange(900), 10, rng.randbytes(rng.randrange(300)))
        victim = rng.choice(["shipper", "receiver", "both", "none"])
        if victim in ("shipper", "both"):
            shipper.kill()
            shipper.wait(LIMIT_S)
        if victim in ("receiver", "both"):
            receiver.kill()
            receiver.wait(LIMIT_S)
            held = {each.acked for each in store.status().destinations}
            acknowledged = max([acknowledged, *(each for each in held if each is not None)])
            receiver, port = processes.receive(port=port)
            if acknowledged:  # else it may have been killed inside its first snapshot
                with sustain.open(lab.path("b"), readonly=True) as standby:
                    assert standby.position >= acknowledged, "an acknowledged commit is gone"
        if victim in ("shipper", "both"):
            shipper = processes.ship(port)
    position = store.commit()
    store.wait(position, copies=1, timeout=60)
    for process in (shipper, receiver):
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    standby = lab.open("b")
    standby.verify()
    assert standby.position == position
    assert contents(standby) == contents(store)


def stands_still(pid: int) -> bool:
    """Whether each thread of a process is stopped: SIGSTOP takes its time on a busy machine."""
    stats = [each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(each.rsplit(")", 1)[1].split()[0] == "T" for each in stats)


@pytest.mark.crash
def test_a_stopped_receiver_is_not_believed_and_then_followed_again(lab: Lab, processes: Processes) -> None:
    store = lab.create()
    receiver, port = processes.receive()
    processes.ship(port)
    store.wait(fill(store, 0, 10), copies=1, timeout=LIMIT_S)
    receiver.send_signal(signal.SIGSTOP)
    until(lambda: stands_still(receiver.pid), "all its threads stand still")
    try:
        position = fill(store, 10, 50)
        with pytest.raises(sustain.WaitTimeout):
            store.wait(position, copies=1, timeout=0.3)
    finally:
        receiver.send_signal(signal.SIGCONT)
    store.wait(position, copies=1, timeout=LIMIT_S)
