"""What an image looks like, in 256 bytes: a thumbnail of its luma that any machine computes alike.

The thumbnail is band-limited: it holds the lowest 16 x 16 frequencies of the image and no aliases
of higher ones. So it can be shifted and zoomed by fractions of a pixel, which is how
`near_check` finds that one image is a crop of another; a thumbnail of box means can not.

All arithmetic is on integers, so equal pixels give equal words everywhere.
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

SIDE = 16
"""Pixels per side of the thumbnail."""
WORDS = SIDE * SIDE // 8
"""uint64 words of a hash."""

_CELLS = 48  # per side; fine enough that their own aliases do not matter
_CELL_BITS = 8  # below the point, of a cell's mean
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


def near_words(gray: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Shrink an image to 16 x 16 luma values, whatever its shape.

    Args:
        gray: uint8 (H, W), luma of the upright image, at least 1 x 1.

    Returns:
        uint64 (WORDS,); as little-endian bytes, the thumbnail's pixels row by row.
    """
    cells = np.empty((_CELLS, _CELLS), np.uint64)
    _add_cells(np.ascontiguousarray(gray), cells)
    pixels = np.empty((SIDE, SIDE), np.uint8)
    _mix_cells(cells, np.uint64(gray.size), pixels)
    return pixels.reshape(-1).view("<u8").astype(np.uint64)


@njit(cache=True)
def _mix_cells(cells: Any, area: Any, pixels: Any) -> None:
    """Make pixels of the sums of cells. Numbers are whole and below 2**53: float64 is exact."""
    rows = np.zeros((SIDE, _CELLS))
    whole, half = float(area), float(area // np.uint64(2))
    for i in range(_CELLS):
        for j in range(_CELLS):
            mean = math.floor((float(cells[i, j] << np.uint64(_CELL_BITS)) + half) / whole)
            for v in range(SIDE):
                rows[v, j] += _WEIGHTS[v, i] * mean
    _mix_rows(rows, pixels)


@njit(inline="always")
def _mix_rows(rows: Any, pixels: Any) -> None:
    one = 2.0 ** (_CELL_BITS + 2 * _WEIGHT_BITS)
    for v in range(SIDE):
        for h in range(SIDE):
            total = 0.0
            for j in range(_CELLS):
                total += rows[v, j] * _WEIGHTS[h, j]
            pixels[v, h] = min(max(math.floor(total / one + 0.5), 0), 255)


@njit(cache=True)  # NumPy's sums along rows take more than twice the time.
def _add_cells(gray: Any, cells: Any) -> None:
    """Sum luma over a grid of equal cells; a pixel on an edge counts in both by its overlap.

    Lengths are in units of 1 / _CELLS pixel, so that overlaps are integers and a cell's area is
    that of the image in pixels. A cell is what is summed up to its end less that up to its start.
    """
    height, width = gray.shape
    whole = np.zeros(width, np.uint32)  # all rows so far; at most 255 * height
    above = np.zeros(width, np.uint32)  # at most 255 * height * _CELLS; differences stay right
    line = np.empty(width, np.uint32)
    y = 0
    for i in range(_CELLS):
        bottom = (i + 1) * height
        while y < bottom // _CELLS:
            row = gray[y]
            for x in range(width):
                whole[x] += np.uint32(row[x])
            y += 1
        part, row = np.uint32(bottom % _CELLS), gray[min(y, height - 1)]
        for x in range(width):
            sum_x = np.uint32(_CELLS) * whole[x] + part * np.uint32(row[x])
            line[x] = sum_x - above[x]
            above[x] = sum_x
        _cut_line(line, cells[i])


@njit(inline="always")
def _cut_line(line: Any, cells: Any) -> None:
    """Sum a row of column sums over its cells."""
    width = len(line)
    total = before = np.uint64(0)
    x = 0
    for j in range(_CELLS):
        right = (j + 1) * width
        while x < right // _CELLS:
            total += np.uint64(line[x])
            x += 1
        part = np.uint64(right % _CELLS) * np.uint64(line[min(x, width - 1)])
        upto = np.uint64(_CELLS) * total + part
        cells[j] = upto - before
        before = upto
