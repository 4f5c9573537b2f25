"""What power-aware placement sees and does, as values. Pure.

Used by `sense` (which makes an Observation), `decide` (Observation, State, Policy → Plan, State), `act` (which carries
a Plan's actions out and says what came of each), by the simulator of packages, which makes observations of its own, and
by recordings.

Counters are cumulative, as the host has them; `rates` makes figures of two looks. Processors and groups are kept in
columns, one NumPy array for each figure, since there are up to thousands of each. Times are seconds of CLOCK_BOOTTIME.
Unknown is None, NaN in a column of floats, −1 in one of whole numbers; never zero.
"""

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Kind = Literal["cgroup", "process", "guest"]
Source = Literal["perf", "msr", "hsmp", "cpuidle", "none"]  # of a package's residency
PowerSource = Literal["powercap", "perf", "hsmp", "none"]
Independence = Literal["independent", "coordinated", "disabled", "unknown"]
Outcome = Literal["done", "gone", "changed", "again later", "refused"]
Purpose = Literal["pack", "spread", "measure", "revert", "hands off", "align"]

MIXED = -1  # place of a group whose threads may not all use the same processors


class Cpus(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The logical processors that are online, in columns of one length, ascending in number."""

    number: NDArray[np.int32]
    package: NDArray[np.int32]
    die: NDArray[np.int32]
    core: NDArray[np.int32]  # unique within its die
    node: NDArray[np.int32]  # −1: this kernel has no NUMA
    busy_s: NDArray[np.float64]  # since boot, of everything but idle and waiting for a disk
    idle_s: NDArray[np.float64]
    asleep_s: NDArray[np.float64]  # in any idle state but polling, by cpuidle; NaN: unknown

    def __post_init__(self) -> None:
        _same_length("processors", self)

    def __len__(self) -> int:
        return len(self.number)


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """One package's counters as they were last read. A parked one is read rarely, since reading wakes it; then
    `read_s` and `energy_read_s` stay."""

    number: int
    residency_s: dict[
        str, float
    ] = {}  # by package idle state ("pc2", "pc6"): seconds in it since the counters began
    read_s: float | None = None  # when
    source: Source = "none"
    energy_j: float | None = None  # of the package and its memory, as far as both are measured
    energy_read_s: float | None = None
    power_source: PowerSource = "none"
    base_hz: float | None = None  # what all its cores together can have at least
    most_hz: float | None = None  # what one core alone can have
    problems: tuple[str, ...] = ()  # what is not measurable here, because …


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA node's memory."""

    number: int
    total_bytes: float | None = None
    free_bytes: float | None = None


class Groups(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Groups of threads, in columns of one length. Names are unique; a life tells a group that began anew."""

    name: tuple[str, ...]
    life: tuple[str, ...]
    kind: tuple[Kind, ...]
    used_s: NDArray[np.float64]  # processor time, cumulative; NaN: unknown
    threads: NDArray[np.int32]
    realtime: NDArray[np.int32]  # of them, with a real-time or deadline policy; −1: unknown
    pinned: NDArray[np.int32]  # of them, that may use fewer processors than their group, by a user's setting
    place: NDArray[np.int32]  # index into Observation.places: processors it may use now; MIXED
    memory_bytes: NDArray[np.float64]  # by group and node: [group * len(nodes) + index of node]; NaN: unknown

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in self.__struct_fields__ if name != "memory_bytes"}
        if len(lengths) > 1:
            raise ValueError(f"columns of groups differ in length: {sorted(lengths)}")
        if len(self.name) and len(self.memory_bytes) % len(self.name):
            raise ValueError("memory_bytes is not a row of nodes for each group")

    def __len__(self) -> int:
        return len(self.name)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one package's idle state on this host with this firmware, from a test or by observing."""

    package: int
    state: str  # "pc6"; "watts": found by the step in watts alone
    independence: Independence
    how: Literal["active test", "passive", "told"]
    detail: str = ""  # in words and numbers
    at: str = ""  # ISO 8601, for people
    parked_w: float | None = None  # watts that its being parked saves, against its being awake and idle
    parked_error_w: float | None = None  # one standard error of that
    parked_share: float | None = None  # share of time in the state when it is parked


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a measured trial of parking one package came to."""

    package: int
    kept: bool
    unit: Literal["W", "package"]  # watts, or share of time of one package in its independent state
    saving: float
    low: float  # of the confidence interval
    high: float
    load: float  # processors busy on the host, meanwhile
    at_s: float
    detail: str = ""


class Observation(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Everything that a decision may know of the outside world."""

    now_s: float
    cpus: Cpus
    groups: Groups
    packages: tuple[Package, ...] = ()
    nodes: tuple[Node, ...] = ()
    places: tuple[tuple[int, ...], ...] = ()  # distinct sets of processors, ascending
    host: str = ""  # host, firmware and microcode: what findings hold for
    virtual: bool | None = None  # the host is itself a guest
    findings: tuple[Finding, ...] = ()
    verdicts: tuple[Verdict, ...] = ()  # of former runs
    metrics: dict[str, float] = {}  # the workloads' own, by name; more is better
    pressure: float | None = (
        None  # share of the last 10 s in which some task waited for a processor (PSI some)
    )
    problems: tuple[str, ...] = ()  # of groups and the host, in words

    def __post_init__(self) -> None:
        place = self.groups.place
        if len(place) and not MIXED <= place.min() <= place.max() < len(self.places):
            raise ValueError("a group is at a place that is not there")


class Place(msgspec.Struct, frozen=True, kw_only=True, tag="place"):
    """Let that group run on these processors only."""

    group: str
    life: str
    kind: Kind
    cpus: tuple[int, ...]
    packages: tuple[int, ...]
    nodes: tuple[int, ...] | None = None  # its memory is to be there; None: stays where it is
    purpose: Purpose
    reason: str


class Release(msgspec.Struct, frozen=True, kw_only=True, tag="release"):
    """Let that group run where it could before we placed it; exactly that, as the journal has it."""

    group: str
    life: str
    kind: Kind
    purpose: Purpose
    reason: str


class Interrupts(msgspec.Struct, frozen=True, kw_only=True, tag="interrupts"):
    """Let device interrupts that may be handled on `away` be handled on `cpus`; those that are bound otherwise stay.
    An empty `away`: as they were before."""

    away: tuple[int, ...]
    cpus: tuple[int, ...]
    purpose: Purpose
    reason: str

    @property
    def group(self) -> str:
        return "interrupts"


class Align(msgspec.Struct, frozen=True, kw_only=True, tag="align"):
    """Let that group's timers run late by up to `slack_s`, so that wake-ups fall together; None: as before."""

    group: str
    life: str
    kind: Kind
    slack_s: float | None
    purpose: Purpose
    reason: str


Action = Place | Release | Interrupts | Align


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an action, as it was verified when `act` returned.

    done: it is so now (also when nothing had to be written). gone: there is no such group any more. changed: somebody
    else has set it since, so it was left alone. again later: it was not its turn, or nobody answered. refused: we may
    not, or the kernel cannot; `detail` says why.
    """

    action: Action
    outcome: Outcome
    detail: str = ""
    written: int = 0  # settings that differed and were written
    moved_bytes: float | None = None  # of memory
    seconds: float | None = None  # that it took

    @property
    def done(self) -> bool:
        return self.outcome == "done"


def _same_length(what: str, columns: msgspec.Struct) -> None:
    lengths = {len(getattr(columns, name)) for name in columns.__struct_fields__}
    if len(lengths) > 1:
        raise ValueError(f"columns of {what} differ in length: {sorted(lengths)}")
