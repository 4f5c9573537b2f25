"""To be nobody for a while: what root may read and others may not."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def public_directory() -> Iterator[Path]:
    """A directory that everybody can reach, unlike pytest's."""
    made = Path(tempfile.mkdtemp(prefix="sustain-test-"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made)


@contextmanager
def nobody() -> Iterator[None]:
    """Without rights; who has none anyway stays who they are."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)
