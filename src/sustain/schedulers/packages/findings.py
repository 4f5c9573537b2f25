"""What was found out about this host, kept from one run to the next: findings of tests, and verdicts of trials.

Used by `sense`, which puts what holds for this host into each observation, and by whoever finds something out: the
scheduler, and `sustain packages test`. docs/formats/findings.md has the file. One writer at a time, as with every whole
file; a reader sees the old one or the new one.

What was found holds for one host with one firmware and one microcode (`host`). What another key has is kept and not
used: whoever goes back to the former firmware has it again. A damaged file is as none, and is said; it is kept under
another name, so that what people did is not lost by the next write.

The time of a verdict is that of its boot; in the file it is the wall clock's, since a boot's is over with it.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from sustain import wholefile
from sustain.clock import Clock
from sustain.errors import HostError
from sustain.schedulers.packages.model import Finding, Verdict

VERSION = 1
_MOST_VERDICTS = 64  # of each host, the newest
_SAME_S = 2.0
_DAMAGED = ".damaged"
_HINT = "`sustain packages test` finds it out anew; the file can be removed"


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one host. `title` is for people: model, firmware, microcode."""

    title: str = ""
    findings: tuple[Finding, ...] = ()
    verdicts: tuple[Verdict, ...] = ()  # in the file `at_s` is since 1970


class _File(msgspec.Struct, frozen=True, kw_only=True):
    packages_findings: int = VERSION
    hosts: dict[str, Known] = {}


class Findings:
    """The file. It is read when it has changed."""

    def __init__(self, path: Path | None, host: str, clock: Clock, title: str = "") -> None:
        """`path`: None, nothing is kept beyond this process. `host`: the key of this one."""
        self.path = path
        self._host = host
        self._title = title
        self._clock = clock
        self._file = _File()
        self._mark: tuple[int, int] | None = None  # inode and time of change of what was read
        self._problem: str | None = None
        self._unreadable = False

    def read(self) -> tuple[tuple[Finding, ...], tuple[Verdict, ...], str | None]:
        """What is known of this host, the verdicts with times of this boot; and what is wrong with the file."""
        self._look()
        known = self._file.hosts.get(self._host, Known())
        since_s = self._boot_s()
        verdicts = tuple(msgspec.structs.replace(each, at_s=each.at_s - since_s) for each in known.verdicts)
        return known.findings, verdicts, self._problem

    def add(self, findings: Iterable[Finding] = (), verdicts: Iterable[Verdict] = ()) -> bool:
        """Keep these, too; a finding takes the place of what was found of that state before, but what only watching has
        found does not take that of a test. False: nothing of it is new. Raises HostError when it cannot be written."""
        self._look()
        if self._unreadable:
            raise HostError(str(self._problem), hint="it is not written over what cannot be read")
        known = self._file.hosts.get(self._host, Known())
        of_state = {(each.package, each.state): each for each in known.findings}
        for each in findings:
            before = of_state.get((each.package, each.state))
            if before is None or each.how != "passive" or _overturns(each, before):
                of_state[each.package, each.state] = each
        since_s = self._boot_s()
        dated = [msgspec.structs.replace(each, at_s=each.at_s + since_s) for each in verdicts]
        dated = [each for each in dated if not any(_same(each, other) for other in known.verdicts)]
        new = Known(
            title=self._title or known.title,
            findings=tuple(of_state[key] for key in sorted(of_state)),
            verdicts=(*known.verdicts, *dated)[-_MOST_VERDICTS:],
        )
        if new == known:
            return False
        self._file = _File(hosts={**self._file.hosts, self._host: new})
        self._write()
        return True

    def _look(self) -> None:
        if self.path is None:
            return
        try:
            found = self.path.stat()
            mark = found.st_ino, found.st_mtime_ns
            if mark == self._mark:
                return
            content = self.path.read_bytes()
        except FileNotFoundError:
            self._file, self._mark, self._problem, self._unreadable = _File(), None, None, False
            return
        except OSError as error:
            self._problem = (
                f"{self.path}: {error.strerror}, so what was found out about this host is not known"
            )
            self._unreadable = True
            return
        self._file, self._mark, self._problem = self._parsed(content), mark, self._problem

    def _parsed(self, content: bytes) -> _File:
        self._problem, self._unreadable = None, False
        try:
            found = msgspec.json.decode(content, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._problem = f"{self.path}: damaged ({error}), so it is not used ({_HINT})"
            return _File()
        if found.packages_findings != VERSION:
            self._problem = (
                f"{self.path}: version {found.packages_findings} is not known, so it is not used ({_HINT})"
            )
            return _File()
        return found

    def _write(self) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._problem is not None:
                os.replace(self.path, self.path.with_name(self.path.name + _DAMAGED))
            wholefile.replace(self.path, msgspec.json.encode(self._file) + b"\n", durable=True)
            found = self.path.stat()
        except OSError as error:
            raise HostError(
                f"{self.path}: {error.strerror}", hint="what was found out about this host is kept there"
            ) from None
        self._mark, self._problem = (found.st_ino, found.st_mtime_ns), None

    def _boot_s(self) -> float:
        """When this boot began, by the wall clock."""
        return (self._clock.realtime_ns() - self._clock.boottime_ns()) / 1e9


def _overturns(new: Finding, before: Finding) -> bool:
    """A proof by watching that a state is independent holds against what a test has only made likely."""
    return before.how == "passive" or (
        new.independence == "independent" and before.independence != "independent"
    )


def _same(one: Verdict, other: Verdict) -> bool:
    """Whether they are of one trial: the wall clock may have been set meanwhile."""
    return one.package == other.package and abs(one.at_s - other.at_s) < _SAME_S
