"""An agent as a process, over a directory: dials/, journal, and the socket that it answers on.

`python -m tests.agent.dials_agent DIR [restore]`
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from sustain.agent.agent import Agent
from sustain.agent.config import AgentSection
from sustain.clock import SystemClock
from sustain.errors import SustainError
from sustain.schedulers.journal import Journal, Report
from sustain.schedulers.loop import no_beat
from sustain.testing.scheduler import DialPolicy, DialScheduler


def main(directory: Path, what: str) -> None:
    scheduler = DialScheduler(directory / "dials", Journal(directory / "journal"), DialPolicy(goal=3), 0.05)
    if what == "restore":
        scheduler.restore()
        return
    if (hang := directory / "hang").exists():
        scheduler.fault = lambda step: hang.open().close()  # a FIFO: it waits for a writer
    if (directory / "refuse").exists():
        scheduler.restore = refuse  # type: ignore[method-assign]
    section = AgentSection(listen=f"unix:{directory}/socket", log=f"{directory}/log")
    agent = Agent(
        section, [scheduler], SystemClock(), tell=lambda line: print(line, file=sys.stderr, flush=True)
    )
    if (directory / "eager").exists():
        agent._notify = lambda **_: os.kill(os.getpid(), signal.SIGTERM)  # type: ignore[method-assign]
    agent.run()


def refuse(beat: Callable[[], None] = no_beat) -> Report:
    raise SustainError("nobody is at home", hint="ring again")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "run")
