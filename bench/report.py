"""An answer as plain text: one table of figures, what was asked, further tables, and the fair-play notes.

Plain text on purpose: the output is pasted into documents and issues.
"""

from typing import Any

from bench.harness import Answer, machine


def render(name: str, answer: Answer) -> str:
    """The whole answer to `name`."""
    lines = [f"{name}: {answer.question}", ""]
    rows: list[tuple[str, float | None, float | None]] = [("sustain", answer.ours, None)]
    rows += [(peer, value, answer.ratio.get(peer)) for peer, value in answer.peers.items()]
    rows += [(f"limit: {limit}", value, answer.ratio.get(limit)) for limit, value in answer.limit.items()]
    width = max(len(row[0]) for row in rows) + 2
    lines.append(f"  {'':{width}}{answer.unit:>16}{'ours / this':>16}")
    for label, value, ratio in rows:
        ratio_text = "" if ratio is None else figure(ratio)
        lines.append(f"  {label:{width}}{figure(value):>16}{ratio_text:>16}")
    lines.append("")
    for reach in answer.reach:
        mark = {True: "met", False: "NOT MET", None: "not judged"}[reach.met]
        lines.append(f"  {reach.text}: {figure(reach.value)} ({mark})")
    for title, table in answer.details.items():
        lines += ["", f"  {title}", *(f"    {line}" for line in _table(table))]
    lines += [f"  missing: {peer}: {reason}" for peer, reason in answer.missing.items()]
    lines += [f"  note: {note}" for note in answer.notes]
    host = machine()
    lines.append(
        f"  medians of {answer.runs} interleaved rounds; {host['processors']} x {host['processor']}, "
        f"Linux {host['kernel']}, Python {host['python']}, load {host['load_1min']}"
    )
    return "\n".join(lines) + "\n"


def figure(value: float | None) -> str:
    """A number with three or four significant digits, "unknown" for None."""
    if value is None:
        return "unknown"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _table(table: Any) -> list[str]:
    if not isinstance(table, dict):
        return [str(table)]
    lines = []
    for key, value in table.items():
        if isinstance(value, dict):
            cells = "  ".join(f"{name} {_cell(cell)}" for name, cell in value.items())
            lines.append(f"{key:28}{cells}")
        else:
            lines.append(f"{key:28}{_cell(value)}")
    return lines


def _cell(value: Any) -> str:
    return figure(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
