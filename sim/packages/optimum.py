"""The least energy that placing groups could have come to, for one who knows each interval's demand beforehand.

Used by the benchmark and the tests. Packages are alike and moves are free, so each interval stands alone and the search
is over the number of packages in use: for each, groups are packed evenly (longest first), the packing is taken if none
is above the head-room (or if there is no other), and the number with the least watts wins. Even load is the best within
a number of packages, since watts rise with the square of load; whole groups cannot always be packed evenly, so `gap`
tells how far below the least watts can be, with load that is divided as finely as one likes.

Rejected: charging moves. Whoever knows the future could then also plan them, which needs a search over placements; an
optimum with free moves is below every other one, so being close to it means more.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from sim.packages.groups import Load
from sim.packages.hardware import Host
from sim.packages.machine import WAKEUPS_PER_THREAD_S, Interval, settle
from sim.packages.policies import OVERLOAD, Places, Seen, loads, to_shares
from sim.packages.power import host_w
from sim.packages.residency import Floats


@dataclass
class Optimum:
    """A controller that is told what comes. Its watts, and those of the bound, are summed over the steps."""

    load: Load
    host: Host
    headroom: float = OVERLOAD
    tick_s: float | None = None
    total_w: float = 0.0
    bound_total_w: float = 0.0
    _last: tuple[int, Floats] | None = None

    def place(self, seen: Seen, last: Interval | None) -> Floats:
        if self._last is None or self._last[0] != seen.step:
            self._last = seen.step, self._best(self.load.demand[seen.step])
        return self._last[1]

    @property
    def gap(self) -> float:
        """Of its energy, the share by which the true optimum may be lower."""
        return 1.0 - self.bound_total_w / self.total_w

    def _best(self, demand: Floats) -> Floats:
        limit, packages = self.headroom * self.host.cores, self.host.packages
        best: tuple[float, Floats] | None = None
        bound = np.inf
        for count in range(1, packages + 1):
            if demand.sum() / count > limit and count < packages:
                continue
            even = np.zeros(packages)
            even[:count] = demand.sum() / count
            threads = np.where(even > 0, self.load.threads.sum() / count, 0.0)
            bound = min(bound, self._watts(even, threads))
            at = even_packing(demand, count)
            load = loads(at, demand, packages)
            if load.max() > limit and count < packages:
                continue
            watts = self._watts(load, loads(at, self.load.threads, packages))
            if best is None or watts < best[0]:
                best = watts, to_shares(at, packages)
        assert best is not None
        self.total_w += best[0]
        self.bound_total_w += min(bound, best[0])
        return best[1]

    def _watts(self, load: Floats, threads: Floats) -> float:
        _, _, states = settle(self.host, np.minimum(load, self.host.cores), WAKEUPS_PER_THREAD_S * threads)
        return host_w(self.host, states)


def even_packing(sizes: Floats, count: int) -> Places:
    """A package of each group, longest first, each to the least loaded of so many."""
    heap = [(0.0, package) for package in range(count)]
    at = np.zeros(len(sizes), np.int64)
    values = sizes.tolist()
    for group in np.argsort(-sizes, kind="stable").tolist():
        load, package = heapq.heappop(heap)
        at[group] = package
        heapq.heappush(heap, (load + values[group], package))
    return at
