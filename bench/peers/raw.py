"""The machine's own limits: `pwrite` + `fdatasync` on a pre-written file, memory copy, loopback TCP.

These are what no engine above them can beat, measured in the same run.
"""

import mmap
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bench.peers.ours import timed_threads


class RawLog:
    """A file that was written through once and is overwritten from its beginning, `record` bytes a commit."""

    def __init__(self, path: Path, size: int, record: int) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        block = bytes(1 << 20)
        for _ in range(size >> 20):
            os.write(self.descriptor, block)
        os.fsync(self.descriptor)
        self.size, self.record, self.at = size, record, 0

    def run(self, commits: int) -> float:
        """Seconds for `commits` times one write and one flush."""
        descriptor, record, size, at = self.descriptor, bytes(self.record), self.size, self.at
        pwrite, fdatasync = os.pwrite, os.fdatasync
        begun = time.perf_counter()
        for number in range(commits):
            pwrite(descriptor, record, (at + number * len(record)) % (size - len(record)))
            fdatasync(descriptor)
        spent = time.perf_counter() - begun
        self.at += commits * len(record)
        return spent

    def run_threads(self, commits: int, threads: int) -> float:
        """Seconds for `commits` in all over threads that share the file and nothing else."""
        share = self.size // threads
        record = bytes(self.record)

        def body(base: int) -> None:
            for number in range(commits // threads):
                os.pwrite(self.descriptor, record, base + number * len(record) % (share - len(record)))
                os.fdatasync(self.descriptor)

        return timed_threads([partial(body, n * share) for n in range(threads)])

    def close(self) -> None:
        os.close(self.descriptor)


def copy_rate(length: int, source: mmap.mmap, target: mmap.mmap) -> float:
    """Bytes per second of one memory copy of `length` bytes between two mappings."""
    begun = time.perf_counter()
    memoryview(target)[:length] = memoryview(source)[:length]
    return length / (time.perf_counter() - begun)


class RawTcp:
    """Another process that receives on loopback and throws away; `run` sends to it."""

    def __init__(self, buffer_size: int, total: int) -> None:
        self.buffer_size, self.total = buffer_size, total
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.peers.tcp_sink", str(buffer_size), str(total)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def run(self) -> float:
        """Bytes per second from the first byte sent to the receiver's answer after the last."""
        block = memoryview(bytes(self.buffer_size))
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            begun = time.perf_counter()
            left = self.total
            while left > 0:
                length = min(left, self.buffer_size)
                connection.sendall(block[:length])
                left -= length
            connection.recv(1)
            return self.total / (time.perf_counter() - begun)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
