"""Two hosts of one workload, one of which is filled with data that the other one has, too.

Used by the questions about takeover and handover.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class HandedOver(RuntimeError):
    """The primary was one no longer when something was to be asked of it: this machine had stalled for longer than the
    lease lasts."""


@contextmanager
def running_pair(directory: Path, writer: str, size: int, *options: str) -> Iterator[tuple[Any, Any, Path]]:
    """Hosts a (the primary) and b (`sustain.demo.hosts.Host`), and the directory of their lease. The program is
    `writer` of `bench.writers`, which fills `size` bytes; b holds them. `options` are of `sustain run`. Raises
    HandedOver."""
    from sustain.demo.hosts import Host, wait_for

    key = directory / "key"
    key.write_text("bench" * 8 + "\n")
    key.chmod(0o600)
    lease = directory / "lease"
    lease.mkdir()
    a, b = Host("a", directory / "a"), Host("b", directory / "b")
    words = [*options, "--durability", "memory", "--size", str(size + (32 << 20)), "--log-size", "64MiB"]
    root = str(Path(__file__).resolve().parents[1])
    program = f"import sys; sys.path.insert(0, {root!r}); from bench.writers import main; main()"
    try:
        for host, peer, more in ((a, b, ["--create"]), (b, a, [])):
            command = [sys.executable, "-c", program, writer, "-", str(host.progress_path), str(size)]
            host.start(peer, lease, key, [*words, *more], command)
            if host is a:
                wait_for("host a's lease", lambda: a.progress("first-commit") is not None, [a], 120)

        def filled_or_over() -> bool:
            return a.progress("filled") is not None or b.event("takeover") is not None

        wait_for("the array to be filled", filled_or_over, [a, b], 240, 0.01)
        if b.event("takeover") is not None:
            raise HandedOver("the lease lapsed while the array was filled: this machine is too busy")
        filled = (a.progress("filled") or {})["position"]
        wait_for("host b to have it", lambda: ships(a, filled), [a, b], 240, 0.01)
        yield a, b, lease
    finally:
        a.close()
        b.close()


def ships(host: Any, position: int) -> bool:
    """Whether a destination follows that host's log and holds it up to `position`."""
    return any(
        each["state"] == "streaming" and (each["acked"] or 0) >= position for each in host.destinations()
    )
