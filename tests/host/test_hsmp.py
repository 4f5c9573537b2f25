"""Messages to an EPYC's system management: what is sent, byte by byte, and what its answers and refusals mean."""

import errno
import os
import struct
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host.hsmp import Hsmp
from sustain.testing import hosts


def test_power_and_time_in_c0_of_each_socket(tmp_path: Path) -> None:
    ioctl = hosts.bare(tmp_path).hsmp(power_w={0: 181.25, 1: 64.5}, c0_percent={0: 37, 1: 0})
    with Hsmp(tmp_path, ioctl) as sockets:
        assert [sockets.power_w(each) for each in (0, 1)] == [181.25, 64.5]
        assert [sockets.c0_percent(each) for each in (0, 1)] == [37, 0]
        with pytest.raises(HostError, match="message 0x4 to socket 2: ") as caught:
            sockets.power_w(2)
    assert "no such socket" in caught.value.hint


def test_the_bytes_of_a_message(tmp_path: Path) -> None:
    hosts.bare(tmp_path).hsmp({}, {})
    sent = []

    def ioctl(_descriptor: int, request: int, message: bytearray) -> int:
        sent.append((request, bytes(message)))
        message[8:12] = struct.pack("=I", 12)
        return 0

    with Hsmp(tmp_path, ioctl) as sockets:
        assert sockets.c0_percent(1) == 12
    expected = struct.pack("=IHH", 0x11, 0, 1) + bytes(32) + struct.pack("=H", 1) + bytes(2)
    assert sent == [(0xC02CF800, expected)]


@pytest.mark.parametrize(
    ("refused", "word"),
    [(errno.ENOMSG, "does not know"), (errno.ETIMEDOUT, "did not answer"), (errno.EPERM, "root")],
)
def test_what_a_refusal_means(tmp_path: Path, refused: int, word: str) -> None:
    hosts.bare(tmp_path).hsmp({}, {})

    def ioctl(*_: object) -> int:
        raise OSError(refused, os.strerror(refused))

    with Hsmp(tmp_path, ioctl) as sockets, pytest.raises(HostError) as caught:
        sockets.power_w(0)
    assert word in caught.value.hint


def test_more_than_all_of_the_time(tmp_path: Path) -> None:
    ioctl = hosts.bare(tmp_path).hsmp({}, {0: 0xFFFFFFFF})
    with Hsmp(tmp_path, ioctl) as sockets, pytest.raises(HostError, match="4294967295%"):
        sockets.c0_percent(0)


def test_a_host_without(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="dev/hsmp") as caught:
        Hsmp(tmp_path)
    assert "modprobe amd_hsmp" in caught.value.hint


@pytest.mark.skipif(not Path("/dev/hsmp").exists(), reason="this machine has no HSMP")
def test_this_machine() -> None:
    with Hsmp() as sockets:
        assert sockets.power_w(0) > 0
        assert 0 <= sockets.c0_percent(0) <= 100
