"""The manifest of one primary, put again and again. Used by `shipping`.

It has one writer, so no condition is asked of the place. That there is one is looked at: what is there must be what was
put last. A copied store file that ships under the same epoch is found out so, and an archive that was taken away.
"""

import threading

from sustain.errors import PeerUnreachable
from sustain.replication.archive import names
from sustain.replication.archive.documents import Manifest, encode
from sustain.replication.archive.place import Place


class Promise:
    """At `place`."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._manifest: Manifest | None = None
        self._bytes: bytes | None = None  # None: nothing was put yet, so anything may be there

    def put(self, manifest: Manifest) -> None:
        """Raises PeerUnreachable, ArchiveIOError."""
        path, data = names.manifest_path(manifest.epoch), encode(manifest)
        if self._bytes is not None and self._place.get(path) != self._bytes:
            raise PeerUnreachable(
                f"{self._place.where(path)} is not as it was put: somebody else ships there, or took it away",
                hint="one `sustain ship` for each archive; it is looked at again",
            )
        self._place.put(path, data)
        self._bytes = data
        with self._lock:
            self._manifest = manifest

    def manifest(self) -> Manifest | None:
        """As it was last put; None: not yet. From any thread."""
        with self._lock:
            return self._manifest
