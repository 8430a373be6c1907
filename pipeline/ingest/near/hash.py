"""A perceptual hash of 256 bytes: a luma thumbnail that every machine computes identically.

The thumbnail is band-limited: it holds the lowest 16 x 16 frequencies of the image and no aliases
of higher ones. So it can be shifted and zoomed by fractions of a pixel, which is how `check` finds
that one image is a crop of another; a thumbnail of box means cannot.

All arithmetic is on integers, so equal pixels give equal words everywhere.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

SIDE = 16
"""Pixels per side of the thumbnail."""
WORDS = SIDE * SIDE // 8
"""uint64 words of a hash."""

_CELLS = 48  # per side; fine enough for their own aliases not to matter
_CELL_BITS = 8  # fractional bits of a cell's mean
_WEIGHT_BITS = 14


def cosines(num: int) -> NDArray[np.float64]:
    """Evaluate the SIDE lowest cosines of unit power at the centres of `num` pixels.

    Returns:
        float64 (num, SIDE).
    """
    angles = np.pi / num * np.outer(np.arange(num) + 0.5, np.arange(SIDE))
    waves: NDArray[np.float64] = np.cos(angles) * np.where(np.arange(SIDE) == 0, 1.0, np.sqrt(2.0))
    return waves


def _weights() -> NDArray[np.float64]:
    """Cells -> pixels along one axis: low frequencies, tapered so that edges do not ring."""
    taper = np.exp(-((np.arange(SIDE) / SIDE) ** 2))
    exact = cosines(SIDE) * taper @ cosines(_CELLS).T / _CELLS
    whole: NDArray[np.float64] = np.rint(exact * 2**_WEIGHT_BITS)
    return whole


_WEIGHTS = _weights()  # (SIDE, _CELLS), integers
_WEIGHTS_T = np.ascontiguousarray(_WEIGHTS.T)


def near_words(
    gray: NDArray[np.uint8], size: tuple[int, int] | None = None, scale: int = 1
) -> NDArray[np.uint64]:
    """Shrink an image to 16 x 16 luma values, whatever its shape.

    Args:
        gray: uint8 (H, W), luma of the upright image, at least 1 x 1; or means of its blocks of
            `scale` by `scale` pixels, the last of which may reach beyond it.
        size: (height, width) of the image, px; None for that of `gray`.
        scale: Image pixels per side of a pixel of `gray`.

    Returns:
        uint64 (WORDS,); as little-endian bytes, the thumbnail's pixels row by row.
    """
    pixels = np.empty((SIDE, SIDE), np.uint8)
    _shrink(np.ascontiguousarray(gray), *(size or gray.shape), scale, pixels)
    return pixels.reshape(-1).view("<u8").astype(np.uint64)


@njit(inline="always")
def _mix_cells(cells: Any, area: Any, pixels: Any) -> None:
    """Turn sums of cells into pixels. Values are integers below 2**53: float64 is exact."""
    rows = np.zeros((SIDE, _CELLS))
    means = np.empty(_CELLS)
    whole, half = float(area), float(area // np.uint64(2))
    for i in range(_CELLS):
        for j in range(_CELLS):
            means[j] = np.floor((cells[i, j] * 2.0**_CELL_BITS + half) / whole)
        for v in range(SIDE):
            weight = _WEIGHTS[v, i]
            for j in range(_CELLS):
                rows[v, j] += weight * means[j]
    _mix_rows(rows, pixels)


@njit(inline="always")
def _mix_rows(rows: Any, pixels: Any) -> None:
    one = 2.0 ** (_CELL_BITS + 2 * _WEIGHT_BITS)
    for v in range(SIDE):
        totals = np.zeros(SIDE)
        for j in range(_CELLS):
            mean = rows[v, j]
            for h in range(SIDE):
                totals[h] += mean * _WEIGHTS_T[j, h]
        for h in range(SIDE):
            pixels[v, h] = np.uint8(min(max(np.floor(totals[h] / one + 0.5), 0.0), 255.0))


@njit(inline="always")  # NumPy's sums along rows take over twice as long.
def _add_cells(gray: Any, height: Any, width: Any, scale: Any, cells: Any) -> None:
    """Sum luma over a grid of equal cells; a pixel on an edge is split by its overlap.

    Lengths are in units of 1 / (_CELLS * scale) pixel of `gray`, so that overlaps are integers and
    a cell's area is that of the image in pixels. A cell is the cumulative sum at its end less that
    at its start.
    """
    unit = _CELLS * scale
    num_rows, num_columns = gray.shape
    ends = (np.arange(_CELLS) + 1) * width // unit  # whole pixels up to the end of each column
    parts = ((np.arange(_CELLS) + 1) * width - ends * unit).astype(np.uint64)
    whole = np.zeros(num_columns, np.uint32)  # sum of all rows so far; at most 255 * num_rows
    above = np.zeros(
        num_columns, np.uint32
    )  # `unit` times that, modulo 2**32; differences are exact
    line = np.empty(num_columns, np.uint32)
    y = 0
    for i in range(_CELLS):
        bottom = (i + 1) * height
        end = bottom // unit
        while y < end:
            row = gray[y]
            for x in range(num_columns):
                whole[x] += np.uint32(row[x])
            y += 1
        part, row = np.uint32(bottom - end * unit), gray[min(y, num_rows - 1)]
        for x in range(num_columns):
            sum_x = np.uint32(unit) * whole[x] + part * np.uint32(row[x])
            line[x] = sum_x - above[x]
            above[x] = sum_x
        _cut_line(line, ends, parts, np.uint64(unit), cells[i])


@njit(inline="always")
def _cut_line(line: Any, ends: Any, parts: Any, unit: Any, cells: Any) -> None:
    """Sum a row of column sums over its cells."""
    total = before = np.uint64(0)
    x = 0
    for j in range(_CELLS):
        while x < ends[j]:
            total += np.uint64(line[x])
            x += 1
        upto = unit * total + parts[j] * np.uint64(line[min(x, len(line) - 1)])
        cells[j] = float(upto - before)
        before = upto


# Compiled at import, for writable and read-only arrays.
_GRAY = types.Array(types.uint8, 2, "C", readonly=True)
_SIZES = (types.int64,) * 3


@njit(types.void(_GRAY, *_SIZES, types.uint8[:, ::1]), cache=True)
def _shrink(gray: Any, height: Any, width: Any, scale: Any, pixels: Any) -> None:
    """Write the thumbnail to `pixels`, uint8 (SIDE, SIDE)."""
    cells = np.empty((_CELLS, _CELLS))
    _add_cells(gray, height, width, scale, cells)
    _mix_cells(cells, np.uint64(height) * np.uint64(width), pixels)
