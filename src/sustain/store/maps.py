"""Maps: bytes to bytes, the full `MutableMapping` protocol over the engine's hash map.

Applications get them from `Store.map`. Item access, `in`, `len`, `get` and `clear` are native methods; what
is here is the rest of the protocol. The map is unordered (a hash map costs one probe per access; an ordered
tree costs its depth, on every commit too, and few uses need the order): the order of iteration is stable
while no keys come or go, and says nothing.
"""

from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView

from sustain import _native
from sustain.errors import StoreClosed

_BATCH = 64  # entries per call into the engine while iterating; bounds the memory held for large values


class Map(_native.Map, MutableMapping[bytes, bytes]):
    """A mapping of bytes to bytes by name, for millions of entries. Made by `Store.map`.

    Keys and values are `bytes` (TypeError otherwise); StoreFull when the image has no room. As with a dict,
    adding or removing keys while iterating raises RuntimeError; replacing values is fine. Opening a map costs
    the same whatever its size. Changes become durable with `Store.commit`.
    """

    def __iter__(self) -> Iterator[bytes]:
        for key, _ in self._entries():
            yield key

    def items(self) -> ItemsView[bytes, bytes]:
        return _Items(self)

    def values(self) -> ValuesView[bytes]:
        return _Values(self)

    def popitem(self) -> tuple[bytes, bytes]:
        """Remove and return some (key, value); KeyError when the map is empty."""
        _, entries = self.scan(0, 1)
        if not entries:
            raise KeyError("popitem(): the map is empty")
        key, value = entries[0]
        del self[key]
        return key, value

    def _entries(self) -> Iterator[tuple[bytes, bytes]]:
        size = len(self)
        cursor = 0
        while True:
            cursor, entries = self.scan(cursor, _BATCH)
            for entry in entries:
                yield entry
                # The engine notices at the next batch; a dict notices at the next step, and so do we.
                if len(self) != size:
                    raise RuntimeError("map changed size during iteration")
            if cursor == 0:
                return

    def __repr__(self) -> str:
        try:
            return f"<sustain.Map {self.name!r}: {len(self)} entries>"
        except StoreClosed:
            return "<sustain.Map of a closed store>"


class _Items(ItemsView[bytes, bytes]):
    """Items read in batches; a value replaced meanwhile is read again only in a later batch."""

    _mapping: Map

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping._entries()


class _Values(ValuesView[bytes]):
    _mapping: Map

    def __iter__(self) -> Iterator[bytes]:
        return (value for _, value in self._mapping._entries())

    def __contains__(self, value: object) -> bool:
        return any(value == held for held in self)
