"""A simulated guest: what its load uses, what its kernel keeps, what its balloon takes, and what the host swapped.

The model is that of a kernel whose lists are right: hot memory stays longest, then cold anonymous memory, then cold
buffers; anonymous memory that does not fit goes to the guest's swap, if it has one. The load touches its hot pages
evenly, one in 20 µs; a page that is not there takes 150 µs more. Pages that were read once stay as cold buffers while
there is room. Memory that was touched stays in the host's memory until a balloon or the host takes it; free pages are
taken by a balloon in the proportion of touched and untouched ones.
"""

from dataclasses import dataclass, field

from sustain.schedulers.guest_memory.model import Figures, Guest, Mechanism

MIB = float(1 << 20)
_TOUCH_S, _READ_S = 20e-6, 150e-6
_PAGE_BYTES = 4096
_KEPT = 0.01  # of its size, that a guest's kernel keeps free


@dataclass(frozen=True)
class Load:
    """What runs in a guest, in bytes."""

    hot_anonymous: float = 0.0
    cold_anonymous: float = 0.0
    hot_buffer: float = 0.0
    stream_per_s: float = 0.0  # read once


@dataclass
class ModelGuest:
    """One simulated guest. `agent` tells classes, `driver` works the balloon; `swap` is its own."""

    name: str
    size: float
    kernel: float = 40 * MIB
    swap: float = 0.0
    agent: bool = True
    driver: bool = True
    load: Load = field(default_factory=Load)
    ceiling: float = 0.0
    goal: float = 0.0  # of its balloon
    hot_anonymous: float = 0.0  # in its memory
    cold_anonymous: float = 0.0
    hot_buffer: float = 0.0
    cold_buffer: float = 0.0
    touched: float = 0.0  # of its memory, by the host's knowledge; with what the host swapped
    host_hot: float = 0.0  # in the host's swap
    host_cold: float = 0.0
    host_free: float = 0.0
    stall_s: float = 0.0
    swap_in: float = 0.0
    refaults: float = 0.0
    host_swap_in: float = 0.0
    work_s: float = 0.0
    killed_s: float = 0.0  # without memory for what cannot be swapped
    rate: float = 1.0  # of its work, just now

    def __post_init__(self) -> None:
        self.ceiling = self.goal = self.size

    @property
    def used(self) -> float:
        return self.kernel + self.hot_anonymous + self.cold_anonymous + self.hot_buffer + self.cold_buffer

    @property
    def free(self) -> float:
        return max(0.0, self.ceiling - self.used)

    @property
    def host_swapped(self) -> float:
        return self.host_hot + self.host_cold + self.host_free

    @property
    def resident(self) -> float:
        return max(0.0, self.touched - self.host_swapped)

    def step(self, dt_s: float) -> None:
        """Let it run for `dt_s`."""
        load = self.load
        self._move_balloon(dt_s)
        room = max(0.0, self.ceiling - self.kernel - _KEPT * self.size)
        anonymous = load.hot_anonymous + load.cold_anonymous
        must = max(0.0, anonymous - self.swap)
        if must > room:
            # Nothing left to swap to: what runs in it is killed and started again.
            self.killed_s += dt_s
            self.stall_s += dt_s
            self.rate = 0.0
            return
        hot = min(load.hot_anonymous, room)
        buffer = min(load.hot_buffer, room - max(hot, min(must, room)))
        cold = min(load.cold_anonymous, room - hot - buffer)
        read_back = max(0.0, hot - self.hot_anonymous) if self.hot_anonymous < load.hot_anonymous else 0.0
        read_back = min(read_back, max(0.0, anonymous - self.hot_anonymous - self.cold_anonymous))
        self.hot_anonymous, self.hot_buffer, self.cold_anonymous = hot, buffer, cold
        self.cold_buffer = min(self.cold_buffer + load.stream_per_s * dt_s, room - hot - buffer - cold)
        self._touch()
        self._work(dt_s, read_back)

    def _touch(self) -> None:
        self.touched = min(self.ceiling, max(self.touched, self.used))
        # What was cold, or free, and is in use now, has to come back.
        spare = max(0.0, self.touched - self.used)
        for kind, most in (("host_free", spare), ("host_cold", self.cold_anonymous + self.cold_buffer)):
            over = max(0.0, getattr(self, kind) - most)
            setattr(self, kind, getattr(self, kind) - over)
            self.host_hot += over
        self.host_hot = min(self.host_hot, self.hot_anonymous + self.hot_buffer + self.kernel)

    def _work(self, dt_s: float, read_back: float) -> None:
        load = self.load
        hot = load.hot_anonymous + load.hot_buffer
        lacks_anonymous = load.hot_anonymous - self.hot_anonymous
        lacks_buffer = load.hot_buffer - self.hot_buffer
        if hot <= 0:
            self.rate, self.host_hot = 1.0, 0.0
            self.work_s += dt_s
            return
        missing = min(1.0, (lacks_anonymous + lacks_buffer + self.host_hot) / hot)
        self.rate = _TOUCH_S / (_TOUCH_S + missing * _READ_S)
        touches = dt_s * self.rate / _TOUCH_S
        self.swap_in += touches * lacks_anonymous / hot * _PAGE_BYTES + read_back
        self.refaults += touches * lacks_buffer / hot * _PAGE_BYTES
        back = min(self.host_hot, touches * self.host_hot / hot * _PAGE_BYTES)
        self.host_hot -= back
        self.host_swap_in += back
        self.stall_s += dt_s * (1 - self.rate)
        self.work_s += dt_s * self.rate

    def _move_balloon(self, dt_s: float) -> None:
        if not self.driver or self.goal == self.ceiling:
            return
        if self.goal > self.ceiling:
            self.ceiling = min(self.goal, self.size)
            return
        must = max(0.0, self.load.hot_anonymous + self.load.cold_anonymous - self.swap)
        lowest = self.kernel + must + _KEPT * self.size
        amount = min(self.ceiling - max(self.goal, lowest), 500 * MIB * dt_s)
        if amount <= 0:
            return
        free = self.free
        untouched = self.ceiling - self.touched
        of_free = min(amount, free)
        if free > 0:
            self.touched -= of_free * max(0.0, free - untouched) / free
        self.ceiling -= amount
        self.cold_buffer = max(0.0, self.cold_buffer - (amount - of_free))
        self.touched = min(self.touched, self.ceiling)

    def page_out(self, amount: float) -> float:
        """The host swaps that much of what the guest calls inactive; what was swapped."""
        done = max(0.0, min(amount, self.cold_anonymous - self.host_cold, self.resident))
        self.host_cold += done
        return done

    def page_out_blindly(self, amount: float) -> float:
        """The host swaps of all that it holds of the guest alike; how much of it was free."""
        resident = self.resident
        amount = min(amount, resident)
        if amount <= 0:
            return 0.0
        free = max(0.0, self.touched - self.used - self.host_free)
        cold = max(0.0, self.cold_anonymous + self.cold_buffer - self.host_cold)
        share = amount / resident
        self.host_free += free * share
        self.host_cold += cold * share
        self.host_hot += max(0.0, amount - (free + cold) * share)
        return free * share

    def figures(self, at_s: float) -> Figures:
        """As its agent would tell them; without one only what the host knows."""
        told = Figures(
            size_bytes=self.size,
            balloon_bytes=self.ceiling if self.driver else None,
            resident_bytes=self.resident,
            host_swapped_bytes=self.host_swapped,
            host_swap_in_bytes=self.host_swap_in,
        )
        if not self.agent:
            return told
        out = max(0.0, self.load.hot_anonymous + self.load.cold_anonymous)
        out -= self.hot_anonymous + self.cold_anonymous
        return Figures(
            size_bytes=self.size,
            balloon_bytes=told.balloon_bytes,
            resident_bytes=told.resident_bytes,
            host_swapped_bytes=told.host_swapped_bytes,
            host_swap_in_bytes=told.host_swap_in_bytes,
            total_bytes=self.ceiling,
            free_bytes=self.free,
            available_bytes=self.free + self.cold_buffer + self.hot_buffer,
            inactive_buffer_bytes=self.cold_buffer,
            active_buffer_bytes=self.hot_buffer,
            inactive_anonymous_bytes=self.cold_anonymous,
            active_anonymous_bytes=self.hot_anonymous,
            unreclaimable_bytes=self.kernel,
            dirty_bytes=0.0,
            swapped_bytes=max(0.0, out),
            swap_free_bytes=max(0.0, self.swap - max(0.0, out)),
            stall_us=self.stall_s * 1e6,
            swap_in_bytes=self.swap_in,
            refault_bytes=self.refaults,
            classes_at_s=at_s,
        )

    def seen(self, at_s: float, *, host_swaps: bool) -> Guest:
        """As `sense` would see it."""
        can: tuple[Mechanism, ...] = ("balloon",) if self.driver else ()
        return Guest(
            name=self.name,
            kind="qemu",
            life="1:1",
            source="guest-agent" if self.agent else "none",
            figures=self.figures(at_s),
            can=(*can, "pageout") if host_swaps else can,
        )
