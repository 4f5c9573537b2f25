"""Destinations and addresses as people write them."""

import pytest

from sustain.errors import ConfigError
from sustain.replication.urls import Peer, is_loopback, parse_listen, parse_peer


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("tcp://10.0.0.2:7411", Peer("10.0.0.2", 7411)),
        ("tcp://b.example:1/?required=1", Peer("b.example", 1, True)),
        ("tcp://[::1]:7411?required=yes", Peer("::1", 7411, True)),
        ("tcp://b:7411?required=0", Peer("b", 7411, False)),
    ],
)
def test_peer(text: str, peer: Peer) -> None:
    assert parse_peer(text) == peer
    assert parse_peer(peer.url) == Peer(peer.host, peer.port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.2:7411",
        "tcp://b",
        "tcp://b:0",
        "tcp://b:99999",
        "tcp://:7411",
        "tcp://b:7411/path",
        "tcp://u@b:7411",
        "tcp://b:7411?color=red",
        "tcp://b:7411?required=maybe",
        "http://b:80",
        "s3://bucket/prefix",
        "file:///dir",
        "tcp://" + "b" * 100 + ":7411",
        "tcp://[::1:7411",
    ],
)
def test_not_a_peer(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_peer(text)
    assert caught.value.hint


def test_listen() -> None:
    assert parse_listen("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_listen("[::1]:7411") == ("::1", 7411)
    for wrong in ("", "7411", "host", ":7411", "host:port", "host:1/x"):
        with pytest.raises(ConfigError):
            parse_listen(wrong)


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("10.0.0.1", "::", "0.0.0.0", "fe80::1%eth0", "", "localhost")))
