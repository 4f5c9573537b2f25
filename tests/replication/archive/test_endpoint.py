"""An object store that answers 500 or 503, slowly, half, or not at all although it has done what it was asked."""

import os
import random
from collections.abc import Iterator

import pytest

from sustain.errors import ArchiveIOError

from .conftest import Kit, fails, until
from .endpoint import Proxy

SEED = int(os.environ.get("SUSTAIN_SEED", "20260305"))


@pytest.fixture
def proxy(bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    made = Proxy(s3_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    yield made
    made.close()


@pytest.fixture
def faulty(lab: object, bucket: str, proxy: Proxy) -> Iterator[Kit]:
    kit = Kit(lab, f"{bucket}/app")  # type: ignore[arg-type]
    yield kit
    proxy.fault = lambda _method, _path: ""
    kit.end()


@pytest.mark.parametrize("what", ["500", "503", "lost", "cut", "slow"])
def test_now_and_then(faulty: Kit, proxy: Proxy, what: str) -> None:
    """Whatever is acknowledged is there, and in the end everything is."""
    rand = random.Random(SEED)
    told = faulty.tell()
    told.change(20)
    proxy.fault = lambda _method, _path: what if rand.random() < 0.25 else ""
    shipping = faulty.ship("every=5ms")
    for _ in range(4):
        told.change(10)
        faulty.arrived(told)
    assert proxy.count(what) > 0
    restored = faulty.restore()
    assert restored.position == told.positions[-1]
    shipping.stop()
    assert faulty.held(restored) == told.states[-1]


def test_lost_answer_of_each_put(faulty: Kit, proxy: Proxy) -> None:
    """The first answer about each object is lost after it was put."""
    told, met = faulty.tell(), set()

    def lose_first(method: str, path: str) -> str:
        if method != "PUT" or path in met:
            return ""
        met.add(path)
        return "lost"

    proxy.fault = lose_first
    told.change(10)
    shipping = faulty.ship("every=5ms")
    for _ in range(3):
        told.change(10)
        faulty.arrived(told)
    shipping.stop()
    assert len(met) >= 5
    assert faulty.held(faulty.restore()) == told.states[-1]


def test_down_and_back(faulty: Kit, proxy: Proxy) -> None:
    """It is said once, nobody who commits waits for it, and it comes back by itself."""
    told = faulty.tell()
    told.change(10)
    shipping = faulty.ship("every=5ms")
    faulty.arrived(told)
    proxy.fault = lambda _method, _path: "403"  # not tried again by the client
    told.change(50)
    until(lambda: [text for text in shipping.said if "403" in text or "cannot be" in text], "it is told")
    told.change(50)
    error = fails(faulty.restore, ArchiveIOError)
    assert "s3://" in str(error)
    assert error.hint
    proxy.fault = lambda _method, _path: ""
    faulty.arrived(told)
    shipping.stop()
    assert faulty.held(faulty.restore()) == told.states[-1]
    assert len(set(shipping.said)) == len(shipping.said), "nothing is said twice"
