"""`sustain keys`, and the options that take what it makes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ran

Sus = Callable[..., Ran]


@pytest.fixture
def ca(sus: Sus, tmp_path: Path) -> Path:
    assert sus("keys", "ca", "--dir", tmp_path / "ca").status == 0
    return tmp_path / "ca"


def test_a_ca_and_hosts(sus: Sus, ca: Path) -> None:
    made = sus("keys", "host", "a", "--dir", ca, "--address", "10.0.0.1", "--address", "a.example", "--json")
    (facts,) = made.json["certificates"]
    assert facts["addresses"] == ["a", "10.0.0.1", "a.example"]
    assert facts["issuer"] == "Sustain CA"
    assert facts["is_ca"] is False
    shown = sus("keys", "show", ca / "a.pem", ca / "ca.pem", "--json").json["certificates"]
    assert shown[0] == facts
    assert shown[1]["is_ca"] is True
    text = sus("keys", "show", ca / "a.pem").out
    for word in ("a.example", "10.0.0.1", "the CA Sustain CA", facts["sha256"]):
        assert word in text


def test_renewing(sus: Sus, ca: Path) -> None:
    sus("keys", "host", "a", "--dir", ca, "--address", "10.0.0.1")
    sus("keys", "host", "a", "--dir", ca).failed_with("a.pem", "is there already", status=2)
    again = sus("keys", "host", "a", "--dir", ca, "--renew", "--days", 3, "--json")
    assert again.json["certificates"][0]["addresses"] == ["a", "10.0.0.1"]


@pytest.mark.parametrize(
    "words",
    [
        ("host",),
        ("host", "a", "b"),
        ("ca", "a"),
        ("show",),
        ("ca", "--address", "10.0.0.1"),
        ("ca", "--renew"),
        ("host", "a", "--name", "b"),
        ("ca", "--name", ""),
        ("ca", "--days", "0"),
        ("host", "../a"),
        ("host", "a", "--address", "a b"),
    ],
)
def test_wrong_usage(sus: Sus, tmp_path: Path, words: tuple[str, ...]) -> None:
    sus("keys", *words, "--dir", tmp_path / "none").failed_with(status=2)
    assert list(tmp_path.iterdir()) == []


def test_without_the_library(sus: Sus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    ran = sus("keys", "ca", "--dir", tmp_path)
    ran.failed_with("cryptography", status=2)
    assert "sustain[keys]" in ran.err


VERBS = {
    "receive": ("--store", "b.sus", "--listen", "127.0.0.1:0"),
    "ship": ("--store", "a.sus", "--peer", "tcp://127.0.0.1:1"),
    "save": ("--region", "r", "--to", "tcp://127.0.0.1:1"),
    "restore": ("tcp://127.0.0.1:1", "r"),
    "run": ("--store", "a.sus", "--name", "a", "--lease", "file:///tmp", "--listen", "127.0.0.1:0"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_says_what_is_wrong_with_its_certificate(sus: Sus, ca: Path, verb: str) -> None:
    command = ("--", "true") if verb == "run" else ()
    only = ("--tls-cert", ca / "a.pem")
    sus(verb, *VERBS[verb], *only, *command).failed_with("--tls-key and --tls-ca are missing", status=2)
    files = (*only, "--tls-key", ca / "a.key", "--tls-ca", ca / "ca.pem")
    sus(verb, *VERBS[verb], *files, *command).failed_with("a.pem", status=2)
    sus("keys", "host", "a", "--dir", ca)
    (ca / "a.key").chmod(0o644)
    sus(verb, *VERBS[verb], *files, *command).failed_with("a.key", "open to everybody", status=2)
