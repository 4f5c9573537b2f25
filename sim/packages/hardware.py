"""Descriptions of hosts: packages, cores, idle states, and the constants of their watts, each with its source.

Used by `machine`, `residency` and `power`. What a constant was fitted to is said where it stands, and
`published.deviations` shows how far the model with these constants is from what was measured. A host whose independent
package states are an assumption has "hypothetical" in its `note`.

Idle tables (exit and target residency) are those of Linux's intel_idle for the part; a package state's exit is 100 µs
longer than its cores' (Sapphire Rapids, 99.99th percentile: 300 µs out of PC6, 200 µs out of CC6), its target residency
in proportion.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class IdleState:
    """`exit_s`: how long leaving it takes; `target_s`: the least idle time for which it is chosen."""

    name: str
    exit_s: float
    target_s: float

    @property
    def of_package(self) -> "IdleState":
        """The deepest package state above cores in this state."""
        exit_s = self.exit_s + 100e-6
        return IdleState("PC6", exit_s, self.target_s * exit_s / self.exit_s)


SKYLAKE_X = IdleState("C6", 133e-6, 600e-6)
ICE_LAKE_X = IdleState("C6", 170e-6, 600e-6)
SAPPHIRE_RAPIDS = IdleState("C6", 290e-6, 800e-6)
GRANITE_RAPIDS = IdleState("C6", 170e-6, 650e-6)
GRANITE_RAPIDS_C6P = IdleState("C6P", 210e-6, 1000e-6)
NEHALEM = IdleState("C6", 200e-6, 800e-6)  # Westmere too
ROME = IdleState(
    "C2", 400e-6, 800e-6
)  # exit as ACPI tells it; Linux takes twice that as the target of an ACPI state


@dataclass(frozen=True)
class Watts:
    """Constants, in watts. On top of `base_w`, a package draws by its state, and each core by its own.

    `active_w` is a core's that works while the package hardly does; by `boost_w` times the package's use it draws more,
    since clock and voltage rise with load. `poll_w` is that of a core in a loop of `pause`, `smt_w` that of a second
    busy thread on a core. A core in its deep state draws nothing of its own.
    """

    base_w: float  # board, fans, supply, memory at rest
    awake_w: float  # of a package in no package state
    pc2_w: float
    pc6_w: float
    c1_w: float
    active_w: float
    boost_w: float
    poll_w: float
    smt_w: float


@dataclass(frozen=True)
class Host:
    """`coordinated`: a package is in PC6 only while all are; PC2 is each one's own. `pc2`: whether there is one.

    `wakeups_per_s` is what wakes an unused core, whatever is placed where; `background` its use by what nobody places.
    """

    name: str
    packages: int
    cores: int  # of each package
    smt: int  # threads of a core
    deep: IdleState
    coordinated: bool
    watts: Watts
    pc2: bool = True
    wakeups_per_s: float = 25.0  # by which the parked package of a 2 x Gold 6130 comes to 92.5 % in PC2
    background: float = 0.0005
    note: str = ""

    @property
    def threads(self) -> int:
        return self.packages * self.cores * self.smt

    def with_packages(self, packages: int) -> "Host":
        return replace(self, packages=packages)

    def quiet(self) -> "Host":
        """Without what wakes it: a figure that was measured at rest has that in it already."""
        return replace(self, wakeups_per_s=0.0, background=0.0)


# TU Dresden 2021, watts at the wall of 2 x EPYC 7502 and a loop of `pause`: 99.05 all in C2; 81 for the first thread
# awake anywhere; then 0.091 for a core in C1, or 0.332 for one that polls and 0.052 for its second thread. Of work that
# is no such loop it says nothing: `active_w` and `boost_w` are those of a server whose cores make 2 x 180 W, the rated
# power, out of what a package draws awake.
_ROME = Watts(
    base_w=99.05,
    awake_w=40.5,
    pc2_w=40.5,
    pc6_w=0.0,
    c1_w=0.091,
    active_w=1.45,
    boost_w=2.91,
    poll_w=0.332,
    smt_w=0.052,
)

# linux-pm, 2022-02-06, watts of packages as RAPL has them: one in PC2 draws 45.0 and 44.7, one that is awake 46.2 and
# (three, on average) 49.5. The cores make the rated power, 125 W, out of that, a third of it by `active_w`. Nothing
# measured tells PC6: 11.5 W is what a second Xeon 8180 adds to a server at rest in SPECpower (50.3 W - 38.8 W). C1 and
# `pause` draw what they do on Rome.
_GOLD_6130 = Watts(
    base_w=0.0,
    awake_w=47.6,
    pc2_w=44.6,
    pc6_w=11.5,
    c1_w=0.091,
    active_w=1.61,
    boost_w=3.23,
    poll_w=0.332,
    smt_w=0.052,
)


def _by_levels(base_w: float, awake_w: float, active_w: float, boost_w: float) -> Watts:
    """A server whose constants are fitted to SPECpower's load levels: `published.fit_levels`. What its packages draw in
    PC6 is in its base; C1 and PC2 save nothing that the levels could show."""
    return Watts(base_w, awake_w, awake_w, 0.0, 0.0, active_w, boost_w, active_w, 0.0)


def _by_rest(pc6_w: float, full_w: float, cores: int) -> Watts:
    """A server of which SPECpower's medians tell what a package draws at rest and at full load, at the wall; the base
    is the same 28.2 W for all (`published.fit_idle`). Of what is between, 28 % comes with being awake (25 % on X5670,
    32 % on Gold 6130), and the cores' part grows as on X5670: a third evenly, two thirds with the square of load."""
    between_w = full_w - pc6_w
    awake_w, core_w = pc6_w + 0.28 * between_w, 0.72 * between_w / cores
    return Watts(28.2, awake_w, awake_w, pc6_w, 0.091, core_w / 3, core_w * 2 / 3, 0.332, 0.052)


_ALL = (
    Host("rome-2", 2, 32, 2, ROME, True, _ROME, pc2=False, note="2 x EPYC 7502"),
    Host("gold-6130-2", 2, 16, 2, SKYLAKE_X, True, _GOLD_6130),
    Host("gold-6130-4", 4, 16, 2, SKYLAKE_X, True, _GOLD_6130),
    Host("x5670-2", 2, 6, 2, NEHALEM, True, _by_levels(66.18, 22.45, 3.586, 8.102), pc2=False),
    Host("x5675-2", 2, 6, 2, NEHALEM, True, _by_levels(58.56, 23.09, 1.615, 8.491), pc2=False),
    Host("x3470-1", 1, 4, 2, NEHALEM, True, _by_levels(41.28, 0.0, 13.013, 5.461), pc2=False),
    Host("8180-2", 2, 28, 2, SKYLAKE_X, True, _by_rest(10.9, 208.7, 28)),
    Host("7742-2", 2, 64, 2, ROME, True, _by_rest(33.6, 197.0, 64), pc2=False),
    Host("9654-2", 2, 96, 2, ROME, True, _by_rest(43.5, 333.1, 96), pc2=False),
    Host("8380-2", 2, 40, 2, ICE_LAKE_X, True, _by_rest(40.0, 290.0, 40), note="watts assumed: 270 W rated"),
    Host("8490h-2", 2, 60, 2, SAPPHIRE_RAPIDS, True, _by_rest(65.8, 425.3, 60)),
    Host("6787p-2", 2, 86, 2, GRANITE_RAPIDS, True, _by_rest(84.0, 479.1, 86)),
    Host(
        "independent-4", 4, 28, 2, SKYLAKE_X, False, _by_rest(10.9, 208.7, 28),
        note="hypothetical: four packages as in 8180-2, each with its own PC6",
    ),
    Host(
        "independent-8", 8, 16, 2, SKYLAKE_X, False, _GOLD_6130,
        note="hypothetical: eight packages as in gold-6130-4, each with its own PC6",
    ),
)  # fmt: skip
HOSTS = {host.name: host for host in _ALL}
