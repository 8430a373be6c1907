"""Compare a pair: is this image that one, or a window of it of at least 93 % per side?

The thumbnails are aligned by Gauss-Newton steps from the best of a few starts; the residual is
compared with the contrast and with the error that the alignment itself may cause.
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.ingest.near.hash import SIDE, cosines

GRID = 24
"""Pixels per side at which thumbnails are compared; finer than SIDE, so that cubics suffice."""
WINDOWS = np.array(
    [(0.0, 0.0, 1.0), *((x, y, 0.95) for y in (0.0, 0.025, 0.05) for x in (0.0, 0.025, 0.05))]
)
"""(10, 3): left, top and side of the starting windows, as fractions of the image's sides; the first
is the whole image."""
LOW = 8
"""Frequencies per axis of a window's spectrum, from zero up."""

_EDGE = 2  # grid pixels excluded along each edge: what lies beyond it is unknown
_STEPS = 4
_FAR = 15.0**2  # squared luma levels; no start with a larger residual converges
_FLAT = 4.0**2  # squared luma levels; an image that varies less is not distinctive
_LEAST_SIDE = 0.93

# Largest residual variance, in squared luma levels and as a fraction of the contrast: for the
# whole image, and for a window of 95 %, whose resampling and lost edges cost accuracy.
_REST_FULL, _REST_CROP = 10.0, 40.0
_PART_FULL, _PART_CROP = 0.025, 0.065


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to 2**-20, so that cosines are equal on all machines."""
    rounded: NDArray[np.float64] = np.rint(values * 2**20) / 2**20
    return rounded


def _projections() -> NDArray[np.float64]:
    """A thumbnail's rows or columns -> low frequencies of a window: (4, LOW, SIDE), integers.

    The first is for the whole image, the others for windows that start at 0, 0.025 and 0.05.
    """
    centres = (np.arange(SIDE) + 0.5) / SIDE
    power = np.where(np.arange(SIDE) == 0, 1.0, np.sqrt(2.0))
    analyse = cosines(SIDE).T / SIDE
    rows = []
    for left, _, side in WINDOWS[:4]:
        inside = np.cos(np.pi * (left + centres * side)[:, None] * np.arange(SIDE)) * power
        rows.append(analyse[:LOW] @ inside @ analyse)
    whole: NDArray[np.float64] = np.rint(np.stack(rows) * 2**16)
    return whole


_FINER = _rounded(cosines(GRID) @ cosines(SIDE).T / SIDE)
_PROJECTIONS = _projections()
_PROJECTIONS_T = np.ascontiguousarray(_PROJECTIONS.transpose(0, 2, 1))


@njit(cache=True)
def open_words(words: Any, out: Any) -> None:
    """Write the thumbnail of `words`, uint64 (WORDS,), to `out`, float64 (SIDE, SIDE)."""
    for n in range(SIDE * SIDE):
        byte = (words[n >> 3] >> np.uint64(8 * (n & 7))) & np.uint64(255)
        out[n // SIDE, n % SIDE] = float(byte)


@njit(cache=True)
def _low_rows(thumb: Any, n: int) -> Any:
    rows = np.zeros((LOW, SIDE))
    for v in range(LOW):
        for y in range(SIDE):
            for x in range(SIDE):
                rows[v, x] += _PROJECTIONS[n, v, y] * thumb[y, x]
    return rows


@njit(cache=True)
def _spectrum(rows: Any, projection: Any, out: Any) -> None:
    out[:] = 0.0
    for v in range(LOW):
        for x in range(SIDE):
            for h in range(LOW):
                out[v, h] += projection[x, h] * rows[v, x]


@njit(cache=True)
def spectra(thumb: Any, out: Any) -> None:
    """Write the low frequencies of each of WINDOWS to `out`, (10, LOW, LOW).

    In units of 2**-32 luma levels: integers below 2**53, exact on every machine.
    """
    _spectrum(_low_rows(thumb, 0), _PROJECTIONS_T[0], out[0])
    for top in range(3):
        rows = _low_rows(thumb, 1 + top)
        for left in range(3):
            _spectrum(rows, _PROJECTIONS_T[1 + left], out[1 + 3 * top + left])


@njit(cache=True)
def refine(thumb: Any, out: Any) -> None:
    """Interpolate a thumbnail (SIDE, SIDE) to `out` (GRID, GRID), losslessly."""
    rows = np.zeros((GRID, SIDE))
    for i in range(GRID):
        for k in range(SIDE):
            for j in range(SIDE):
                rows[i, j] += _FINER[i, k] * thumb[k, j]
    for i in range(GRID):
        for j in range(GRID):
            total = 0.0
            for k in range(SIDE):
                total += _FINER[j, k] * rows[i, k]
            out[i, j] = total


@njit(cache=True)
def _taps(start: Any, side: Any, pixel: Any, weights: Any) -> Any:
    """Fill in the four weights of a Catmull-Rom cubic; returns the index of its second pixel."""
    at = (start + (pixel + 0.5) / GRID * side) * GRID - 0.5
    base = math.floor(at)
    t = at - base
    weights[0] = ((-0.5 * t + 1.0) * t - 0.5) * t
    weights[1] = (1.5 * t - 2.5) * t * t + 1.0
    weights[2] = ((-1.5 * t + 2.0) * t + 0.5) * t
    weights[3] = (0.5 * t - 0.5) * t * t
    return int(base)


@njit(cache=True)
def _cut(image: Any, window: Any, out: Any) -> None:
    """Resample a window of `image` to `out`, both (GRID, GRID); edges are repeated."""
    rows = np.empty((GRID, GRID))
    weights = np.empty(4)
    last = GRID - 1
    for i in range(GRID):
        base = _taps(window[1], window[2], i, weights)
        k0, k1 = min(max(base - 1, 0), last), min(max(base, 0), last)
        k2, k3 = min(max(base + 1, 0), last), min(max(base + 2, 0), last)
        for j in range(GRID):
            rows[i, j] = (
                weights[0] * image[k0, j]
                + weights[1] * image[k1, j]
                + weights[2] * image[k2, j]
                + weights[3] * image[k3, j]
            )
    for j in range(GRID):
        base = _taps(window[0], window[2], j, weights)
        k0, k1 = min(max(base - 1, 0), last), min(max(base, 0), last)
        k2, k3 = min(max(base + 1, 0), last), min(max(base + 2, 0), last)
        for i in range(GRID):
            out[i, j] = (
                weights[0] * rows[i, k0]
                + weights[1] * rows[i, k1]
                + weights[2] * rows[i, k2]
                + weights[3] * rows[i, k3]
            )


@njit(cache=True)
def _rest(one: Any, other: Any) -> Any:
    """Return the variance of the difference of two images (GRID, GRID), edges excluded."""
    total = squares = 0.0
    for i in range(_EDGE, GRID - _EDGE):
        for j in range(_EDGE, GRID - _EDGE):
            difference = one[i, j] - other[i, j]
            total += difference
            squares += difference * difference
    num = (GRID - 2 * _EDGE) ** 2
    return squares / num - (total / num) ** 2


@njit(cache=True)
def _solve(a: Any) -> None:
    """Solve normal equations (4, 5) in place; the last column becomes the solution."""
    for m in range(4):
        a[m, m] = a[m, m] * 1.001 + 1e-3  # Positive definite: no pivoting needed.
    for m in range(4):
        a[m, m:] /= a[m, m]
        for n in range(4):
            if n != m:
                a[n, m:] -= a[n, m] * a[m, m:]


@njit(cache=True)
def _step(cut: Any, small: Any, window: Any, out: Any) -> None:
    """Write to `out` the window after one Gauss-Newton step from `window`."""
    # Normal equations for left, top, side and a brightness offset.
    a = np.zeros((4, 5))
    v = np.empty(5)
    v[3] = 1.0
    for i in range(_EDGE, GRID - _EDGE):
        for j in range(_EDGE, GRID - _EDGE):
            v[0] = (cut[i, j + 1] - cut[i, j - 1]) * 0.5 * GRID / window[2]
            v[1] = (cut[i + 1, j] - cut[i - 1, j]) * 0.5 * GRID / window[2]
            v[2] = (v[0] * (j + 0.5) + v[1] * (i + 0.5)) / GRID
            v[4] = small[i, j] - cut[i, j]
            for m in range(4):
                for n in range(5):
                    a[m, n] += v[m] * v[n]
    _solve(a)
    out[0] = min(max(window[0] + a[0, 4], -0.01), 0.12)
    out[1] = min(max(window[1] + a[1, 4], -0.01), 0.12)
    out[2] = min(max(window[2] + a[2, 4], 0.88), 1.01)


@njit(cache=True)
def _start(large: Any, small: Any) -> Any:
    """Choose the window of a thumbnail whose low frequencies are closest to those of another.

    Returns:
        Its row in WINDOWS; -1 if even that is too far off.
    """
    views = np.empty((len(WINDOWS), LOW, LOW))
    whole = np.empty((LOW, LOW))
    spectra(large, views)
    _spectrum(_low_rows(small, 0), _PROJECTIONS_T[0], whole)
    least, chosen = _FAR, -1
    for n in range(len(WINDOWS)):
        apart = views[n] - whole
        apart[0, 0] = 0.0
        rest = (apart * apart).sum() / 2.0**64
        if rest < least:
            least, chosen = rest, n
    return chosen


@njit(cache=True)
def _align(large: Any, small: Any, best: Any) -> Any:
    """Align the window `best` of `large` with `small`, both (GRID, GRID).

    Returns:
        The residual variance, squared luma levels.
    """
    cut = np.empty((GRID, GRID))
    _cut(large, best, cut)
    rest = _rest(cut, small)
    window = np.empty(3)
    for _ in range(_STEPS):
        _step(cut, small, best, window)
        _cut(large, window, cut)
        now = _rest(cut, small)
        if now >= rest:
            break
        rest = now
        best[:] = window
    return rest


@njit(cache=True)
def is_flat(thumb: Any) -> Any:
    """Tell whether a thumbnail (SIDE, SIDE) varies too little to be distinctive: paper, sky."""
    mean = thumb.mean()
    return (thumb * thumb).mean() - mean * mean < _FLAT


@njit(cache=True)
def shows(large: Any, small: Any) -> Any:
    """Tell whether `small` is `large` or a window of it, both thumbnails (SIDE, SIDE)."""
    start = _start(large, small)
    if start < 0:
        return False
    large_fine = np.empty((GRID, GRID))
    small_fine = np.empty((GRID, GRID))
    refine(large, large_fine)
    refine(small, small_fine)
    window = WINDOWS[start].copy()
    rest = _align(large_fine, small_fine, window)
    if window[2] < _LEAST_SIDE:
        return False
    cropped = min(max((1.0 - window[2]) / 0.05, 0.0), 1.0)
    part = _PART_FULL + (_PART_CROP - _PART_FULL) * cropped
    flat = np.zeros((GRID, GRID))
    contrast = min(_rest(large_fine, flat), _rest(small_fine, flat))
    return rest <= min(_REST_FULL + (_REST_CROP - _REST_FULL) * cropped, part * contrast)
