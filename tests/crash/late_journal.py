"""`sustain` with a journal that is broken on purpose: it notes a change after it is made. `python -m
tests.crash.late_journal WORDS`."""

import sys

from sustain.agent import build
from sustain.cli import main
from tests.schedulers.guest_memory.killed import LateJournal

if __name__ == "__main__":
    build.Journal = LateJournal  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
