"""What tests ask of other processes' threads."""

from pathlib import Path


def unblocked(pid: int, number: int) -> list[int]:
    """The threads of a process, but for its main one, that do not block that signal."""
    return [
        int(task.name)
        for task in Path(f"/proc/{pid}/task").iterdir()
        if int(task.name) != pid
        and not int((task / "status").read_text().split("SigBlk:")[1].split()[0], 16) & 1 << number - 1
    ]
