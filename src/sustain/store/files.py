"""Files inside a store: bytes at offsets, committed and rolled back with everything else.

For applications that have a blob with an inside (a cursor file, a serialised index). It is not a Python file
object: no cursor and no buffering, because two layers that each believe to know what is committed would
disagree.
"""

from sustain import _native
from sustain.errors import StoreClosed


class File(_native.File):
    """A growing sequence of bytes by name. Made by `Store.file`.

    - `pread(length, offset) -> bytes`: shorter at the end of the file, empty beyond it.
    - `pwrite(data, offset) -> int`: writes all of `data`, growing the file; bytes never written are zero.
      StoreFull when the image has no room, and nothing was changed then.
    - `truncate(size)`: shrinks or grows (with zeros).
    - `size`: bytes.

    Changes become durable with `Store.commit`.
    """

    def __repr__(self) -> str:
        try:
            return f"<sustain.File {self.name!r}: {self.size} bytes>"
        except StoreClosed:
            return "<sustain.File of a closed store>"
