"""Replication: a store's log and snapshots, carried to other hosts.

Used by `sustain ship`, `sustain receive` and the supervisor. Pure: `wire`, `session`, `pins`, `records`,
`urls`, the handshakes in `auth`. With sockets and threads: `channel`, `listener`, `destination`, `outlet`,
`ship`, `intake`, `receive`. Bytes on the wire: docs/formats/wire.md.

Threads and blocking calls, not asyncio: the two calls that matter (socket and engine) both release the
interpreter lock, a destination that blocks then holds up nobody else, and the futex wait for the next commit
has no file descriptor to select on.
"""
