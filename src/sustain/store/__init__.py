"""Stores: in-memory objects whose every commit is crash-consistent and can be shipped to other hosts.

Applications use it through `sustain`; the rest of the package through these names. It is thin over the engine
(`sustain._native`): `Store` is a subclass of the native engine, so that `commit`, `rollback` and the map's
item access are native methods with nothing in between. The alternative, wrapping the engine in a Python
object, costs more than the commit itself.
"""

from sustain.store.files import File
from sustain.store.maps import Map
from sustain.store.status import DestinationStatus, PowerStatus, StoreStatus
from sustain.store.store import Store, Transaction, create, open

__all__ = [
    "DestinationStatus",
    "File",
    "Map",
    "PowerStatus",
    "Store",
    "StoreStatus",
    "Transaction",
    "create",
    "open",
]
