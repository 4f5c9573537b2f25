"""The agent's pages: who may listen where, and when."""

import pytest

from sustain.agent.http import Page, Server, get
from sustain.errors import AgentError


def test_it_listens_at_once_where_its_predecessor_has_just_answered() -> None:
    """The connections that were answered stay with the kernel for a minute (TIME_WAIT)."""
    first = Server(("127.0.0.1", 0), lambda path, words: Page(b"first"))
    where = first.address
    assert get(where, "/").body == b"first"
    first.close()
    second = Server(where, lambda path, words: Page(b"second"))
    assert get(where, "/").body == b"second"
    second.close()


def test_where_another_listens_it_says_so() -> None:
    first = Server(("127.0.0.1", 0), lambda path, words: Page(b"first"))
    with pytest.raises(AgentError, match="in use") as refused:
        Server(first.address, lambda path, words: Page(b"second"))
    assert "agent.listen" in refused.value.hint
    assert get(first.address, "/").body == b"first"
    first.close()
