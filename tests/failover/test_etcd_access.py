"""Who may ask an etcd, and whether it is the right one: TLS, certificates, users and passwords, on real etcds."""

import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from sustain.errors import LeaseError
from sustain.failover.lease.etcd import EtcdLease, parse_etcd_url
from sustain.failover.lease.etcd.client import Limits, encoded
from sustain.testing import FakeClock
from tests.failover import etcd as real
from tests.failover.etcd import Etcd

Open = Callable[[str], EtcdLease]
PATIENT = Limits(call_s=20.0, hedge_s=0.2)

pytestmark = pytest.mark.skipif(not real.available(), reason="no etcd (Debian: etcd-server)")


@pytest.fixture
def opened() -> Iterator[Open]:
    made: list[EtcdLease] = []

    def make(url: str) -> EtcdLease:
        made.append(EtcdLease(parse_etcd_url(url), "a1", FakeClock(), 3.0, limits=PATIENT))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Certificates:
    """An authority, etcd's certificate, a host's; and an authority and a host that are nobody's."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        ours, others = trustme.CA(), trustme.CA()
        ours.cert_pem.write_to_path(self.path("ca"))
        others.cert_pem.write_to_path(self.path("other-ca"))
        self._issue(ours, "etcd", "127.0.0.1")
        self._issue(ours, "elsewhere", "etcd.example")
        self._issue(ours, "host", "a.example")
        self._issue(others, "stranger", "a.example")

    def path(self, name: str) -> str:
        return str(self.dir / f"{name}.pem")

    def pair(self, name: str) -> str:
        return f"cert={self.path(name)}&key={self.path(name + '-key')}"

    def server(self, name: str = "etcd", clients: bool = False) -> tuple[str, str, str]:
        return self.path(name), self.path(f"{name}-key"), self.path("ca") if clients else ""

    def _issue(self, ca: trustme.CA, name: str, host: str) -> None:
        issued = ca.issue_cert(host)
        issued.private_key_pem.write_to_path(self.path(f"{name}-key"))
        for blob in issued.cert_chain_pems:
            blob.write_to_path(self.path(name), append=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def mutual(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """An etcd that speaks TLS only, and only to clients of its authority."""
    with real.running(tmp_path_factory.mktemp("mutual"), https=certificates.server(clients=True)) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """An etcd with users: `root`, and `app`, who may change what is under sustain/app/."""
    with real.running(tmp_path_factory.mktemp("guarded")) as found:
        address = found.members[0].address
        prefix = {"key": encoded("sustain/app/"), "range_end": encoded("sustain/app0")}
        for path, request in (
            ("user/add", {"name": "root", "password": "r00t"}),
            ("role/add", {"name": "root"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("user/add", {"name": "app", "password": "secret"}),
            ("role/add", {"name": "app"}),
            ("role/grant", {"name": "app", "perm": {"permType": "READWRITE", **prefix}}),
            ("user/grant", {"user": "app", "role": "app"}),
            ("enable", {}),
        ):
            assert real.ask(address, f"/v3/auth/{path}", request).get("header"), path
        yield found


def password_file(directory: Path, password: str, mode: int = 0o600) -> Path:
    path = directory / f"password-{uuid.uuid4().hex}"
    path.write_text(f"{password}\n")
    path.chmod(mode)
    return path


def works(lease: EtcdLease) -> bool:
    grant = lease.acquire(lease.read(), "a", 3.0, 1)
    return grant is not None and lease.renew(grant) is not None


# TLS


def test_both_sides_show_certificates(mutual: Etcd, certificates: Certificates, opened: Open) -> None:
    name = uuid.uuid4().hex
    assert works(opened(f"{mutual.url}/{name}?ca={certificates.path('ca')}&{certificates.pair('host')}"))


def test_an_etcd_of_another_authority_is_not_spoken_to(
    mutual: Etcd, certificates: Certificates, opened: Open
) -> None:
    lease = opened(f"{mutual.url}?ca={certificates.path('other-ca')}&{certificates.pair('host')}")
    with pytest.raises(LeaseError, match="its certificate is not accepted") as caught:
        lease.read()
    assert "ca=" in caught.value.hint


def test_a_certificate_for_another_host_is_not_accepted(
    certificates: Certificates, opened: Open, tmp_path: Path
) -> None:
    with (
        real.running(tmp_path, https=certificates.server("elsewhere")) as other,
        pytest.raises(LeaseError, match="its certificate is not accepted"),
    ):
        opened(f"{other.url}?ca={certificates.path('ca')}").read()


@pytest.mark.parametrize("client", ["", "stranger"])
def test_an_etcd_that_does_not_accept_this_host_is_understood(
    mutual: Etcd, certificates: Certificates, opened: Open, client: str
) -> None:
    pair = f"&{certificates.pair(client)}" if client else ""
    # etcd says so after the handshake, and then closes: what is noticed first depends.
    said = "does not accept this host's certificate|closes the connection"
    with pytest.raises(LeaseError, match=said) as caught:
        opened(f"{mutual.url}?ca={certificates.path('ca')}{pair}").read()
    assert "cert=" in caught.value.hint or client


def test_tls_where_none_is_spoken_and_the_other_way_round(
    mutual: Etcd, etcd: Etcd, certificates: Certificates, opened: Open
) -> None:
    # What it answers in plain text may be lost when it then closes: what is noticed first depends.
    with pytest.raises(LeaseError, match=r"does not speak TLS|closes the connection") as caught:
        opened(f"{etcd.url}?ca={certificates.path('ca')}").read()
    assert "is it started with --cert-file" in caught.value.hint or "speaks no TLS" in caught.value.hint
    with pytest.raises(LeaseError, match="closes the connection") as caught:
        opened(mutual.url).read()
    assert "ca=FILE" in caught.value.hint


@pytest.mark.parametrize("wrong", ["ca", "cert", "key"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_files_that_cannot_be_used_are_named(
    mutual: Etcd, certificates: Certificates, opened: Open, tmp_path: Path, wrong: str, content: str | None
) -> None:
    path = tmp_path / "wrong.pem"
    if content is not None:
        path.write_text(content)
    files = {
        "ca": certificates.path("ca"),
        "cert": certificates.path("host"),
        "key": certificates.path("host-key"),
    } | {wrong: str(path)}
    lease = opened(f"{mutual.url}?" + "&".join(f"{option}={file}" for option, file in files.items()))
    with pytest.raises(LeaseError, match="No such file" if content is None else "PEM") as caught:
        lease.read()
    assert f"{'cert' if wrong == 'key' else wrong}=" in caught.value.hint


def test_files_that_were_replaced_hold_from_the_next_connection_on(
    mutual: Etcd, certificates: Certificates, opened: Open, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Path(certificates.path("other-ca")).read_bytes())
    lease = opened(f"{mutual.url}/{uuid.uuid4().hex}?ca={ca}&{certificates.pair('host')}")
    with pytest.raises(LeaseError):
        lease.read()
    ca.write_bytes(Path(certificates.path("ca")).read_bytes())
    assert works(lease)


# users


def test_a_user_with_its_password(guarded: Etcd, opened: Open, tmp_path: Path) -> None:
    assert works(opened(f"{guarded.url}/app?user=app&password-file={password_file(tmp_path, 'secret')}"))


def test_a_wrong_password_is_said_at_once_and_not_shown(guarded: Etcd, opened: Open, tmp_path: Path) -> None:
    path = password_file(tmp_path, "geheim")
    lease = opened(f"{guarded.url}/app?user=app&password-file={path}")
    with pytest.raises(LeaseError, match="authentication failed") as caught:
        lease.read()
    assert str(path) in caught.value.hint
    assert "geheim" not in f"{caught.value}{caught.value.hint}"
    # Put right, it holds: the file is read again.
    path.write_text("secret\n")
    lease.read()


def test_no_user_where_one_is_wanted_and_one_where_none_is(
    guarded: Etcd, etcd: Etcd, opened: Open, tmp_path: Path
) -> None:
    with pytest.raises(LeaseError, match="user name is empty") as caught:
        opened(f"{guarded.url}/app").read()
    assert "?user=" in caught.value.hint
    with pytest.raises(LeaseError, match="authentication is not enabled") as caught:
        opened(f"{etcd.url}/app?user=app&password-file={password_file(tmp_path, 'secret')}").read()
    assert "auth enable" in caught.value.hint


def test_a_user_that_may_not_says_which_role_is_missing(guarded: Etcd, opened: Open, tmp_path: Path) -> None:
    lease = opened(f"{guarded.url}/other?user=app&password-file={password_file(tmp_path, 'secret')}")
    with pytest.raises(LeaseError, match="permission denied") as caught:
        lease.read()
    assert "sustain/other/" in caught.value.hint


def test_a_password_file_is_for_its_owner_only(guarded: Etcd, opened: Open, tmp_path: Path) -> None:
    with pytest.raises(LeaseError, match="open to everybody"):
        opened(f"{guarded.url}/app?user=app&password-file={password_file(tmp_path, 'secret', 0o644)}").read()
    with pytest.raises(LeaseError, match="No such file"):
        opened(f"{guarded.url}/app?user=app&password-file={tmp_path}/none").read()


def test_a_log_in_that_etcd_has_forgotten_is_made_again(guarded: Etcd, opened: Open, tmp_path: Path) -> None:
    """etcd keeps its tokens in memory, and for five minutes."""
    lease = opened(f"{guarded.url}/app?user=app&password-file={password_file(tmp_path, 'secret')}")
    lease.read()
    lease._client._token = forgotten = "KoOUvkFZBSHEbyVs.1"
    lease.read()
    assert lease._client._token not in ("", forgotten)
    member = guarded.members[0]
    member.stop(signal.SIGTERM)
    guarded.restart(member)
    lease.read()


def test_a_token_of_a_state_that_etcd_has_not_reached_is_given_up(guarded: Etcd, tmp_path: Path) -> None:
    """To that it gives no answer: as after it was put back to an earlier state."""
    url = f"{guarded.url}/app?user=app&password-file={password_file(tmp_path, 'secret')}"
    lease = EtcdLease(parse_etcd_url(url), "a1", FakeClock(), 3.0, limits=Limits(4.0, 0.1))
    lease.read()
    lease._client._token = "KoOUvkFZBSHEbyVs.999999"
    with pytest.raises(LeaseError, match="does not answer"):
        lease.read()
    lease.read()
    lease.close()


def test_closing_ends_the_threads(etcd: Etcd) -> None:
    before = set(threading.enumerate())
    lease = EtcdLease(parse_etcd_url(etcd.url), "a1", FakeClock(), 3.0, limits=PATIENT)
    lease.read()
    (mine,) = set(threading.enumerate()) - before
    descriptors = len(os.listdir("/proc/self/fd"))
    lease.close()
    mine.join(10)
    assert not mine.is_alive()
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1
