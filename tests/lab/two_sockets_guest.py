"""Runs a program in a guest of `two_sockets`, with `answer` to say what its test is to see."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

_ANSWER = Path("/run/lab/answer")


def answer(value: Any) -> None:
    """Kept for the test, as JSON; the last one counts."""
    draft = _ANSWER.with_suffix(".new")
    draft.write_text(json.dumps(value))
    draft.replace(_ANSWER)


if __name__ == "__main__":
    runpy.run_path(sys.argv[1], {"answer": answer}, "__main__")
