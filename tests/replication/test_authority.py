"""What `sustain keys` makes: certificates that OpenSSL takes at both ends, keys that nobody else may read."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sustain.errors import ConfigError
from sustain.replication.authority import HOST_DAYS, make_ca, make_host, show

from .certificates import Authority

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_ca(tmp_path: Path) -> None:
    made = make_ca(tmp_path / "ca", "our CA", now=NOW)
    assert (made.name, made.issuer, made.is_ca, made.addresses) == ("our CA", "our CA", True, ())
    assert made == show(tmp_path / "ca/ca.pem")
    assert made.begins < NOW
    assert made.ends == NOW + timedelta(days=3650)
    assert stat.S_IMODE((tmp_path / "ca/ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700


def test_a_host(tmp_path: Path) -> None:
    make_ca(tmp_path, "our CA", now=NOW)
    made = make_host(tmp_path, "a.example", ["10.0.0.1", "fd00::1", "10.0.0.1", "other.example"], now=NOW)
    assert (made.name, made.issuer, made.is_ca) == ("a.example", "our CA", False)
    assert made.addresses == ("a.example", "10.0.0.1", "fd00::1", "other.example")
    assert made.ends == NOW + timedelta(days=HOST_DAYS)
    assert stat.S_IMODE((tmp_path / "a.example.key").stat().st_mode) == 0o600
    assert len({show(tmp_path / name).fingerprint for name in ("ca.pem", "a.example.pem")}) == 2


def test_a_host_of_a_name_that_is_none_on_a_network(tmp_path: Path) -> None:
    make_ca(tmp_path, "our CA")
    assert make_host(tmp_path, "rack_1", []).addresses == ()


def test_openssl_takes_them_strictly(tmp_path: Path) -> None:
    authority = Authority.made(tmp_path)
    assert authority.host("a").load().tls is not None  # it was proved at both ends
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(authority.ca)
    assert len(context.get_ca_certs()) == 1


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    make_ca(tmp_path, "our CA")
    make_host(tmp_path, "a", ["10.0.0.1"])
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="is there already"):
        make_ca(tmp_path, "our CA")
    with pytest.raises(ConfigError, match="is there already") as caught:
        make_host(tmp_path, "a", ["10.0.0.1"])
    assert "--renew" in caught.value.hint
    assert before == {each.name: each.read_bytes() for each in tmp_path.iterdir()}


def test_renewed_for_the_same_addresses(tmp_path: Path) -> None:
    make_ca(tmp_path, "our CA")
    first = make_host(tmp_path, "a", ["10.0.0.1"])
    key = (tmp_path / "a.key").read_bytes()
    again = make_host(tmp_path, "a", [], renew=True)
    assert again.addresses == first.addresses
    assert again.fingerprint != first.fingerprint
    assert (tmp_path / "a.key").read_bytes() != key
    assert make_host(tmp_path, "a", ["10.0.0.9"], renew=True).addresses == ("a", "10.0.0.9")


def test_no_host_outlives_its_ca(tmp_path: Path) -> None:
    ca = make_ca(tmp_path, "our CA", days=30, now=NOW)
    assert make_host(tmp_path, "a", [], days=60, now=NOW).ends == ca.ends
    with pytest.raises(ConfigError, match="has expired"):
        make_host(tmp_path, "b", [], now=NOW + timedelta(days=31))


@pytest.mark.parametrize("name", ["", "ca", "../a", "a/b", ".a", "a b", "é", "a\n", "x" * 49])
def test_a_name_that_is_none(tmp_path: Path, name: str) -> None:
    make_ca(tmp_path / "ca", "our CA")
    with pytest.raises(ConfigError, match="cannot be a host's name"):
        make_host(tmp_path / "ca", name, [])
    assert {each.name for each in tmp_path.rglob("*")} == {"ca", "ca.pem", "ca.key"}


@pytest.mark.parametrize(
    "address", ["", "tcp://10.0.0.1:7", "10.0.0.1:7411", "a..b", "-a", "a_b", "10.0.0.0/8"]
)
def test_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    make_ca(tmp_path, "our CA")
    with pytest.raises(ConfigError, match="neither an IP address nor a host name"):
        make_host(tmp_path, "a", [address])


@pytest.mark.parametrize("days", [0, -1, 36501])
def test_a_time_that_is_none(tmp_path: Path, days: int) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        make_ca(tmp_path, "our CA", days)
    assert list(tmp_path.iterdir()) == []


def test_without_a_ca(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.pem") as caught:
        make_host(tmp_path, "a", [])
    assert "keys ca" in caught.value.hint


@pytest.mark.parametrize("which", ["ca.pem", "ca.key"])
@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"-----BEGIN CERTIFICATE-----\nxxxx\n-----END CERTIFICATE-----\n"]
)
def test_a_ca_that_cannot_be_read(tmp_path: Path, which: str, content: bytes) -> None:
    make_ca(tmp_path, "our CA")
    (tmp_path / which).write_bytes(content)
    with pytest.raises(ConfigError, match=which.replace(".", r"\.")) as caught:
        make_host(tmp_path, "a", [])
    assert caught.value.hint


def test_the_key_of_another_ca(tmp_path: Path) -> None:
    make_ca(tmp_path / "one", "our CA")
    make_ca(tmp_path / "two", "our CA")
    (tmp_path / "one/ca.key").write_bytes((tmp_path / "two/ca.key").read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        make_host(tmp_path / "one", "a", [])


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="file") as caught:
        make_ca(tmp_path / "file", "our CA")
    assert caught.value.hint
