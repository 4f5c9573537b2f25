"""Sustain keeps the memory of a Linux host alive through power loss and host failure.

This is the public face for applications: `create` and `open` a store, the objects in it, and the errors.
Operators use the command line (`sustain --help`). The names here are a contract; what is not exported here or
from `sustain.testing` may change. Importing it is cheap on purpose (no NumPy until an array is asked for): a
command that is taken over must start in tens of milliseconds.
"""

from sustain.errors import (
    AuthenticationFailed,
    ConfigError,
    LeaseError,
    LogFull,
    LogTooSmall,
    NewerVersion,
    NoSuchObject,
    NotAStore,
    ObjectInUse,
    PeerRefused,
    PeerUnreachable,
    PowerSourceError,
    ProtocolError,
    ReplicationError,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFenced,
    StoreFull,
    StoreIOError,
    StorePoisoned,
    StoreReadOnly,
    StoreUntrusted,
    SustainError,
    WaitTimeout,
)
from sustain.store import DestinationStatus, File, Map, Store, StoreStatus, Transaction, create, open

__version__ = "0.1.0"

__all__ = [
    "AuthenticationFailed",
    "ConfigError",
    "DestinationStatus",
    "File",
    "LeaseError",
    "LogFull",
    "LogTooSmall",
    "Map",
    "NewerVersion",
    "NoSuchObject",
    "NotAStore",
    "ObjectInUse",
    "PeerRefused",
    "PeerUnreachable",
    "PowerSourceError",
    "ProtocolError",
    "ReplicationError",
    "Store",
    "StoreBusy",
    "StoreClosed",
    "StoreCorrupt",
    "StoreError",
    "StoreFenced",
    "StoreFull",
    "StoreIOError",
    "StorePoisoned",
    "StoreReadOnly",
    "StoreStatus",
    "StoreUntrusted",
    "SustainError",
    "Transaction",
    "WaitTimeout",
    "__version__",
    "create",
    "open",
]
