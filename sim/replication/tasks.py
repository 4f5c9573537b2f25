"""Threads and time for the simulation: real code, one thread at a time, on a clock that jumps.

What the product starts as threads runs here as greenlets. One runs until it waits: for an event, a lock, a socket, a
nap. Then the kernel goes on with whatever is due next, and time is whatever that is due at. Who was woken runs up to
0.1 ms later, by the seed, so that threads meet in every order. A task belongs to a process, a process to a host: a
host that is paused runs nothing, and a process that was killed never runs again (its stack is unwound without being
able to do anything).

`Threading`, `Time` and `Queue` look like the modules of those names, as far as the product uses them.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import random
from collections.abc import Callable
from typing import Any, Protocol

from greenlet import getcurrent, greenlet

WAKE_NS = 100_000
EPOCH_NS = 1_700_000_000 * 10**9  # the wall clock's beginning


class Killed(BaseException):
    """The process of this task is gone."""


class Place(Protocol):
    """A host, as tasks see it."""

    rate: float
    offset_ns: int
    paused_until_ns: int


class Process:
    """Tasks that live and die together."""

    def __init__(self, kernel: Kernel, host: Place, name: str) -> None:
        self.kernel = kernel
        self.host = host
        self.name = name
        self.dead = False
        self.tasks: list[Task] = []
        self.belongings: list[Any] = []  # sockets and native objects; each has `die()`

    def spawn(self, work: Callable[[], object], name: str = "") -> Task:
        task = Task(self, work, name)
        self.tasks = [each for each in self.tasks if not each.done] + [task]
        self.kernel.wake(task)
        return task

    def kill(self) -> None:
        """Nothing of it runs any more, from this moment on."""
        if self.dead:
            return
        self.dead = True
        for each in self.belongings:
            each.die()
        self.belongings.clear()
        for task in self.tasks:
            self.kernel.wake(task)  # to unwind


class Task:
    """One thread of a process."""

    def __init__(self, process: Process, work: Callable[[], object], name: str) -> None:
        self.process = process
        self.name = name
        self.done = False
        self.turn = 0  # what would resume an earlier wait is void
        self.woken = False
        self.joiners: list[Task] = []
        self._work = work
        self.greenlet = greenlet(self._run, parent=process.kernel.hub)

    def _run(self) -> None:
        try:
            if not self.process.dead:
                self._work()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever it is ends the run
            if not self.process.dead:  # else it is only unwound
                self.process.kernel.error = error
        finally:
            self.done = True
            self.process.kernel.wake_all(self.joiners)


class Kernel:
    """Runs tasks and callbacks in the order of simulated time."""

    def __init__(self, rng: random.Random) -> None:
        self.now_ns = 0
        self.current: Task | None = None
        self.error: BaseException | None = None
        self.hub = getcurrent()
        self._rng = rng
        self._queue: list[tuple[int, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def at(self, when_ns: int, what: Callable[[], object]) -> None:
        heapq.heappush(self._queue, (max(when_ns, self.now_ns), next(self._order), what))

    def after(self, delay_s: float, what: Callable[[], object]) -> None:
        self.at(self.now_ns + int(delay_s * 1e9), what)

    def run(self, until_ns: int, each: Callable[[], None]) -> None:
        """`each` is called after everything that happens. Raises what a task raised."""
        while self._queue and self._queue[0][0] <= until_ns:
            self.now_ns, _, what = heapq.heappop(self._queue)
            what()
            if self.error is not None:
                raise self.error
            each()
        self.now_ns = until_ns

    def wake(self, task: Task) -> None:
        turn = task.turn
        self.at(self.now_ns + self._rng.randrange(WAKE_NS), lambda: self._resume(task, turn, True))

    def wake_all(self, waiters: list[Task]) -> None:
        for task in waiters:
            self.wake(task)
        waiters.clear()

    def _resume(self, task: Task, turn: int, woken: bool) -> None:
        if task.done or task.turn != turn:
            return
        paused_until_ns = task.process.host.paused_until_ns
        if self.now_ns < paused_until_ns and not task.process.dead:
            self.at(paused_until_ns, lambda: self._resume(task, turn, woken))
            return
        task.turn += 1
        task.woken = woken
        self.current = task
        try:
            task.greenlet.switch()
        finally:
            self.current = None

    def suspend(self, waiters: list[Task] | None, timeout_s: float | None) -> bool:
        """From a task: wait in `waiters`, at most `timeout_s` by its host's clock; whether it was woken."""
        task = self.current
        assert task is not None, "only a task can wait"
        if task.process.dead:
            raise Killed
        if waiters is not None:
            waiters.append(task)
        if timeout_s is not None:
            turn, delay_ns = task.turn, whole_ns(timeout_s / task.process.host.rate)
            self.at(self.now_ns + max(delay_ns, 1), lambda: self._resume(task, turn, False))
        self.hub.switch()
        if waiters is not None and task in waiters:
            waiters.remove(task)
        if task.process.dead:
            raise Killed
        return task.woken


_kernel: list[Kernel] = []


def install(kernel: Kernel) -> None:
    """There is one at a time."""
    _kernel[:] = [kernel]


def kernel() -> Kernel:
    return _kernel[0]


def process() -> Process:
    """Of the task that runs."""
    task = kernel().current
    assert task is not None
    return task.process


def whole_ns(seconds: float) -> int:
    """No wait takes no time at all, but that for 0: who waits until a moment would ask again and again."""
    return 0 if seconds <= 0 else max(int(seconds * 1e9), 1000)


def sleep(seconds: float) -> None:
    kernel().suspend(None, seconds)


def clock_ns(host: Place) -> int:
    """A host's clock: its own beginning, its own rate."""
    return host.offset_ns + int(kernel().now_ns * host.rate)


class Event:
    def __init__(self) -> None:
        self._set = False
        self._waiters: list[Task] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        kernel().wake_all(self._waiters)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if self._set:
            return True
        until_ns = None if timeout is None else clock_ns(process().host) + whole_ns(timeout)
        while not self._set:
            left_s = None if until_ns is None else (until_ns - clock_ns(process().host)) / 1e9
            if left_s is not None and left_s <= 0:
                break
            kernel().suspend(self._waiters, left_s)
        return self._set


class Semaphore:
    def __init__(self, value: int = 1) -> None:
        self._value = value
        self._waiters: list[Task] = []

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        until_ns = None if timeout is None or timeout < 0 else kernel().now_ns + whole_ns(timeout)
        while self._value == 0:
            if not blocking or (until_ns is not None and kernel().now_ns >= until_ns):
                return False
            kernel().suspend(self._waiters, timeout if until_ns is not None else None)
        self._value -= 1
        return True

    def release(self) -> None:
        self._value += 1
        kernel().wake_all(self._waiters)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Thread:
    def __init__(
        self,
        *,
        target: Callable[..., object],
        name: str = "",
        daemon: bool = False,
        args: tuple[object, ...] = (),
    ) -> None:
        self.name = name
        self._work = lambda: target(*args)
        self._task: Task | None = None

    def start(self) -> None:
        self._task = process().spawn(self._work, self.name)

    @property
    def ident(self) -> int | None:
        return None if self._task is None else 1

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done

    def join(self, timeout: float | None = None) -> None:
        assert self._task is not None
        join(self._task, timeout)


def join(task: Task, timeout_s: float | None) -> None:
    """Wait until `task` has ended."""
    until_ns = None if timeout_s is None else kernel().now_ns + whole_ns(timeout_s)
    while not task.done and (until_ns is None or kernel().now_ns < until_ns):
        kernel().suspend(task.joiners, timeout_s)


class Threading:
    """As the module `threading`."""

    Event = Event
    Thread = Thread
    Semaphore = BoundedSemaphore = Semaphore
    Lock = Semaphore

    @staticmethod
    def current_thread() -> None:
        return None


class Time:
    """As the module `time`, on the clock of the host whose task asks."""

    @staticmethod
    def monotonic() -> float:
        return clock_ns(process().host) / 1e9

    @staticmethod
    def time_ns() -> int:
        return EPOCH_NS + kernel().now_ns


class SimpleQueue:
    def __init__(self) -> None:
        self._items: list[Any] = []
        self._waiters: list[Task] = []

    def put(self, item: object) -> None:
        self._items.append(item)
        kernel().wake_all(self._waiters)

    def get(self, timeout: float | None = None) -> Any:
        if not self._items:
            kernel().suspend(self._waiters, timeout)
        if not self._items:
            raise queue.Empty
        return self._items.pop(0)


class Queue:
    """As the module `queue`."""

    Empty = queue.Empty
    SimpleQueue = SimpleQueue
