"""The story of the demo, from the first commit on host a to the verdict; every figure of it in an `Outcome`.

Used by `cli.demo`. Nothing here sleeps for luck: each step waits for what it needs to see in the
stores' control words or in the event logs. The kill point is drawn from a seed, so a run can be
repeated.
"""

import importlib.util
import random
import secrets
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import sustain
from sustain.demo.hosts import Host, wait_for
from sustain.demo.recount import compare, recount
from sustain.errors import ConfigError, SustainError

_LIMIT_S = 120.0


class Stage(Protocol):
    """Where the story is shown while it goes on."""

    def say(self, text: str) -> None: ...
    def advance(self, text: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Options:
    """What `sustain demo` was asked."""

    directory: Path
    seed: int
    max_files: int
    max_bytes: int
    ttl_s: float
    durability: str
    how: str = "kill"  # or "outage": what happens to host a


@dataclass(frozen=True)
class Outcome:
    """What happened. Times in seconds, positions in bytes of log; None is unknown. In an outage "kill" means the
    moment when the power failed; host a's processes were killed when it had said that the power may be cut."""

    how: str
    seed: int
    durability: str
    files: int
    indexed: int
    binary: int
    unreadable: int
    text_bytes: int
    words: int
    distinct_words: int
    folders: dict[str, int]
    kill_at_file: int
    processes_killed: int
    primary_commits: int
    primary_position: int
    acknowledged_position: int | None
    standby_commits: int
    standby_position: int
    epoch: int
    epoch_start: int
    commits_taken_over: int | None
    acknowledged_lost: bool
    unreplicated_commits: int | None
    resumed_at_file: int
    lease_wait_s: float | None
    promotion_s: float | None
    start_s: float | None
    first_commit_s: float
    kill_to_first_commit_s: float
    primary_files_per_s: float
    primary_text_bytes_per_s: float
    standby_files_per_s: float
    words_compared: int
    lengths_compared: int
    differences: tuple[str, ...]
    takeover_report: str
    elapsed_s: float

    @property
    def good(self) -> bool:
        """Whether everything that was promised was kept."""
        redone = self.how == "outage" and self.unreplicated_commits != 0
        return not self.differences and not self.acknowledged_lost and not redone

    def as_dict(self) -> dict[str, Any]:
        return {"good": self.good, **asdict(self)}


def play(options: Options, stage: Stage) -> Outcome:
    """Run it all in `options.directory`; SustainError when the story cannot be told to its end."""
    begun = time.monotonic()
    example = example_path()
    key = options.directory / "key"
    key.write_text(secrets.token_hex(32) + "\n")
    key.chmod(0o600)
    lease = options.directory / "lease"
    lease.mkdir()
    go, end = options.directory / "go", options.directory / "end"
    a, b = Host("a", options.directory / "a"), Host("b", options.directory / "b")
    try:
        common = [
            "--ttl",
            f"{options.ttl_s:g}s",
            "--durability",
            options.durability,
            "--drain-timeout",
            "100ms",
        ]

        def start(host: Host, peer: Host, more: list[str]) -> None:
            command = [sys.executable, str(example), "--events", str(host.progress_path), "--quiet"]
            command += ["--max-files", str(options.max_files), "--max-bytes", str(options.max_bytes)]
            command += ["--start-when", str(go), "--finish-when", str(end)]
            host.start(peer, lease, key, [*common, *more], command)

        supply = _Supply(options.directory / "ups")
        plug = supply.options() if options.how == "outage" else []
        stage.say("host a starts: it takes the lease, creates the store and runs the application")
        start(a, b, ["--create", *plug])
        wait_for("host a's first commits", lambda: a.progress("planned") is not None, [a], _LIMIT_S, 0.01)
        total = int((a.progress("planned") or {})["files"])
        stage.say(f"host b starts as its standby; {total:,} files are to be indexed")
        start(b, a, [])
        wait_for("host b to follow", lambda: _follows(a), [a, b], _LIMIT_S, 0.005)

        kill_at = random.Random(options.seed).randint(max(1, total // 4), max(1, total * 3 // 4))
        go.touch()
        first = _commits(a)
        _watch(a, stage, "host a indexes", first, kill_at, total, [a, b])
        at = f"at file {_commits(a) - first:,} of {total:,}"
        lose = _lose_the_power if options.how == "outage" else _lose_all_at_once
        kill_ns, killed, held = lose(a, b, supply, stage, at)
        end.touch()  # not before: an outage takes a moment to be believed, and a shall not be done by then

        wait_for("the first commit on host b", lambda: b.progress("first-commit") is not None, [b], _LIMIT_S)
        resumed = b.progress("first-commit") or {}
        stage.say(
            f"host b committed {(resumed['boottime_ns'] - kill_ns) / 1e9:.2f} s after the {options.how}, "
            f"at file {resumed['next']:,}"
        )
        start_commits = _commits(b)
        _watch(b, stage, "host b goes on", start_commits - int(resumed["next"]), total, total, [b])
        wait_for("host b to finish", lambda: b.progress("finished") is not None, [b], _LIMIT_S, 0.01)
        wait_for("host b to leave", lambda: b.status is not None, [], _LIMIT_S, 0.01)
        if b.status != 0:
            raise SustainError(
                f"host b ended with status {b.status}:\n{b.complaint()}", hint="run again with --keep DIR"
            )

        stage.say("every word is counted again from the files, in plain Python")
        return _judge(options, example, a, b, held, kill_ns, killed, kill_at, begun, stage)
    finally:
        a.close()
        b.close()


def _lose_all_at_once(a: Host, b: Host, _: "_Supply", stage: Stage, at: str) -> "tuple[int, int, _Held]":
    """When it was, how many processes were killed, and what each host held."""
    kill_ns, killed = a.kill()
    held = _Held.read(a, b)
    stage.say(f"SIGKILL to all {killed} processes of host a, {at}")
    return kill_ns, killed, held


def _lose_the_power(a: Host, b: Host, supply: "_Supply", stage: Stage, at: str) -> "tuple[int, int, _Held]":
    """The same, with a warning: host a has the time that its battery gives it."""
    failed_ns = supply.fail()
    stage.say(f"the power of host a fails, {at}")
    wait_for("host a to save", lambda: _saved(a) is not None, [a, b], _LIMIT_S)
    wait_for("host b to take over", lambda: b.event("takeover") is not None, [b], _LIMIT_S)
    killed = a.kill()[1]
    stage.say(f"host a has said that its power may be cut: SIGKILL to the {killed} processes left there")
    return failed_ns, killed, _Held.saved(a, b)


@dataclass(frozen=True)
class _Held:
    """What each host held when the kill came, from their control words."""

    primary_commits: int
    primary_position: int
    acknowledged: int | None
    standby_commits: int
    standby_position: int

    @classmethod
    def read(cls, a: Host, b: Host) -> "_Held":
        ours, theirs = a.words(), b.words()
        if ours is None or theirs is None:
            raise SustainError("the stores' control words cannot be read", hint="run again with --keep DIR")
        acked = [each["acked"] for each in a.destinations() if each["acked"] is not None]
        return cls(
            ours["commit_seq"],
            ours["committed"],
            max(acked, default=None),
            theirs["commit_seq"],
            theirs["committed"],
        )

    @classmethod
    def saved(cls, a: Host, b: Host) -> "_Held":
        """In an outage: what host a says it has brought away, and what host b says it began with."""
        outage, takeover, ours = _saved(a), b.event("takeover"), a.words()
        if outage is None or takeover is None or ours is None:
            raise SustainError("the reports cannot be read", hint="run again with --keep DIR")
        acked = [each["acked"] for each in outage["destinations"] if each["acked"] is not None]
        return cls(
            ours["commit_seq"],
            outage["end"],
            max(acked, default=None),
            takeover["commits_held"],
            takeover["held_position"],
        )


class _Supply:
    """What stands for the UPS of host a: a file that says what an upsd would say."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._say("OL")

    def options(self) -> list[str]:
        power = ["--power", f"file://{self._path}", "--power-poll", "100ms"]
        return [*power, "--power-debounce", "500ms"]

    def fail(self) -> int:
        """The mains are gone; CLOCK_BOOTTIME, nanoseconds."""
        self._say("OB DISCHRG")
        return sustain._native.boottime_ns()

    def _say(self, status: str) -> None:
        draft = self._path.with_suffix(".new")
        draft.write_text(f"ups.status: {status}\nbattery.runtime: 300\nbattery.runtime.low: 30\n")
        draft.replace(self._path)


def _saved(host: Host) -> dict[str, Any] | None:
    """What the supervisor says of an outage that it is done with."""
    return host.last_event("outage", lambda line: line["outcome"] != "saving")


def _judge(
    options: Options,
    example: Path,
    a: Host,
    b: Host,
    held: _Held,
    kill_ns: int,
    killed: int,
    kill_at: int,
    begun: float,
    stage: Stage,
) -> Outcome:
    module = load_example(example)
    finished, resumed, on_a = (
        b.progress("finished") or {},
        b.progress("first-commit") or {},
        a.progress("begun") or {},
    )
    takeover = b.event("takeover") or {}
    epoch, epoch_start = sustain._native.Control(str(b.store)).superblock()["history"][-1]
    with sustain.open(b.store, readonly=True) as store:
        index = module.Index(store)
        plan = [
            bytes(index.plan[number.to_bytes(4, "big")]).decode("utf-8", "surrogateescape")
            for number in range(index.total)
        ]
        truth = recount(plan, lambda done: stage.advance("recount", done, len(plan)))
        verdict = compare(dict(store.map("words").items()), index.lengths.tolist()[: len(plan)], truth)
    differences = list(verdict.differences)
    if module.plan_files(module.default_roots(), options.max_files, options.max_bytes) != plan:
        differences.append("the plan in the store is not the list of files on this machine")
    acknowledged_lost = held.acknowledged is not None and epoch_start < held.acknowledged
    free_ns = takeover.get("lease_free_boottime_ns") or takeover.get("acquired_boottime_ns")
    began_ns, finish_ns = int(on_a["boottime_ns"]), int(finished["boottime_ns"])
    on_b = b.progress("begun") or resumed
    done_on_a = int(resumed["next"])
    text_on_a = finished["text_bytes"] * done_on_a / max(1, finished["files"])
    taken_over = takeover.get("commits_held")
    return Outcome(
        how=options.how,
        seed=options.seed,
        durability=sustain._native.Control(str(b.store)).superblock()["durability"],
        files=finished["files"],
        indexed=finished["indexed"],
        binary=finished["binary"],
        unreadable=finished["unreadable"],
        text_bytes=finished["text_bytes"],
        words=finished["words"],
        distinct_words=finished["distinct_words"],
        folders=_folders(plan, [str(root) for root in module.default_roots()]),
        kill_at_file=kill_at,
        processes_killed=killed,
        primary_commits=held.primary_commits,
        primary_position=held.primary_position,
        acknowledged_position=held.acknowledged,
        standby_commits=held.standby_commits,
        standby_position=held.standby_position,
        epoch=epoch,
        epoch_start=epoch_start,
        commits_taken_over=taken_over,
        acknowledged_lost=acknowledged_lost,
        unreplicated_commits=None if taken_over is None else held.primary_commits - taken_over,
        resumed_at_file=done_on_a,
        lease_wait_s=_span(kill_ns, free_ns),
        promotion_s=_span(free_ns, takeover.get("promoted_boottime_ns")),
        start_s=_span(takeover.get("promoted_boottime_ns"), (b.progress("started") or {}).get("boottime_ns")),
        first_commit_s=(resumed["boottime_ns"] - (b.progress("started") or resumed)["boottime_ns"]) / 1e9,
        kill_to_first_commit_s=(resumed["boottime_ns"] - kill_ns) / 1e9,
        primary_files_per_s=done_on_a / ((kill_ns - began_ns) / 1e9),
        primary_text_bytes_per_s=text_on_a / ((kill_ns - began_ns) / 1e9),
        standby_files_per_s=(finished["files"] - done_on_a)
        / max(1e-9, (finish_ns - on_b["boottime_ns"]) / 1e9),
        words_compared=verdict.words_compared,
        lengths_compared=verdict.lengths_compared,
        differences=tuple(differences),
        takeover_report=_report(b.directory),
        elapsed_s=time.monotonic() - begun,
    )


def example_path() -> Path:
    """The example application in the source tree; ConfigError when this is an installation without it."""
    path = Path(__file__).resolve().parents[3] / "examples" / "index_docs.py"
    if not path.is_file():
        raise ConfigError(
            "the example application is not part of an installed package",
            hint="run the demo from a checkout: make demo",
        )
    return path


def load_example(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("sustain_example_index_docs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _watch(
    host: Host, stage: Stage, text: str, first: int, until: int, total: int, hosts: list[Host]
) -> None:
    """Show progress until `until` commits were made after `first`, or the application has finished."""

    def reached() -> bool:
        done = _commits(host) - first
        stage.advance(text, min(done, total), total)
        return done >= until or host.progress_path.stat().st_size == 0 or _finished(host)

    wait_for(f"{text}, file {until}", reached, hosts, _LIMIT_S)


def _finished(host: Host) -> bool:
    return host.progress("finished") is not None


def _commits(host: Host) -> int:
    words = host.words()
    return 0 if words is None else words["commit_seq"]


def _follows(host: Host) -> bool:
    words = host.words()
    return words is not None and any(
        each["state"] == "streaming" and each["acked"] == words["committed"] for each in host.destinations()
    )


def _folders(plan: list[str], roots: list[str]) -> dict[str, int]:
    counts = dict.fromkeys([*roots, "elsewhere (links)"], 0)
    for path in plan:
        root = next((root for root in roots if path.startswith(root + "/")), "elsewhere (links)")
        counts[root] += 1
    return {root: count for root, count in counts.items() if count}


def _span(since_ns: int | None, until_ns: int | None) -> float | None:
    return None if since_ns is None or until_ns is None else (until_ns - since_ns) / 1e9


def _report(directory: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted(directory.glob("takeover-*.txt")))


__all__ = ["Options", "Outcome", "Stage", "example_path", "load_example", "play"]
