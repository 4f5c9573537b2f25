"""How the kernel spreads groups over the packages that each may use. Pure.

Used by `machine`. Linux moves threads from where they wait to where processors idle, within what each may use, until no
package that a thread may use is less busy than its own. Where all may use the same, all packages are alike; else loads
are as even as the sets allow: the least sum of squares. It is found set by set, each levelled over its packages with
the others as they are, until none changes. Groups of one set are divided alike.
"""

import numpy as np
from numpy.typing import NDArray

from sim.packages.residency import Floats

_EVEN = 1e-3  # cores: as even as it needs to be
_NOTHING = 1e-9
_MOST_ROUNDS = 200


def balanced(want: Floats, places: Floats, before: Floats | None = None) -> Floats:
    """Shares (groups x packages, rows make 1) of groups that want so many cores and may run where `places` is not 0.
    `before`: shares to begin with, of groups whose places are the same."""
    several = (places > 0).sum(axis=1) > 1
    if not several.any():
        return places
    sets, of = np.unique(places[several], axis=0, return_inverse=True)
    of = of.reshape(-1)
    size = np.bincount(of, want[several], len(sets))
    fixed = (want[~several, None] * places[~several]).sum(axis=0)
    rows = sets.copy()
    if before is not None:
        rows[of] = before[several]
    load = fixed + (size[:, None] * rows).sum(axis=0)
    for _ in range(_MOST_ROUNDS):
        changed = 0.0
        for index in np.flatnonzero(size > _NOTHING).tolist():
            here = sets[index] > 0
            others = load[here] - size[index] * rows[index, here]
            parts = levelled(float(size[index]), others)
            changed = max(changed, float(np.abs(others + parts - load[here]).max()))
            load[here] = others + parts
            rows[index, here] = parts / parts.sum()
        if changed < _EVEN:
            break
    found = places.copy()
    found[several] = rows[of]
    return found


def levelled(amount: float, loads: Floats) -> NDArray[np.float64]:
    """What of it comes on top of each load, so that the lowest are filled first, to one level."""
    order = np.sort(loads)
    filled = np.arange(1, len(order) + 1) * order - np.cumsum(order)  # to lift all below each to it
    count = int(np.searchsorted(filled, amount, side="right"))
    level = (amount + order[:count].sum()) / count
    found: NDArray[np.float64] = np.clip(level - loads, 0.0, None)
    return found
