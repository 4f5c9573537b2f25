"""Shipping to one loopback peer with TLS, steady: what part of raw loopback TCP?

As `ship_throughput`, whose log of whole pages is sent here twice: by `sustain ship` and `sustain receive` with
certificates that `sustain keys` made, and by the same two without. Peers: raw loopback TCP (the limit, judged), and
two processes that send and receive the same bytes over a bare TLS 1.3 connection of this interpreter's own `ssl`,
one certificate, nothing verified or stored: what a program in Python can have without us.
"""

from contextlib import ExitStack
from pathlib import Path

from bench.harness import Answer, interleave, medians, memory_dir
from bench.peers.raw import RawTcp
from bench.peers.tls import RawTls
from bench.ship_throughput import CHUNK, Backlog

QUESTION = "shipping to one loopback peer with TLS, steady, GB/s"


def certificates(directory: Path, *names: str) -> list[tuple[str, ...]]:
    """Options of `ship` and `receive`, for each of the hosts `names`."""
    from sustain.replication.authority import make_ca, make_host
    from sustain.replication.credentials import CredentialFiles

    make_ca(directory, "bench")
    for name in names:
        make_host(directory, name, ["127.0.0.1"])
    ca = str(directory / "ca.pem")
    made = (
        CredentialFiles(None, str(directory / f"{name}.pem"), str(directory / f"{name}.key"), ca)
        for name in names
    )
    return [tuple(files.words()) for files in made]


def answer(quick: bool = False) -> Answer:
    """GB/s."""
    log_bytes, rounds = (32 << 20, 2) if quick else (512 << 20, 7)
    with ExitStack() as stack:
        directory = stack.enter_context(memory_dir())
        a, b = certificates(directory, "a", "b")
        tls = Backlog(stack, directory, "array", log_bytes, "tls", a, b)
        plain = Backlog(stack, directory, "array", log_bytes, "plain")
        raw = RawTcp(CHUNK, log_bytes)
        stack.callback(raw.close)
        bare = RawTls(CHUNK, log_bytes, directory / "a.pem", directory / "a.key", directory / "ca.pem")
        stack.callback(bare.close)
        for backlog in (tls, plain):  # twice: steady means that the rings and images have their memory
            backlog.ship()
            backlog.ship()
        found = medians(
            interleave(
                rounds,
                {
                    "tls": tls.ship,
                    "plain": plain.ship,
                    "bare": lambda: bare.run() / 1e9,
                    "raw": lambda: raw.run() / 1e9,
                },
            )
        )
    result = Answer(
        question=QUESTION,
        unit="GB/s",
        ours=found["tls"],
        peers={"without TLS": found["plain"], "bare TLS, nothing else": found["bare"]},
        limit={"raw loopback TCP": found["raw"]},
        runs=rounds,
        quick=quick,
    )
    result.ask(
        "at least 40% of raw loopback TCP", result.ratio["raw loopback TCP"], lambda ratio: ratio >= 0.4
    )
    return result
