"""Which blocks are filled because there is memory to spare, and not because they are worth it by themselves. Pure.

Used by `decide`. The model: a large page whose pages are hardly used still saves translations, and memory that nobody
wants costs nothing as long as nobody wants it; when it gets scarce such blocks are the first to go (`turn.relieve`). So
the best of them may become large until what is filled and not accessed, all blocks together, comes to `spare_share` of
what mapping everything large would fill. What pays by itself is not held up by that.

Rejected: one low threshold for all, with which a process of many hardly used blocks takes nearly as much as it does
when everything is large.
"""

import numpy as np

from sustain.schedulers.large_pages.choose import in_order
from sustain.schedulers.large_pages.judge import Judgement
from sustain.schedulers.large_pages.plan import Finding
from sustain.schedulers.large_pages.policy import Policy


def admit(it: Judgement, policy: Policy, bloat_pages: float, free: int | None) -> None:
    """Of the spare blocks those that there is memory for stay candidates, the best first. `bloat_pages`: filled and
    not accessed now; `free`: large pages of the host (None: unknown), since none is made for them by compaction."""
    mask = it.spare & it.may
    count = int(np.count_nonzero(mask))
    left = policy.spare_share * (it.could_fill + bloat_pages) - bloat_pages
    most = count if free is None else free
    if not count or (count <= most and count * it.most_fill <= left):
        return
    rows = np.flatnonzero(mask)
    fill = it.fill[rows]
    if len(rows) <= most and float(fill.sum(dtype=np.float64)) <= left:
        return
    order = in_order(it.score[rows], len(rows))
    fits = np.cumsum(fill[order], dtype=np.float64) <= max(0.0, left)
    fits |= fill[order] <= 0  # nothing more is filled for those, whatever their place
    it.finding[rows[order[~fits]]] = Finding.BLOAT
    it.finding[rows[order[most:][fits[most:]]]] = Finding.RATE
    fits[most:] = False
    refused = rows[order[~fits]]
    it.may[refused] = False
    it.score[refused] = np.nan
