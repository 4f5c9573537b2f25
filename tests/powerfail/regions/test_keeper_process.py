"""`sustain receive --region-dir` as a process: saved to, restored from, killed, out of room, asked wrong things."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sustain.errors import PeerUnreachable, RegionFull, RegionUnsealed, SustainError
from sustain.powerfail.regions.manifest import PAGE_BYTES, RegionIdentity, Seal
from sustain.powerfail.regions.scan import differing, digests_of, pages_in, slices, table_digest
from sustain.powerfail.regions.sink import Held, Sink, open_sink, open_source
from sustain.replication.credentials import NO_CREDENTIALS, Credentials
from sustain.testing.link import Link
from tests.replication.conftest import until

SEED = int(os.environ.get("SUSTAIN_SEED", random.randrange(1 << 32)))
KILLS = int(os.environ.get("SUSTAIN_KILLS", "8"))
LIMIT_S = 60.0  # on a machine that is busy with other things
UUID = b"u" * 16
NAME = "nv"


class Keeping:
    """A keeper's process, started again at will."""

    def __init__(self, directory: Path, *words: str) -> None:
        self.directory = directory
        self.saved = directory / "saved"
        self._words = words
        self._port = 0
        self._log = directory / "keeper.log"
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        port_file = self.directory / "port"
        port_file.unlink(missing_ok=True)
        where = ("--region-dir", str(self.saved), "--listen", f"127.0.0.1:{self._port}")
        how = ("--port-file", str(port_file), "--heartbeat", "200ms", "--timeout", "3s", "--json")
        with self._log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "sustain.cli", "receive", *where, *how, *self._words],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        until(lambda: port_file.exists() or process.poll() is not None, "it listens")
        assert process.poll() is None, self.said
        self._port = int(port_file.read_text())
        return process

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self._port}"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)

    def again(self) -> None:
        self.process = self._start()

    def end(self) -> dict[str, Any]:
        """SIGTERM; what it reports."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=LIMIT_S)
        assert self.process.returncode == 0, self.said
        report: dict[str, Any] = json.loads(out)
        return report


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Keeping]:
    made = Keeping(tmp_path)
    yield made
    made.process.kill()
    made.process.communicate()


def content(pages: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(pages * PAGE_BYTES)


def sink_at(url: str, key: bytes = b"") -> Sink:
    return open_sink(url, credentials=Credentials(key), name=NAME)


def begin(sink: Sink, data: bytes, epoch: int = 1) -> Held:
    return sink.begin(RegionIdentity(UUID, len(data), NAME), epoch)


def complete(sink: Sink, data: bytes, epoch: int = 1) -> int:
    """A whole save; how many pages had to be sent."""
    held = begin(sink, data, epoch)
    table = digests_of(data)
    assert held.table is not None
    runs = differing(held.table, table)
    for run in runs:
        for first, pages in slices(*run, 256):
            piece = data[first * PAGE_BYTES : (first + pages) * PAGE_BYTES]
            sink.write(first, piece, table[first * 16 : (first + pages) * 16])
    sink.flush()
    sink.seal(Seal(epoch, held.last_number + 1, "a", table_digest(table), 1, "test"))
    return pages_in(runs)


def read(url: str, key: bytes = b"") -> bytes:
    with open_source(url, credentials=Credentials(key), name=NAME) as source:
        pages = source.identity().pages
        data = b"".join(bytes(source.read(*run)) for run in slices(0, pages, 300))
        assert digests_of(data) == source.table()
        return data


def test_saved_restored_and_reported(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    key.chmod(0o600)
    status = tmp_path / "status.json"
    keeping = Keeping(tmp_path, "--key-file", str(key), "--region-name", NAME, "--status", str(status))
    try:
        assert json.loads(status.read_text())["regions"] == []
        data = content(1000)
        with sink_at(keeping.url, b"k" * 32) as sink:
            assert complete(sink, data) == 1000
            until(lambda: json.loads(status.read_text())["sessions"], "the session in the status file")
        assert read(keeping.url, b"k" * 32) == data
        for wrong in (b"", b"o" * 32):
            with pytest.raises(SustainError):
                read(keeping.url, wrong)
        report = keeping.end()
    finally:
        keeping.process.kill()
    (kept,) = report["regions"]
    assert (kept["name"], kept["seal"]["number"], kept["size_bytes"]) == (NAME, 1, len(data))
    assert report["sessions"] == []
    assert (keeping.saved / NAME / "image").read_bytes() == data
    with open_source(f"file://{keeping.saved}", credentials=NO_CREDENTIALS, name=NAME) as source:
        assert source.seal().owner == "a"


def test_one_changed_page_costs_one_page(keeping: Keeping) -> None:
    data = bytearray(content(500))
    with sink_at(keeping.url) as sink:
        assert complete(sink, bytes(data)) == 500
        data[77 * PAGE_BYTES] ^= 1
        assert complete(sink, bytes(data)) == 1
    assert read(keeping.url) == data


@pytest.mark.crash
def test_a_keeper_killed_in_a_save_refuses_what_it_has_and_takes_the_rest(keeping: Keeping) -> None:
    print(f"SUSTAIN_SEED={SEED}")
    rng = random.Random(SEED)
    old, data = content(800, seed=1), content(800, seed=2)
    with sink_at(keeping.url) as sink:
        complete(sink, old)
    table = digests_of(data)
    sink = sink_at(keeping.url)
    begin(sink, data)
    for first in range(0, 400, 100):
        sink.write(first, data[first * PAGE_BYTES : (first + 100) * PAGE_BYTES], table[first * 16 :][:1600])
    sink.flush()
    sink.write(400, data[400 * PAGE_BYTES : 500 * PAGE_BYTES], table[6400:8000])
    if rng.random() < 0.5:
        sink.flush()
    keeping.kill()
    with pytest.raises(PeerUnreachable):
        sink.flush()
    sink.close()
    keeping.again()
    with pytest.raises(RegionUnsealed):
        read(keeping.url)
    with sink_at(keeping.url) as again:
        assert complete(again, data) <= 400  # not what was flushed
    assert read(keeping.url) == data


@pytest.mark.crash
def test_cut_and_killed_at_random(keeping: Keeping) -> None:
    """Whatever happens: what can be read is what was sealed, and in the end all is there."""
    print(f"SUSTAIN_SEED={SEED}")
    rng = random.Random(SEED)
    version, sealed = 0, -1
    data = content(600)
    for _ in range(KILLS):
        with Link(keeping.address) as link:
            if rng.random() < 0.7:
                link.cut_after(rng.randrange(1, len(data)))
            version += 1
            changed = bytearray(data)
            for page in rng.sample(range(600), rng.choice([1, 10, 600])):
                changed[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = rng.randbytes(PAGE_BYTES)
            data = bytes(changed)
            try:
                with sink_at(link.url) as sink:
                    complete(sink, data)
                sealed = version
            except SustainError:
                if rng.random() < 0.5:
                    keeping.kill()
                    keeping.again()
        try:
            found = read(keeping.url)
        except RegionUnsealed:
            assert sealed != version
        else:
            # A cut may have fallen behind the seal and before its answer.
            assert found == data or sealed < version
            assert not (sealed == version and found != data)
    with sink_at(keeping.url) as sink:
        complete(sink, data)
    assert read(keeping.url) == data


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_fills_is_a_clean_error_and_other_destinations_finish(tmp_path: Path) -> None:
    small = tmp_path / "saved"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(small)], check=True)
    keeping = other = None
    try:
        keeping = Keeping(tmp_path, "--size-limit", "1GiB")
        (tmp_path / "other").mkdir()
        other = Keeping(tmp_path / "other")
        data = content(1000)
        with sink_at(keeping.url) as full, sink_at(other.url) as roomy:
            begin(full, data)
            with pytest.raises(RegionFull) as caught:
                complete(full, data)
            assert keeping.url in str(caught.value)
            assert caught.value.hint
            assert complete(roomy, data) == 1000
        with pytest.raises(RegionUnsealed):
            read(keeping.url)
        assert read(other.url) == data
        small_data = content(100, seed=3)
        with sink_at(keeping.url) as sink:
            complete(sink, small_data)  # the same region, smaller now: there is room for it
        assert read(keeping.url) == small_data
        assert "Traceback" not in keeping.said
    finally:
        for each in (keeping, other):
            if each is not None:
                each.process.kill()
                each.process.communicate()
        subprocess.run(["umount", str(small)], check=True)


def test_a_region_larger_than_the_disk_is_refused_at_once(keeping: Keeping) -> None:
    found = os.statvfs(keeping.saved)
    size = (found.f_blocks * found.f_frsize // PAGE_BYTES + 1) * PAGE_BYTES
    with sink_at(keeping.url) as sink, pytest.raises(RegionFull, match="limit"):
        sink.begin(RegionIdentity(UUID, size, NAME), 1)
    assert not (keeping.saved / NAME).exists()


def test_noise_on_the_port_harms_nothing(keeping: Keeping) -> None:
    import socket

    print(f"SUSTAIN_SEED={SEED}")
    rng = random.Random(SEED)
    data = content(50)
    with sink_at(keeping.url) as sink:
        complete(sink, data)
    for _ in range(50):
        with socket.create_connection(keeping.address, timeout=5) as sock:
            sock.sendall(rng.choice([b"GET / HTTP/1.1\r\n\r\n", rng.randbytes(rng.randrange(1, 2000))]))
            if rng.random() < 0.5:
                with contextlib.suppress(OSError):  # the keeper may have hung up already
                    sock.shutdown(socket.SHUT_WR)
    assert read(keeping.url) == data
    report = keeping.end()
    assert report["last_error"]
    assert "Traceback" not in keeping.said


def test_one_clear_line_and_a_hint(tmp_path: Path) -> None:
    cases = [
        (("--region-dir", str(tmp_path / "a"), "--listen", "0.0.0.0:0"), 2, "without a key"),
        (("--region-dir", "/proc/none", "--listen", "127.0.0.1:0"), 1, "/proc/none"),
        (("--region-dir", str(tmp_path), "--region-name", "../x", "--listen", "127.0.0.1:0"), 2, "'../x'"),
        (("--store", "x", "--region-name", "y", "--listen", "127.0.0.1:0"), 2, "--region-dir"),
        (("--store", "x", "--region-dir", "y", "--listen", "127.0.0.1:0"), 2, "--region-dir"),
        (("--listen", "127.0.0.1:0"), 2, "--region-dir"),
    ]
    for words, status, says in cases:
        done = subprocess.run(
            [sys.executable, "-m", "sustain.cli", "receive", *words],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == status, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, done.stderr
        assert says in errors[0]
        assert "hint: " in done.stderr
        assert "Traceback" not in done.stderr
