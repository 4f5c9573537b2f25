"""The keys and values that every key-value contender is given: the same ones, in the same order.

Keys are 16 bytes, values 64 bytes. The values change from one update to the next: writing back what is
there already would be work that an engine may skip.
"""

import random

KEYS = 10_000
KEY_SIZE = 16
VALUE_SIZE = 64

Updates = list[tuple[bytes, bytes]]


class Workload:
    """`keys` to be filled in first; then each `updates(count)` gives more, for one commit each."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self.keys = [self._random.randbytes(KEY_SIZE) for _ in range(KEYS)]
        self._values = [self._random.randbytes(VALUE_SIZE) for _ in range(4093)]
        self._number = 0

    def updates(self, count: int) -> Updates:
        """`count` updates, uniformly over the keys, (nearly always) to another value than the key has."""
        first, self._number = self._number, self._number + count
        values, choice = self._values, self._random.choice
        return [(choice(self.keys), values[number % len(values)]) for number in range(first, first + count)]
