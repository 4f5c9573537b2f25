"""What an etcd URL may say, and what it may not."""

import pytest

from sustain.errors import ConfigError
from sustain.failover.lease.etcd.url import Address, parse_etcd_url


def test_members_have_the_usual_port_unless_another_is_named() -> None:
    url = parse_etcd_url("etcd://10.0.0.5,etcd-b.example:4001,[::1],[fe80::2]:2380/app.one")
    assert url.endpoints == (
        Address("10.0.0.5", 2379),
        Address("etcd-b.example", 4001),
        Address("::1", 2379),
        Address("fe80::2", 2380),
    )
    assert (url.name, url.tls, url.user) == ("app.one", False, None)
    assert [str(each) for each in url.endpoints][2:] == ["[::1]:2379", "[fe80::2]:2380"]


def test_a_workload_without_a_name_is_the_default_one() -> None:
    assert parse_etcd_url("etcd://h").name == parse_etcd_url("etcd://h:2379/").name == "default"


def test_certificates_mean_tls() -> None:
    url = parse_etcd_url("etcd://h/app?ca=/etc/ca%20one.pem&cert=c.pem&key=k.pem&user=u&password-file=p")
    assert (url.tls, url.ca, url.cert, url.key) == (True, "/etc/ca one.pem", "c.pem", "k.pem")
    assert (url.user, url.password_file) == ("u", "p")
    assert parse_etcd_url("etcd://h?tls=1").tls
    assert not parse_etcd_url("etcd://h?tls=0").tls


def test_a_password_may_go_in_the_clear_on_this_host_only() -> None:
    for host in ("localhost", "127.0.0.1", "[::1]"):
        parse_etcd_url(f"etcd://{host}?user=u&password-file=p")
    with pytest.raises(ConfigError, match="in the clear") as caught:
        parse_etcd_url("etcd://127.0.0.1,10.0.0.1?user=u&password-file=p")
    assert "ca=FILE" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "etcd://",
        "etcd:///app",
        "etcd://h,",
        "etcd://h:0",
        "etcd://h:99999",
        "etcd://h:port",
        "etcd://[::1",
        "etcd://h h",
        "etcd://h,h:2379",
        "etcd://a,b,c,d,e,f,g,h,i,j",
        "etcd://h/two/parts",
        "etcd://h/..",
        "etcd://h/" + "x" * 65,
        "etcd://h#fragment",
        "etcd://h?nonsense=1",
        "etcd://h?ca=",
        "etcd://h?ca=a&ca=b",
        "etcd://h?key=k",
        "etcd://h?ca=c&tls=0",
        "etcd://h?tls=perhaps",
        "etcd://h?tls=1&user=u",
        "etcd://h?tls=1&password-file=p",
    ],
)
def test_what_is_no_lease_in_etcd_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_etcd_url(text)
    assert caught.value.hint


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_etcd_url("etcd://root:geheim@10.0.0.1:2379/app")
    assert "geheim" not in f"{caught.value} {caught.value.hint}"
    assert "password-file" in caught.value.hint
