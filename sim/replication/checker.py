"""What must hold in every simulated run. Sees everything, unlike the hosts.

- Recovered is what was durable: whatever is opened, by a command, a receiver or a promotion, after a kill or a power
  cut, reaches at least as far as commits had returned there, and as its acknowledgements had said.
- What is there is a prefix: the contents of a store, whenever they are looked at, are exactly those of one commit that
  returned, after exactly those before it; so on the host that made them and on every standby.
- One writer: an epoch has one host's commits; no commit returns after the deadline of its lease, by its own host's
  clock; none of an older epoch after one of a newer.
- Older epochs are refused: a host that holds a copy and has let in an epoch never lets in an older one, whatever
  happened to it in between.
- The log is kept: what a required destination has not acknowledged is in the log, unless it was let go ("needs a
  snapshot").
- Acknowledged is safe: a commit that a standby held, as its primary heard before its deadline, is in every later
  primary's store, unless each host that held it was down, stopped or cut off around the takeover. With k copies, that
  takes k hosts.
- Nothing is lost in silence: a commit that returned and is in no later primary's store is in a file of orphans.
- In the end, with all faults gone, one host commits and all others follow it.
"""

from __future__ import annotations

import glob
import json
import os
from typing import TYPE_CHECKING, Any

from sim.replication.command import MARK, Commit, Oracle
from sim.replication.disk import Medium, SimEngine, read_state
from sustain.errors import StoreCorrupt, SustainError
from sustain.replication.wire import Hello

if TYPE_CHECKING:
    from sim.replication.host import Host
    from sim.replication.world import World

ELECTORATE_S = 1.0  # a standby counts as present when nothing happened to it for so long before a takeover
FOLLOWS_S = 0.6  # how far behind a standby may be in the end


class Violation(BaseException):
    """Something happened that must not. No Exception, which the product might take for a peer's doing."""


class Checker:
    """Told of everything; raises Violation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._oracle: Oracle = world.oracle
        self._writers: dict[int, str] = {}
        self._newest_epoch = 0
        self._admitted: dict[str, int] = {}
        self._newest = 0  # commit that the newest primary has
        self._primary = ""
        self.lost: set[int] = set()
        self._acked: list[Commit] = []
        self.promotions = self.looks = self.snapshots = 0
        self.last_s: dict[str, float] = {}  # host -> when it committed last
        self.recent: list[tuple[float, int]] = []  # (when, commit)

    # what a store holds

    def opened(self, host: Host, medium: Medium, end: int) -> None:
        """Recovery has found `end`."""
        if end < medium.floor_lsn:
            raise Violation(
                f"{host.name}'s {os.path.basename(medium.path)} ends at {end} when it is opened; it was said to hold "
                f"everything up to {medium.floor_lsn} durably"
            )

    def look(self, host: Host) -> int | None:
        """Read a host's store from outside; its newest commit. None when it cannot be read now."""
        try:
            position, (number, wrong) = read_state(host.path, lambda file: self._oracle.identify(file.pread))
        except StoreCorrupt as error:
            if self._world.words(host) is None:
                return None  # it has lost power, and nobody has recovered it
            raise Violation(f"{host.name}: {error}") from None
        except SustainError:
            return None
        self.looks += 1
        return self._judge(host, number, wrong, position)

    def _judge(self, host: Host, number: int, wrong: str, position: int) -> int:
        if wrong:
            raise Violation(f"{host.name}: {wrong}")
        lsn = self._oracle.commits[number].lsn
        if lsn is None:
            raise Violation(f"{host.name} holds commit {number}, which never returned")
        if position < lsn:
            raise Violation(f"{host.name} is at {position} with commit {number}, which ends at {lsn}")
        return number

    # the primary

    def promoted(self, host: Host, epoch: int, start: int) -> None:
        self._world.tell(host, f"epoch {epoch} begins at {start}")
        self.promotions += 1

    def starts(self, host: Host, epoch: int, engine: SimEngine) -> int:
        """A command finds its store; the commit it goes on from."""
        number, wrong = self._oracle.identify(engine.file.pread)
        self._judge(host, number, wrong, engine.position)
        self._world.tell(host, f"the command starts in epoch {epoch} with commit {number}")
        self._taken_over(host, epoch, number)
        return number

    def _taken_over(self, host: Host, epoch: int, number: int) -> None:
        for commit in self._acked:
            if commit.number in self.lost or self._oracle.within(commit.number, number):
                continue
            present = [
                name for name in sorted(commit.acked) if name == host.name or self._present(name, commit)
            ]
            if present:
                raise Violation(
                    f"{host.name} goes on in epoch {epoch} without commit {commit.number}, which {present[0]} "
                    "had acknowledged and holds"
                )
        for each in self._oracle.line(self._newest):
            if self._oracle.within(each, number):
                break
            self.lost.add(each)
            self._world.tell(host, f"lacks commit {each} of {self._oracle.commits[each].host}")
        self._newest, self._primary = number, host.name
        self._acked = [each for each in self._acked if each.number not in self.lost][-300:]

    def _present(self, name: str, commit: Commit) -> bool:
        other = self._world.named(name)
        quiet_s = self._world.kernel.now_ns / 1e9 - other.disturbed_s
        if other.supervising is None or quiet_s < ELECTORATE_S:
            return False
        held = self.look(other)
        return held is not None and self._oracle.within(commit.number, held)

    def committed(self, host: Host, engine: SimEngine, commit: Commit) -> None:
        """A commit has returned."""
        now_s = self._world.kernel.now_ns / 1e9
        writer = self._writers.setdefault(commit.epoch, host.name)
        if writer != host.name:
            raise Violation(f"{host.name} commits in epoch {commit.epoch}, as {writer} did")
        if commit.epoch < self._newest_epoch:
            raise Violation(
                f"{host.name} commits in epoch {commit.epoch} after a commit in {self._newest_epoch}"
            )
        self._newest_epoch = commit.epoch
        words = engine.words()
        late_ns = host.clock.boottime_ns() - words["lease_deadline_ns"]
        if words["lease_epoch"] == commit.epoch and late_ns > 0:
            raise Violation(
                f"commit {commit.number} of {host.name} returns {late_ns / 1e9:.3f} s after its deadline"
            )
        self.kept(host, engine)
        self._newest = commit.number
        self.last_s[host.name] = now_s
        self.recent.append((now_s, commit.number))

    def kept(self, host: Host, engine: SimEngine) -> None:
        """The log holds what required destinations lack."""
        tail = engine.words()["tail"]
        for each in engine.destinations():
            acked, state = each["acked"], each["state"]
            if state in ("needs-snapshot", "snapshot"):
                continue  # what it holds already counts no more
            if each["required"] and acked is not None and tail > acked:
                raise Violation(
                    f"{host.name} has trimmed its log to {tail}, {each['url']} is required and holds {acked} ({state})"
                )

    def acknowledged(self, host: Host, url: str, lsn: int) -> None:
        """A primary has heard that a destination holds everything before `lsn`."""
        other = self._world.at(url)
        if not os.path.exists(other.path):
            raise Violation(f"{other.name} has acknowledged {lsn}, and has no store")
        end, medium = self._durable(other)
        if end is None or medium is None:
            return  # it has lost power, and not looked yet
        if lsn > end and self._log_epoch(other) <= self._log_epoch(host):
            raise Violation(f"{other.name} has acknowledged {lsn}, and holds {end} durably")
        medium.floor_lsn = max(medium.floor_lsn, min(lsn, end))
        if host.name == self._primary and self._world.accepts(host):
            self._note_acked(other.name, lsn)

    def _note_acked(self, name: str, lsn: int) -> None:
        """Of the line that the newest primary writes, up to a position."""
        at = self._newest
        while at:
            commit = self._oracle.commits[at]
            if commit.lsn is not None and commit.lsn <= lsn:
                if name in commit.acked:
                    return  # and all before it
                commit.acked.add(name)
                if len(commit.acked) == 1:
                    self._acked.append(commit)
            at = commit.parent

    def _durable(self, host: Host) -> tuple[int | None, Medium | None]:
        words = self._world.words(host)
        return (None, None) if words is None else (words["committed"], host.disk.medium(host.path))

    def _log_epoch(self, host: Host) -> int:
        history = self._world.block(host)["history"]
        return int(history[-1][0]) if history else 0

    # the standbys

    def admitted(self, host: Host, hello: Hello, standby: Any) -> None:
        newest = self._admitted.get(host.name, 0)
        if hello.epoch < newest:
            raise Violation(f"{host.name} lets in epoch {hello.epoch} of {hello.name}, after epoch {newest}")
        if standby.replica is not None:
            self._admitted[host.name] = hello.epoch

    # the end

    def at_the_end(self) -> None:
        world = self._world
        now_s = world.kernel.now_ns / 1e9
        writers = [name for name, when_s in self.last_s.items() if now_s - when_s < FOLLOWS_S]
        if len(writers) != 1:
            raise Violation(f"with all faults gone, {' and '.join(sorted(writers)) or 'nobody'} commits")
        before = [number for when_s, number in self.recent if when_s < now_s - FOLLOWS_S]
        for host in world.hosts:
            held = self.look(host)
            if held is None:
                raise Violation(f"with all faults gone, {host.name} has no store that can be read")
            if before and not self._oracle.within(before[-1], held):
                raise Violation(f"with all faults gone, {host.name} holds commit {held} and not {before[-1]}")
        self._nothing_lost_in_silence()

    def _nothing_lost_in_silence(self) -> None:
        kept, gone_bytes = b"", 0
        for host in self._world.hosts:
            for name in sorted(glob.glob(f"{glob.escape(host.path)}.orphan-*")):
                with open(name, "rb") as file:
                    data = file.read()
                if name.endswith(".json"):
                    gone_bytes += json.loads(data)["lost_bytes"]
                else:
                    kept += data
        self.lost.difference_update(self._oracle.line(self._newest))  # some come back with their host
        for number in sorted(self.lost):
            commit = self._oracle.commits[number]
            if MARK + number.to_bytes(8, "little") not in kept and not gone_bytes:
                raise Violation(f"commit {number} of {commit.host} is nowhere, and no file of orphans has it")
