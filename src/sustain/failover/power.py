"""The power source as a supervisor watches it: asked by a thread of its own, since a daemon may hang.

Used by `supervise`. The thread reads, lets `powerfail.decide` judge, and logs in with upsd, so that upsd's primary
waits for this host before it cuts the power; when the host is `ready` it logs out. All else is a look at values.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from sustain.clock import Clock
from sustain.errors import SustainError
from sustain.failover.types import PowerView
from sustain.powerfail.budget import BudgetPolicy, usable_s
from sustain.powerfail.decide import PowerMemory, PowerPolicy, decide
from sustain.powerfail.sources import PowerSource


@dataclass(frozen=True, slots=True)
class Watching:
    """How a source is watched. Times in seconds."""

    poll_s: float = 1.0
    power: PowerPolicy = field(default_factory=PowerPolicy)
    budget: BudgetPolicy = field(default_factory=BudgetPolicy)


class PowerWatch:
    """One thread, one source. Every method returns at once."""

    def __init__(
        self,
        source: PowerSource,
        watching: Watching,
        clock: Clock,
        *,
        wake: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self._source = source
        self._watching = watching
        self._clock = clock
        self._wake = wake
        self._tell = tell
        self._lock = threading.Lock()
        self._memory = PowerMemory()
        self._ready = False
        self._said = ""
        self._stir = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def view(self, now_ns: int) -> PowerView:
        """What is the matter now."""
        with self._lock:
            memory = self._memory
        seconds, why = usable_s(memory, self._watching.budget, now_ns)
        return PowerView(memory.power, memory.reason, seconds, why)

    def set_ready(self, ready: bool) -> None:
        """Whether the power may be cut, as far as this host is concerned."""
        if ready is not self._ready:
            self._ready = ready
            self._stir.set()

    def stop(self, timeout_s: float) -> None:
        """End the thread; one that hangs in a daemon is left behind."""
        self._ending = True
        self._stir.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while not self._ending:
                self._read()
                self._be_counted()
                self._stir.wait(self._watching.poll_s)
                self._stir.clear()
        finally:
            self._source.close()

    def _read(self) -> None:
        reading = self._source.read()
        before = self._memory
        memory = decide(reading, before, self._watching.power, self._clock.boottime_ns())
        with self._lock:
            self._memory = memory
        if memory.power is not before.power:
            self._wake()

    def _be_counted(self) -> None:
        """Logged in with the source while this host needs the power, logged out when it does not."""
        wanted = not self._ready
        if self._source.counted in (None, wanted):
            return
        try:
            if wanted:
                self._source.log_in()
            else:
                self._source.log_out()
                self._tell("the power source is told that it may cut the power")
            self._said = ""
        except SustainError as error:
            if str(error) != self._said:
                self._said = str(error)
                self._tell(f"{error}{f' ({error.hint})' if error.hint else ''}")
