"""The pre-copier: keeps destinations close behind a region that a program is writing to, and saves the rest at the
outage.

Used by `sustain ship --region`, which the supervisor runs beside the program:

    Precopier(PrecopyConfig(region="nv.img", …)).run()

While the program runs: which pages changed (`track`) → bring them to each destination (`stream`) → say how it stands
(`status`), as fast as `pace` allows. It seals nothing meanwhile. When asked to finish (SIGUSR1, or from the start):
freeze the program, harvest once more, send, flush, and seal on every destination. SIGUSR2 lets the program go on, from
whatever step. SIGTERM ends it, and lets the program go on before.

Killed at any moment it leaves a program that runs or stands still, and unsealed or sealed destinations; the next one
thaws (or, when it is to finish, freezes) and compares everything, since nobody knows what its predecessor saw.

Rejected: sealing consistent points while the program runs. Nobody but the program knows when its memory is
consistent; a program that survives a power cut survives the moment at which it was frozen, and no other one.
"""

import os
import signal
import sys
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import partial
from types import FrameType

from sustain.clock import Clock, SystemClock
from sustain.errors import RegionBusy, SustainError
from sustain.host import maps
from sustain.host.freezer import Freezer, SignalFreezer
from sustain.host.processes import Identity, parents
from sustain.powerfail.budget import budget_bytes
from sustain.powerfail.regions.manifest import RegionIdentity
from sustain.powerfail.regions.medium import open_medium
from sustain.powerfail.regions.pace import SLICE_S, Need, Pace, PacePolicy, decide_pace, interval_s, phase_of
from sustain.powerfail.regions.sink import open_sink
from sustain.powerfail.regions.status import RegionStatus, StatusFile, unused_number, usable_s
from sustain.powerfail.regions.stream import Goal, Stream, StreamConfig
from sustain.powerfail.regions.track import ContentTracker, Harvest, Tracker, Way, open_tracker
from sustain.replication.credentials import NO_CREDENTIALS, Credentials
from sustain.signal_event import SignalEvent
from sustain.units import format_duration, format_size

_AUDIT_PAGES = 512
_FREEZE_TIMEOUT_S = 10.0
_SHORT_FREEZE_TIMEOUT_S = 1.0
_RETRY_S = 0.2
_HARVEST_SHARE = 10  # a harvest looks at all processes: it takes a tenth of the time at most


@dataclass(frozen=True)
class PrecopyConfig:
    """What to ship, and how. Rates in bytes per second. `uuid` is the region's, `seal_number` that of its next seal."""

    region: str
    name: str
    uuid: bytes
    epoch: int
    seal_number: int
    owner: str
    urls: tuple[tuple[str, bool], ...]  # with whether it is required
    status_file: str
    power_file: str | None = None
    credentials: Credentials = NO_CREDENTIALS
    freezer: Freezer = field(default_factory=lambda: SignalFreezer(None))
    track: Way = Way.AUTO
    rate: float = 64 << 20
    scan_rate: float = 256 << 20
    policy: PacePolicy = field(default_factory=PacePolicy)
    evacuate: bool = False


class Precopier:
    """One region, until SIGTERM."""

    def __init__(self, config: PrecopyConfig, clock: Clock | None = None) -> None:
        """Raises RegionError."""
        self._config = config
        self._clock = clock or SystemClock()
        self._medium = open_medium(config.region)
        self._status = StatusFile(config.status_file)
        self._bell = SignalEvent()
        self._stop = False
        self._asked = config.evacuate  # to finish
        self._goal: Goal | None = None
        self._number = max(config.seal_number, unused_number(config.status_file, config.epoch))
        self._frozen_at_ns: int | None = None  # for a final pass
        self._still = False  # in a slice
        self._error: str | None = None
        self._tracker: Tracker = ContentTracker("not looked at yet")
        self._tracking = "not looked at yet"
        self._harvest = Harvest(everything=True, why="not looked at yet")
        self._next_harvest_s = self._earliest_s = 0.0
        self._pace = Pace(hurry=False, still=0.0, load=None)
        self._usable_s: float | None = None
        self._budget_bytes: int | None = None
        self._dirty_bytes: int | None = None
        self._audit_at = 0
        self._audited: set[int] = set()
        self._phase = ""
        self._unwritten = False
        identity = RegionIdentity(config.uuid, self._medium.size_bytes, config.name)
        shared = StreamConfig(identity, config.epoch, config.owner, config.rate, config.scan_rate)
        self._streams = [
            Stream(
                url,
                partial(open_sink, url.partition("?")[0], credentials=config.credentials, name=config.name),
                self._medium,
                shared,
                self._clock,
                self._bell.set,
                required=required,
            )
            for url, required in config.urls
        ]

    def run(self) -> None:
        """Until SIGTERM or SIGINT. The program is never left frozen by an orderly end."""
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._write_status()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1, signal.SIGUSR2})
        try:
            if self._asked:
                self._finish()
            else:
                self._thaw()  # what a predecessor may have left
            self._tracker = self._open_tracker()
            for each in self._streams:
                each.start()
            while not self._stop:
                self._bell.wait(self._step())
                self._bell.clear()
        finally:
            self._end()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in (signal.SIGUSR1, signal.SIGUSR2):
            self._asked = number == signal.SIGUSR1
        else:
            self._stop = True
        self._bell.set()

    def _end(self) -> None:
        self._asked = False
        try:
            if (self._goal is not None or self._frozen_at_ns is not None) and self._is_mapped():
                self._go_on()
            self._thaw()
        finally:
            started = [each for each in self._streams if each.ident is not None]
            for each in started:
                each.stop(0)
            for each in started:
                each.stop()
            self._tracker.close()
            self._medium.close()

    def _is_mapped(self) -> bool:
        """Whether anybody is left who could change the region. When not, a seal stands: nobody breaks it."""
        try:
            return any(each.writes for each in maps.mappers(maps.key_of(self._config.region)).found)
        except SustainError:
            return True

    def _step(self) -> float:
        """Whatever is due; seconds until the next time."""
        if self._asked and self._goal is None:
            self._finish()
        elif not self._asked and (self._goal is not None or self._frozen_at_ns is not None):
            self._go_on()
        if self._goal is not None or self._frozen_at_ns is not None or self._asked:
            self._write_status()
            return _RETRY_S
        now_s = time.monotonic()
        if now_s >= self._next_harvest_s and not self._comparing():
            self._look()
            self._earliest_s = now_s + _HARVEST_SHARE * (time.monotonic() - now_s)
            faults = self._tracker.way is not Way.CONTENT
            wait_s = interval_s(self._harvest.pages, self._pace, self._config.policy, faults=faults)
            self._next_harvest_s = max(now_s + wait_s, self._earliest_s)
        self._keep_pace()
        self._write_status()
        return SLICE_S if self._pace.load is not None else min(0.25, self._config.policy.interval_s)

    # changed pages

    def _open_tracker(self) -> Tracker:
        try:
            return open_tracker(self._config.region, self._medium.pages, self._config.track)
        except SustainError as error:
            if self._config.track is not Way.AUTO:
                raise
            return ContentTracker(str(error))

    def _look(self) -> None:
        """Harvest, and mark what it names. The program may be running, or stand still for good."""
        stop = self._tracker.stops and not (self._still or self._frozen_at_ns is not None)
        try:
            if stop:
                self._freeze(_SHORT_FREEZE_TIMEOUT_S)
            found = self._tracker.harvest()
        except SustainError as error:
            found = Harvest(everything=True, why=str(error))
        finally:
            if stop:
                self._config.freezer.thaw()
        self._harvest = found
        self._check_audit(found)
        for each in self._streams:
            each.mark(found.runs) if not found.everything else each.suspect_all()
        tracking = f"{self._tracker.way}, {self._tracker.why}"
        if tracking != self._tracking:
            self._tracking = tracking
            say(f"changed pages are found by {tracking}")
        self._audit()

    def _audit(self) -> None:
        """Compare some pages that the tracker calls unchanged: it is believed, not trusted."""
        if self._harvest.everything or self._goal is not None:
            return
        count = min(_AUDIT_PAGES, self._medium.pages - self._audit_at)
        for each in self._streams:
            if each.connected and (found := each.audit(self._audit_at, count)) is not None:
                self._audited.update(found)  # written since the harvest, or missed by it: the next one tells
                self._audit_at = (self._audit_at + count) % self._medium.pages
                return

    def _comparing(self) -> bool:
        """Whether every destination still compares everything: to suspect everything anew would never let it end."""
        connected = [each for each in self._streams if each.connected]
        return bool(self._harvest.everything and connected and all(each.comparing for each in connected))

    def _check_audit(self, found: Harvest) -> None:
        """Whether the pages that the audit found different are named now."""
        audited, self._audited = self._audited, set()
        if found.everything:
            return
        starts = [first for first, _ in found.runs]
        for page in sorted(audited):
            at = bisect_right(starts, page) - 1
            if at < 0 or page >= sum(found.runs[at]):
                say(f"{self._tracker.way} missed a change of page {page}: contents are compared from now on")
                self._tracker.close()
                self._tracker = ContentTracker(f"the audit found that page {page} had been missed")
                self._harvest = Harvest(everything=True, why=self._tracker.why)
                for each in self._streams:
                    each.suspect_all()
                return

    # the budget

    def _keep_pace(self) -> None:
        """Copy faster, and hold the program back, when more is behind than the battery allows."""
        self._usable_s = None if self._config.power_file is None else usable_s(self._config.power_file)
        seconds = self._usable_s
        self._dirty_bytes = self._tracker.peek_bytes()
        budgets = {
            each: None if seconds is None or each.bandwidth is None else budget_bytes(seconds, each.bandwidth)
            for each in self._streams
            if each.connected and each.in_step
        }
        self._budget_bytes = max((each for each in budgets.values() if each is not None), default=None)
        needs = [
            Need(each.behind_bytes + (self._dirty_bytes or 0), budget) for each, budget in budgets.items()
        ]
        self._pace = decide_pace(needs, self._config.policy)
        for each in self._streams:
            each.hurry(self._pace.hurry)
        if self._pace.hurry:
            soon_s = max(self._earliest_s, time.monotonic() + self._config.policy.hurried_interval_s)
            self._next_harvest_s = min(self._next_harvest_s, soon_s)
        self._hold_back()

    def _hold_back(self) -> None:
        if self._pace.still <= 0:
            if self._still:
                self._thaw()
            return
        try:
            self._freeze(_SHORT_FREEZE_TIMEOUT_S)
        except SustainError as error:
            self._error = str(error)
            self._thaw()
            return
        self._still = True
        self._write_status()
        if self._pace.still < 1:
            self._bell.wait(self._pace.still * SLICE_S)
            if not self._asked:  # otherwise it is about to be frozen for good
                self._thaw()

    # the end, and back from it

    def _finish(self) -> None:
        """Freeze, harvest, and let every destination finish. Asked again when freezing fails."""
        began_s = time.monotonic()
        try:
            self._freeze(_FREEZE_TIMEOUT_S)
        except SustainError as error:
            if self._error != str(error):
                say(f"cannot freeze: {error}")
            self._error = str(error)
            return
        self._error = None
        self._frozen_at_ns = self._clock.boottime_ns()
        frozen_s = time.monotonic() - began_s
        self._look()
        self._goal = Goal(self._number, "power outage")
        for each in self._streams:
            each.finish(self._goal)
        behind = max((each.behind_bytes for each in self._streams), default=0)
        say(
            f"frozen in {format_duration(frozen_s)}; seal {self._number}; "
            + ("everything is compared: " + self._harvest.why if self._harvest.everything else "")
            + ("" if self._harvest.everything else f"{format_size(behind)} to send at most")
        )
        self._write_status()

    def _go_on(self) -> None:
        """The program runs again; what was sealed is broken by the next write there."""
        for each in self._streams:
            each.resume()
        if self._goal is not None:
            self._number += 1
        self._goal = None
        self._thaw()
        self._next_harvest_s = 0.0
        say("the program goes on")
        self._write_status()

    def _freeze(self, timeout_s: float) -> None:
        """The program, and whoever else writes to the region through a mapping."""
        freezer = self._config.freezer
        freezer.freeze(timeout_s)
        if not isinstance(freezer, SignalFreezer):
            return  # a cgroup or a guest is what the operator says it is
        key = maps.key_of(self._config.region)
        above = parents(os.getpid())
        while True:
            members = freezer.members() | freezer.others
            strangers = {each.who for each in maps.mappers(key).found if each.writes} - members
            if not strangers:
                return
            for each in strangers:
                if each.pid == os.getpid() or each.pid in above:
                    raise RegionBusy(
                        f"process {each.pid} maps the region for writing and started this one",
                        hint="the program must be another process than the one that ships its region",
                    )
            freezer.others |= strangers
            freezer.freeze(timeout_s)

    def _thaw(self) -> None:
        freezer = self._config.freezer
        if isinstance(freezer, SignalFreezer):
            freezer.others |= self._outsiders(freezer)
        freezer.thaw()
        self._still, self._frozen_at_ns = False, None
        if isinstance(freezer, SignalFreezer):
            freezer.others.clear()

    def _outsiders(self, freezer: SignalFreezer) -> set[Identity]:
        """Who else writes to it: a predecessor may have stopped them."""
        try:
            found = maps.mappers(maps.key_of(self._config.region)).found
        except SustainError:
            return set()
        own = {os.getpid(), *parents(os.getpid())}
        return {each.who for each in found if each.writes and each.who.pid not in own} - freezer.members()

    def _write_status(self) -> None:
        destinations = tuple(each.status() for each in self._streams)
        phase = "precopy"
        if self._goal is not None:
            phase = phase_of([(each.state, each.required) for each in destinations])
        elif self._asked:
            phase = "failed" if self._error else "final"
        changed, self._phase = phase != self._phase, phase
        if changed and phase in ("sealed", "failed"):
            lasted_s = (self._clock.boottime_ns() - (self._frozen_at_ns or self._clock.boottime_ns())) / 1e9
            say(f"{phase}, {format_duration(lasted_s)} after the program was frozen")
        status = RegionStatus(
            pid=os.getpid(),
            epoch=self._config.epoch,
            phase=phase,
            seal=self._number,
            dirty_bytes=self._dirty_bytes,
            tracker=str(self._tracker.way),
            tracker_why=self._harvest.why if self._harvest.everything else self._tracker.why,
            frozen_at_boottime_ns=self._frozen_at_ns,
            destinations=destinations,
            usable_s=self._usable_s,
            budget_bytes=self._budget_bytes,
            still_share=self._pace.still,
            error=self._error,
            updated_boottime_ns=self._clock.boottime_ns(),
        )
        try:
            self._status.write(status, now=changed)
        except SustainError as error:  # no room for it: the region is more important
            if not self._unwritten:
                say(str(error))
            self._unwritten = True


def say(text: str) -> None:
    """A line for people."""
    print(f"sustain ship: {text}", file=sys.stderr, flush=True)
