"""The locks of one database between the connections of one process. Pure but for the mutex.

They are SQLite's own five levels (https://sqlite.org/lockingv3.html): any number of readers (SHARED), one that prepares
a change (RESERVED) beside them, one that waits for them to go (PENDING) and is alone then (EXCLUSIVE). Other processes
need none: one alone writes a store, and readers have a copy of the state at a commit.
"""

import threading
from typing import Final

NONE: Final = 0
SHARED: Final = 1
RESERVED: Final = 2
PENDING: Final = 3
EXCLUSIVE: Final = 4


class Locks:
    """`mutex` guards everything here; databases of one store share it."""

    def __init__(self, mutex: threading.Lock) -> None:
        self._mutex = mutex
        self._levels: dict[object, int] = {}

    def level(self, holder: object) -> int:
        return self._levels.get(holder, NONE)

    def take(self, holder: object, wanted: int) -> bool:
        """Raise the holder's level to `wanted`; False when others are in the way. One that cannot become EXCLUSIVE is
        left PENDING, so that no new readers come."""
        with self._mutex:
            have = self._levels.get(holder, NONE)
            if have >= wanted:
                return True
            others = [level for each, level in self._levels.items() if each is not holder]
            highest = max(others, default=NONE)
            if wanted == SHARED:
                granted = SHARED if highest < PENDING else have
            elif highest >= RESERVED:
                granted = have
            elif wanted == RESERVED or not others:
                granted = wanted
            else:
                granted = PENDING
            if granted != NONE:
                self._levels[holder] = granted
            return granted == wanted

    def lower(self, holder: object, level: int) -> None:
        """To SHARED or NONE."""
        with self._mutex:
            if level == NONE:
                self._levels.pop(holder, None)
            elif self._levels.get(holder, NONE) > level:
                self._levels[holder] = level

    def reserved(self) -> bool:
        """Whether anybody prepares a change."""
        with self._mutex:
            return any(level >= RESERVED for level in self._levels.values())

    @property
    def held(self) -> bool:
        """Whether anybody reads or writes. For who holds the mutex."""
        return bool(self._levels)
