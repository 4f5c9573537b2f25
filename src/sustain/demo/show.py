"""What people see of the demo: a line for each event and a bar while it runs, then one report.

Used by `cli.demo`. On a terminal with colours and bars (on stderr); in a pipe nothing but the final
report.
"""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from sustain.demo.play import Outcome
from sustain.units import format_duration, format_size


class Silent:
    """A stage that nobody watches."""

    def say(self, text: str) -> None: ...
    def advance(self, text: str, done: int, total: int) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class Terminal:
    """A stage on a terminal (stderr)."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        columns = (TextColumn("  {task.description:16}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        style = "bold red" if text.startswith("SIGKILL") else ""
        spent = time.monotonic() - self._begun
        self._console.print(Text(f"{spent:6.1f} s  "), Text(text, style=style))

    def advance(self, text: str, done: int, total: int) -> None:
        if text not in self._tasks:
            for task in self._tasks.values():
                self._progress.update(task, visible=False)
            self._tasks[text] = self._progress.add_task(text, total=total)
        self._progress.update(self._tasks[text], completed=done)


def stage() -> Silent | Terminal:
    return Terminal() if sys.stderr.isatty() else Silent()


def report(outcome: Outcome) -> None:
    """The whole result, on stdout: as coloured tables on a terminal, plain in a pipe."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print()
    console.print(_held(outcome))
    console.print(_times(outcome))
    console.print(_work(outcome))
    for line in outcome.differences:
        console.print(Text(f"difference: {line}", style="red"))
    if outcome.good:
        said = (
            f"SAME: {outcome.words_compared:,} words and {outcome.lengths_compared:,} document lengths are "
            "what a recount from scratch finds; no acknowledged commit was lost."
        )
        console.print(Text(said, style="bold green"))
    else:
        console.print(Text("DIFFERENT: the store does not hold what it must.", style="bold red"))
    console.print(f"seed {outcome.seed}, {format_duration(outcome.elapsed_s)} in all")


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, min_width=78)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    return table


def _held(outcome: Outcome) -> Table:
    outage = outcome.how == "outage"
    table = _table("When the power of host a failed" if outage else "When host a was killed")
    unknown = "unknown"
    acked = (
        unknown if outcome.acknowledged_position is None else f"position {outcome.acknowledged_position:,}"
    )
    gone = unknown if outcome.unreplicated_commits is None else f"{outcome.unreplicated_commits:,}"
    lost = "SOME" if outcome.acknowledged_lost else "0"
    when = "when it had said that the power may be cut" if outage else "all of it at once"
    table.add_row("the power failed" if outage else "killed", f"at about file {outcome.kill_at_file:,}")
    table.add_row("killed" if outage else "", f"{outcome.processes_killed} processes, {when}")
    table.add_row(
        "host a held", f"{outcome.primary_commits:,} commits, position {outcome.primary_position:,}"
    )
    table.add_row(
        "host b held", f"{outcome.standby_commits:,} commits, position {outcome.standby_position:,}"
    )
    table.add_row("acknowledged by b", acked)
    table.add_row(
        "host b began",
        f"epoch {outcome.epoch} at position {outcome.epoch_start:,}, file {outcome.resumed_at_file:,}",
    )
    style = "bold red" if outcome.acknowledged_lost else "bold green"
    table.add_row("acknowledged, lost", Text(f"{lost} commits", style=style))
    redone = " (their files were indexed again on b)" if outcome.unreplicated_commits else ""
    table.add_row("not yet sent, redone", f"{gone} commits{redone}")
    return table


def _times(outcome: Outcome) -> Table:
    table = _table(f"From the {outcome.how} to the first commit on host b")
    rest = None if outcome.lease_wait_s is None else outcome.kill_to_first_commit_s - outcome.lease_wait_s
    table.add_row("in all", _time(outcome.kill_to_first_commit_s))
    waited = "to be believed, to save" if outcome.how == "outage" else "waiting for the lease"
    table.add_row(waited, _time(outcome.lease_wait_s))
    table.add_row("the rest", Text(_time(rest), style="bold"))
    table.add_row("  lease and promotion", _time(outcome.promotion_s))
    table.add_row("  start of the command", _time(outcome.start_s))
    table.add_row("  open, first commit", _time(outcome.first_commit_s))
    return table


def _work(outcome: Outcome) -> Table:
    table = _table("The work")
    skipped = f"{outcome.binary} binary and {outcome.unreadable} unreadable ones skipped"
    table.add_row(
        "files", f"{outcome.indexed:,} indexed, a commit each ({outcome.durability} durability); {skipped}"
    )
    for folder, count in outcome.folders.items():
        table.add_row("", f"{count:,} from {folder}")
    table.add_row(
        "text",
        f"{format_size(outcome.text_bytes)}, {outcome.words:,} words, {outcome.distinct_words:,} distinct",
    )
    table.add_row(
        "throughput on a",
        f"{outcome.primary_files_per_s:,.0f} files/s, "
        f"{format_size(int(outcome.primary_text_bytes_per_s))}/s of text",
    )
    table.add_row("throughput on b", f"{outcome.standby_files_per_s:,.0f} files/s")
    return table


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else format_duration(seconds)
