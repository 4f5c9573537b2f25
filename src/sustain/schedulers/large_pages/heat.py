"""A target's blocks as a picture: lines of text for a terminal, and SVG. Pure.

Used by `sustain pages map`. A place is a block; blocks that are not in memory leave theirs empty. A taller or darker
place has more of its pages accessed, by estimate. `heat_png` draws the same as PNG.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sustain.schedulers.large_pages.model import BLOCK_BYTES, PAGES

COLUMNS = 64  # blocks in a row: 128 MiB
_LEVELS = "·▁▂▃▄▅▆▇█"  # no page accessed, up to all
_UNKNOWN = "?"
_NEXT = {
    "collapse": "+",
    "counted": "+",
    "cold": "-",
    "replaced": "-",
    "pressure": "-",
    "recounted": "~",
}
_LARGE = "L"
LEGEND = (
    f"{_LEVELS} of {PAGES} pages accessed by estimate ({_UNKNOWN} unknown, blank: not in memory); below: "
    f"{_LARGE} mapped large, + would be next, - would be small, ~ a recount"
)
CELL = 9  # pixels, with the gap to the next
_LEFT, _TOP = 130, 40
COLOURS = {"L": "#1f4fbf", "+": "#1a9641", "-": "#b03060", "~": "#a0a000"}
PLAIN, GREY = "#eeeeee", "#cccccc"  # a border that says nothing; an unknown number of pages

Columns = Mapping[str, Sequence[Any]]  # as `explain.as_columns` makes them


def text(columns: Columns) -> list[str]:
    """Rows of COLUMNS blocks; a second line of marks where there is something to mark."""
    lines = []
    for start, places in in_rows(columns):
        heat, marks = [" "] * COLUMNS, [" "] * COLUMNS
        for place, row in places:
            heat[place] = level(columns["estimate"][row])
            marks[place] = mark(columns, row)
        lines.append(f"{start:#14x}  {''.join(heat)}".rstrip())
        if any(each.strip() for each in marks):
            lines.append((" " * 16 + "".join(marks)).rstrip())
    return lines


def svg(name: str, columns: Columns) -> str:
    """The same, as a document of its own."""
    rows, said = list(in_rows(columns)), name.replace("&", "&amp;").replace("<", "&lt;")
    width, height = _LEFT + COLUMNS * CELL + 10, _TOP + len(rows) * CELL + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="monospace" '
        'font-size="8">',
        f"<title>{said}: accessed pages of each block of 2 MiB</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="16" font-size="12">{said}: accessed pages of each block of 2 MiB</text>',
        '<text x="8" y="30">white: none, red: all 512; grey: unknown; border: '
        + ", ".join(
            f'<tspan fill="{COLOURS[each]}">{said}</tspan>'
            for each, said in (("L", "mapped large"), ("+", "next"), ("-", "to be small"), ("~", "a recount"))
        )
        + "</text>",
    ]
    for number, (start, places) in enumerate(rows):
        y = _TOP + number * CELL
        parts.append(f'<text x="8" y="{y + 7}">{start:#x}</text>')
        parts += [_cell(columns, row, _LEFT + place * CELL, y) for place, row in places]
    return "\n".join((*parts, "</svg>\n"))


def level(estimate: float | None) -> str:
    """One character for how many pages are accessed."""
    if estimate is None:
        return _UNKNOWN
    if estimate < 0.5:
        return _LEVELS[0]
    return _LEVELS[min(len(_LEVELS) - 1, 1 + int(estimate * (len(_LEVELS) - 1) / (PAGES + 1)))]


def mark(columns: Columns, row: int) -> str:
    """What is done or would be next, or how it is mapped."""
    finding, large = columns["finding"][row], columns["large"][row]
    if finding == "rate":  # it waits for its turn, in one direction or the other
        return "-" if large else "+"
    return _NEXT.get(finding, _LARGE if large else " ")


def border_of(columns: Columns, row: int) -> str:
    """The colour of a block's border, by its mark."""
    return COLOURS.get(mark(columns, row), PLAIN)


def _cell(columns: Columns, row: int, x: int, y: int) -> str:
    estimate = columns["estimate"][row]
    if estimate is None:
        fill = GREY
    else:
        rest = 255 - round(255 * min(1.0, estimate / PAGES))
        fill = f"#ff{rest:02x}{rest:02x}"
    border = border_of(columns, row)
    said = f"{columns['address'][row]:#x}: {'unknown' if estimate is None else estimate}, {columns['finding'][row]}"
    return (
        f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" fill="{fill}" stroke="{border}">'
        f"<title>{said}</title></rect>"
    )


def in_rows(columns: Columns) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """(address where a row begins, its blocks as (place in it, number))."""
    wide = COLUMNS * BLOCK_BYTES
    begun, places = -1, list[tuple[int, int]]()
    for number, address in enumerate(columns["address"]):
        start = address // wide * wide
        if start != begun:
            if places:
                yield begun, places
            begun, places = start, []
        places.append(((address - start) // BLOCK_BYTES, number))
    if places:
        yield begun, places
