"""A target's blocks as a picture of pixels, in PNG. Pure.

Used by `sustain pages map --png`, for what shows no SVG. Cells, colours and borders are `heat`'s; there is no text in
the picture, so its legend is a row of samples at the top, and what they and the rows mean is in the file's text chunks
(Title, Description). Why it is written here, and not by a library: docs/decisions/0024-png-by-ourselves.md.

The format (https://www.w3.org/TR/png-3/): a signature, then chunks of length, kind, data, CRC-32 of kind and data. IHDR
has the size; PLTE up to 256 colours; IDAT, by zlib, for each line a filter (0: none) and a byte for each pixel.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.large_pages import heat
from sustain.schedulers.large_pages.heat import CELL, COLOURS, COLUMNS, GREY, PLAIN, Columns
from sustain.schedulers.large_pages.model import PAGES

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SHADES = 240  # from white to red; the rest of the palette is for the other colours
EDGE = 8  # pixels on each side
TOP = EDGE + 2 * CELL  # where the rows of blocks begin
_INDEXED = 3  # colour type of IHDR
_RAMP = 32  # cells of the legend from white to red
_MARKS = ("L", "+", "-", "~")
_SINGLE = [PLAIN, GREY, *(COLOURS[each] for each in _MARKS)]
_PLACE = {colour: SHADES + number for number, colour in enumerate(_SINGLE)}  # in the palette

Pixels = NDArray[np.uint8]


def png(name: str, columns: Columns) -> bytes:
    """The whole file. `columns`: as `explain.as_columns` makes them."""
    rows = list(heat.in_rows(columns))
    pixels = np.zeros((TOP + len(rows) * CELL + EDGE, 2 * EDGE + COLUMNS * CELL), np.uint8)  # 0 is white
    _legend(pixels)
    for number, (_, places) in enumerate(rows):
        for place, row in places:
            border = _PLACE[heat.border_of(columns, row)]
            _cell(pixels, TOP + number * CELL, place, _shade(columns["estimate"][row]), border)
    starts = ", ".join(f"{start:#x}" for start, _ in rows)
    said = {
        "Title": f"{name}: accessed pages of each block of 2 MiB",
        "Description": f"Above: white to red, 0 to {PAGES} pages accessed by estimate; grey: unknown; borders: mapped "
        f"large, next, to be small, a recount. Below: {COLUMNS} blocks in a row, the rows from {starts or 'none'}.",
    }
    return SIGNATURE + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, _INDEXED, 0, 0, 0)),
            (b"PLTE", _palette()),
            *((b"iTXt", _text(keyword, text)) for keyword, text in said.items()),
            (b"IDAT", zlib.compress(np.pad(pixels, ((0, 0), (1, 0))).tobytes(), 9)),
            (b"IEND", b""),
        )
    )


def _legend(pixels: Pixels) -> None:
    plain = _PLACE[PLAIN]
    for place in range(_RAMP):
        _cell(pixels, EDGE, place, _shade(place * PAGES / (_RAMP - 1)), plain)
    _cell(pixels, EDGE, _RAMP + 2, _shade(None), plain)
    for number, mark in enumerate(_MARKS):
        _cell(pixels, EDGE, _RAMP + 5 + 2 * number, 0, _PLACE[COLOURS[mark]])


def _cell(pixels: Pixels, y: int, place: int, fill: int, border: int) -> None:
    """A frame of one pixel, filled; the last pixel on each side is left free."""
    x, size = EDGE + place * CELL, CELL - 1
    pixels[y : y + size, x : x + size] = border
    pixels[y + 1 : y + size - 1, x + 1 : x + size - 1] = fill


def _shade(estimate: float | None) -> int:
    if estimate is None:
        return _PLACE[GREY]
    return round((SHADES - 1) * min(1.0, estimate / PAGES))


def _palette() -> bytes:
    rest = [255 - round(255 * shade / (SHADES - 1)) for shade in range(SHADES)]
    reds = b"".join(bytes((255, each, each)) for each in rest)
    return reds + b"".join(bytes.fromhex(colour[1:]) for colour in _SINGLE)


def _text(keyword: str, text: str) -> bytes:
    """Keyword, not compressed, of no language, UTF-8."""
    return keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
