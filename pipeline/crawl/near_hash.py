"""What an image looks like, in 256 bytes: a thumbnail of its luma that any machine computes alike.

The thumbnail is band-limited: it holds the lowest 16 x 16 frequencies of the image and no aliases
of higher ones. So it can be shifted and zoomed by fractions of a pixel, which is how
`near_check` finds that one image is a crop of another; a thumbnail of box means can not.

All arithmetic is on integers, so equal pixels give equal words everywhere.
"""

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
    cells = np.zeros((_CELLS, _CELLS), np.uint64)
    _add_cells(np.ascontiguousarray(gray), cells)
    area = np.uint64(gray.size)
    means = ((cells << np.uint64(_CELL_BITS)) + area // np.uint64(2)) // area
    # Integers below 2**53: float64 sums them exactly, in whatever order BLAS chooses.
    scaled = _WEIGHTS @ means.astype(np.float64) @ _WEIGHTS.T
    pixels = np.floor(scaled / 2.0 ** (_CELL_BITS + 2 * _WEIGHT_BITS) + 0.5)
    return np.clip(pixels, 0, 255).astype(np.uint8).reshape(-1).view("<u8").astype(np.uint64)


@njit(cache=True)  # NumPy's sums along rows take twice the time there is.
def _add_cells(gray: Any, cells: Any) -> None:
    """Sum luma over a grid of equal cells; a pixel on an edge counts in both by its overlap.

    Lengths are in units of 1 / _CELLS pixel, so that overlaps are integers and a cell's area is
    that of the image in pixels.
    """
    height, width = gray.shape
    line = np.zeros(width, np.uint32)  # at most 255 * height
    for i in range(_CELLS):
        line[:] = 0
        top, bottom = i * height, (i + 1) * height
        for y in range(top // _CELLS, (bottom - 1) // _CELLS + 1):
            overlap = np.uint32(min(bottom, (y + 1) * _CELLS) - max(top, y * _CELLS))
            for x in range(width):
                line[x] += overlap * gray[y, x]
        for j in range(_CELLS):
            left, right = j * width, (j + 1) * width
            total = np.uint64(0)
            for x in range(left // _CELLS, (right - 1) // _CELLS + 1):
                overlap = np.uint32(min(right, (x + 1) * _CELLS) - max(left, x * _CELLS))
                total += np.uint64(overlap) * np.uint64(line[x])
            cells[i, j] = total
