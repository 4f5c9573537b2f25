"""The agent: schedulers in threads of their own, from its start until SIGTERM, and what can be asked of it.

Used by `sustain agent` and `sustain memory run`. The main thread waits for signals and tells the service manager that
all loops come round. When one does not it stays silent, and is killed and started anew; the first act of a new agent is
to put back what the old one changed. An agent of which one scheduler ends, ends too: half an agent only looks well.
"""

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

import sustain
from sustain.agent.config import AgentSection, address
from sustain.agent.http import Page, Server
from sustain.agent.metrics import AnyLoop, Metrics
from sustain.agent.systemd import ServiceManager
from sustain.clock import Clock
from sustain.errors import AgentError, SustainError
from sustain.schedulers.loop import Loop, Scheduler, Tick

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STOP_WITHIN_S = 60.0
_LOOK_EVERY_S = 5.0
_HUNG_PERIODS = 10  # at least, that a loop which hangs has not come round

AnyScheduler = Scheduler[Any, Any, Any, Any]


class Agent:
    """Runs `schedulers` as `section` says. Raises AgentError when its address cannot be had."""

    def __init__(
        self,
        section: AgentSection,
        schedulers: Sequence[AnyScheduler],
        clock: Clock,
        *,
        act: bool = True,
        tell: Callable[[str], None],
        environ: Any = os.environ,
    ) -> None:
        self._clock = clock
        self._tell = tell
        self._hung_after_s = section.hung_after_s
        self._manager = ServiceManager(environ)
        self._began_s = clock.boottime_ns() / 1e9
        listeners = [PlanLog(section.log, tell)] if section.log else []
        self._loops: list[AnyLoop] = [
            Loop(
                each,
                clock,
                act=act,
                blind_after_s=section.blind_after_s,
                tell=lambda line, name=each.name: tell(f"{name}: {line}"),  # type: ignore[misc]
                listeners=listeners,
            )
            for each in schedulers
        ]
        self._ended: list[str] = []  # schedulers that ended, why
        self._metrics = Metrics(self._loops)
        where = address(section.listen)
        self._server = Server(where, self.page) if where else None

    @property
    def where(self) -> tuple[str, int] | str | None:
        """Where it listens."""
        return self._server.address if self._server else None

    def run(self) -> None:
        """Until SIGTERM, SIGINT or SIGHUP; call it in the main thread. Raises AgentError when a scheduler ended by
        itself, or something could not be put back."""
        threads = [
            threading.Thread(target=self._run, args=(loop,), name=loop.scheduler.name, daemon=True)
            for loop in self._loops
        ]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)  # inherited: no thread is ended by them
        # Threads from before, as the server's, do not block them, and get one while this thread is not waiting.
        asked: list[int] = []
        handlers = {number: signal.signal(number, lambda got, _: asked.append(got)) for number in _STOP}
        try:
            for thread in threads:
                thread.start()
            self._notify(READY=1, STATUS=f"{len(threads)} schedulers")
            every_s = min(_LOOK_EVERY_S, (self._manager.watchdog_s or _LOOK_EVERY_S) / 3)
            while not asked and signal.sigtimedwait(_STOP, every_s) is None and not self._ended:
                if not self._stuck():
                    self._notify(WATCHDOG=1)
            self._notify(STOPPING=1)
            self._stop(threads)
        finally:
            if self._server is not None:
                self._server.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def troubles(self) -> list[str]:
        """What is not as it should be."""
        found = self._ended + [f"{name} hangs" for name in self._stuck()]
        return found + [f"{loop.scheduler.name}: {loop.failure}" for loop in self._loops if loop.failure]

    def page(self, path: str, words: Mapping[str, str]) -> Page | None:
        """The answer to GET `path?words`."""
        if path == "/healthz":
            troubles = self.troubles()
            return Page(
                ("\n".join(troubles or ["ok"]) + "\n").encode(), "text/plain", 503 if troubles else 200
            )
        if path == "/metrics":
            return self._metrics.page()
        if path == "/status":
            return Page(msgspec.json.encode(self.status()))
        for loop in self._loops:
            name, _, question = path.removeprefix("/schedulers/").partition("/")
            if path.startswith("/schedulers/") and name == loop.scheduler.name:
                return self._answer(loop, question or "plan", words)
        return None

    def status(self) -> dict[str, Any]:
        """The shape is in docs/json.md."""
        return {
            "version": sustain.__version__,
            "host": platform.node(),
            "pid": os.getpid(),
            "uptime_s": self._now_s() - self._began_s,
            "troubles": self.troubles(),
            "schedulers": [self._status(loop) for loop in self._loops],
        }

    def _status(self, loop: AnyLoop) -> dict[str, Any]:
        tick: Any = loop.good
        counts = loop.counts
        return {
            "name": loop.scheduler.name,
            "period_s": loop.scheduler.period_s,
            "acts": loop.acts,
            "problem": loop.failure or None,
            "blind_s": loop.blind_s,
            "watched": loop.alarms.watched,
            "unwatched": loop.alarms.problems,
            "rung": loop.alarms.rung,
            **{field: getattr(counts, field) for field in counts.__slots__},
            "last": None
            if tick is None
            else {
                "age_s": self._now_s() - tick.at_s,
                "sense_s": tick.sense_s,
                "decide_s": tick.decide_s,
                "act_s": tick.act_s,
                "actions": len(tick.plan.actions),
                "refused": sum(not effect.done for effect in tick.effects),
            },
        }

    def _answer(self, loop: AnyLoop, question: str, words: Mapping[str, str]) -> Page:
        """What the scheduler says of its last good tick, and how old that is."""
        tick = loop.good
        if tick is None:
            return _refusal(
                AgentError(loop.failure or "nothing has been seen yet", hint="ask again later"), 503
            )
        about = {
            "scheduler": loop.scheduler.name,
            "age_s": self._now_s() - tick.at_s,
            "acts": loop.acts,
            "problem": loop.failure or None,
        }
        try:
            return Page(msgspec.json.encode(about | loop.scheduler.ask(question, words, tick)))
        except SustainError as error:
            return _refusal(error, 404)

    def _run(self, loop: AnyLoop) -> None:
        try:
            loop.run()
        except Exception as error:  # noqa: BLE001 - said, and the agent ends with it
            self._ended.append(f"{loop.scheduler.name} ended: {type(error).__name__}: {error}")

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        for loop in self._loops:
            loop.stop()
        end = time.monotonic() + _STOP_WITHIN_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        left = [f"{thread.name} does not end" for thread in threads if thread.is_alive()] + self._ended
        left += [each for loop in self._loops for each in loop.left]
        if left:
            raise AgentError(
                "; ".join(left), hint="`sustain agent restore --config FILE` puts back what is left"
            )

    def _stuck(self) -> list[str]:
        now_s = self._now_s()
        return [
            loop.scheduler.name
            for loop in self._loops
            if now_s - loop.beat_s > max(self._hung_after_s, _HUNG_PERIODS * loop.scheduler.period_s)
        ]

    def _notify(self, **lines: str | int) -> None:
        try:
            self._manager.tell(**lines)
        except OSError as error:
            self._tell(f"the service manager cannot be told {lines}: {error}")

    def _now_s(self) -> float:
        return self._clock.boottime_ns() / 1e9


def _refusal(error: SustainError, status: int) -> Page:
    return Page(msgspec.json.encode({"error": str(error), "hint": error.hint}), status=status)


class PlanLog:
    """A line of JSON for each tick in which something was done, or would have been, or that failed. The file is opened
    for each line, so that it can be rotated at any time."""

    def __init__(self, path: str, tell: Callable[[str], None]) -> None:
        self._path, self._tell, self._failed = Path(path), tell, False

    def __call__(self, loop: AnyLoop, tick: Tick[Any, Any, Any, Any]) -> None:
        actions = tick.plan.actions if tick.plan is not None else ()
        if not actions and not tick.problem:
            return
        line = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "at_s": tick.at_s,
            "scheduler": loop.scheduler.name,
            "problem": tick.problem or None,
            "actions": actions,
            "effects": tick.effects,
        }
        try:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(line) + b"\n")
        except OSError as error:
            if not self._failed:
                self._tell(f"{self._path}: cannot be written: {error.strerror}")
            self._failed = True
        else:
            self._failed = False
