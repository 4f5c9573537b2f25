"""Loads of 2 GiB to 8 GiB: which pages of each block are there, and which are used. Made up, from a seed.

`scattered`: heat falls off as in a key-value store (Zipf, 0.9) and blocks of all heats lie mixed. `high`: a quarter of
all blocks, at the highest addresses, is used in full; of the others a tenth of each. `sparse`: after many keys were
deleted: 30 % of the blocks are full and used in most of their pages, in the others 10 to 100 of 512 pages are left, of
which half are used. `moving`: a quarter is used, and after a while another quarter; of what was used a few pages go on
being used.
"""

from collections.abc import Callable

import numpy as np

from sim.large_pages.world import Load, Pages
from sustain.schedulers.large_pages.model import PAGES

MOVES_S = 900.0
_KEPT_PAGES = 8


def scattered(seed: int, count: int = 4096) -> list[Load]:
    rng = np.random.default_rng(seed)
    heat = 1.0 / np.arange(1, count + 1) ** 0.9
    used = np.clip(PAGES * heat / heat[count // 20], 1, PAGES).astype(np.int64)
    rng.shuffle(used)
    return [Load("scattered", _full(count), _always(used))]


def high(seed: int, count: int = 4096) -> list[Load]:
    rng = np.random.default_rng(seed)
    used = rng.integers(20, 80, count)
    used[count * 3 // 4 :] = rng.integers(400, PAGES + 1, count - count * 3 // 4)
    return [Load("high", _full(count), _always(used))]


def sparse(seed: int, count: int = 4096) -> list[Load]:
    rng = np.random.default_rng(seed)
    full = rng.random(count) < 0.30
    present = np.where(full, PAGES, rng.integers(10, 101, count))
    used = np.where(full, rng.integers(300, PAGES + 1, count), present // 2)
    return [Load("sparse", present, _always(used))]


def moving(seed: int, count: int = 4096) -> list[Load]:
    rng = np.random.default_rng(seed)
    places = rng.permutation(count)
    quarter = count // 4
    before, after = np.zeros(count, np.int64), np.zeros(count, np.int64)
    before[places[:quarter]] = after[places[quarter : 2 * quarter]] = 450
    after[places[:quarter]] = _KEPT_PAGES
    return [Load("moving", _full(count), lambda at_s: before if at_s < MOVES_S else after)]


def _full(count: int) -> Pages:
    return np.full(count, PAGES, np.int64)


def _always(used: Pages) -> Callable[[float], Pages]:
    return lambda _: used


LOADS: dict[str, Callable[[int], list[Load]]] = {
    "scattered": scattered,
    "high": high,
    "sparse": sparse,
    "moving": moving,
}
