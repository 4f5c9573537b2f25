"""For tests that map large on this machine's own kernel."""

import pytest


@pytest.fixture(autouse=True)
def _memory_is_put_together(large_pages_are_to_be_had: None) -> None:
    """Each of them begins so."""
