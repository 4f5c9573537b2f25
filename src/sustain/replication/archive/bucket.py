"""An archive in an object store: `s3://bucket/prefix`. Used through `place.open_place`.

Endpoint, region and credentials come from the environment, by the names that obstore and AWS's own tools know, as for
regions. obstore tries again on its own for a few seconds; whoever ships tries again after that, and restores tell.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sustain.errors import ArchiveIOError, ConfigError
from sustain.replication.archive.place import Found, Place, epoch_of

if TYPE_CHECKING:
    from sustain._native import Buffer
    from sustain.replication.archive.rooms import Rooms

_RETRIES = 4
_RETRY_S = 20.0
_PAUSES_S = (0.05, 0.2, 0.8)
_Result = TypeVar("_Result")
_HINT = "look at the bucket's name, AWS_ENDPOINT_URL, the credentials and the network"


class Bucket(Place):
    """`where` is BUCKET/PREFIX."""

    def __init__(self, url: str, where: str) -> None:
        try:
            import obstore
            from obstore import store as stores
        except ImportError:
            raise ConfigError(
                f"{url}: the package obstore is missing", hint="pip install 'sustain[s3]'"
            ) from None
        self.url = url
        self._obstore = obstore
        bucket, _, prefix = where.partition("/")
        http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
        config: dict[str, Any] = {}
        if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
            config["region"] = "us-east-1"
        with self._errors("", "cannot be used"):
            self._store = stores.S3Store(
                bucket,
                prefix=prefix or None,
                client_options={"timeout": "60s", "connect_timeout": "5s", "allow_http": http},
                retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)},
                **config,
            )

    def put(self, path: str, data: "Buffer") -> None:
        with self._errors(path, "cannot be written"):
            self._obstore.put(self._store, path, data, use_multipart=False)

    def get(self, path: str, start: int = 0, length: int | None = None) -> bytes | None:
        def read() -> bytes | None:
            try:
                if start or length is not None:
                    return bytes(self._obstore.get_range(self._store, path, start=start, length=length or 1))
                found = self._obstore.get(self._store, path)
                self.refuse_size(path, found.meta["size"])
                return bytes(found.bytes())
            except FileNotFoundError:
                return None

        with self._errors(path, "cannot be read"):
            return self._again(read)

    def fetch(self, path: str, size: int, rooms: "Rooms") -> memoryview | None:
        def read() -> memoryview | None:
            try:
                found = self._obstore.get(self._store, path)
            except FileNotFoundError:
                return None
            self.refuse_size(path, found.meta["size"], size)
            return memoryview(found.bytes())

        with self._errors(path, "cannot be read"):
            found = self._again(read)
        if found is not None:
            self.refuse_size(path, len(found), size)
        return found

    def list(self, under: str = "") -> list[Found]:
        def read() -> list[Found]:
            return [
                Found(each["path"], each["size"], int(each["last_modified"].timestamp() * 1e9))
                for page in self._obstore.list(self._store, under or None)
                for each in page
            ]

        with self._errors(under, "cannot be listed"):
            return self._again(read)

    def epochs(self) -> set[int]:
        with self._errors("", "cannot be listed"):
            found = self._again(
                lambda: list(self._obstore.list_with_delimiter(self._store)["common_prefixes"])
            )
        names = [path.rstrip("/").rpartition("/")[2] for path in found]
        return {epoch for name in names if (epoch := epoch_of(name)) is not None}

    def delete(self, paths: Sequence[str]) -> None:
        with self._errors("", "cannot be deleted from"):
            for at in range(0, len(paths), 1000):
                self._obstore.delete(self._store, list(paths[at : at + 1000]))

    def sweep(self) -> None:
        pass  # a put that was interrupted leaves nothing

    def _again(self, read: Callable[[], _Result]) -> _Result:
        """Read, and a few times more where the answer came only in part: obstore tries again only before that."""
        for pause_s in _PAUSES_S:
            try:
                return read()
            except self._obstore.exceptions.GenericError:
                time.sleep(pause_s)
        return read()

    @contextmanager
    def _errors(self, path: str, doing: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:  # of the bucket, or of an object that somebody else deleted
            raise ArchiveIOError(f"{self.where(path)} {doing}: {_first_line(error)}", hint=_HINT) from None
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise ArchiveIOError(f"{self.where(path)} {doing}: {_first_line(error)}", hint=_HINT) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
