"""How the compiled kernel shows a tile that is cut: shifted, reduced, tinted, mirrored."""

from typing import Any

import numpy as np
from numba import njit

from pipeline.dali.filters import EXACT, taps
from pipeline.pretext.plan import noise_at

_compiled = njit(**EXACT, cache=True)


@_compiled
def shift_channels(tile: Any, wide: Any, cut: Any) -> None:
    """Take each channel of `tile` (S, S, 3) from its own place in `wide` (S + reach, ...)."""
    side = tile.shape[0]
    for c in range(3):
        down, right = cut[2 + 2 * c], cut[3 + 2 * c]
        for y in range(side):
            for x in range(side):
                tile[y, x, c] = wide[y + down, x + right, c]


@_compiled
def show(tile: Any, cut: Any, tint: Any, mirrored: Any) -> None:
    """Change a tile (uint8 (S, S, 3)) in place as its row of cuts and its tint (3, 5) say."""
    side = tile.shape[0]
    if cut[8] != side:
        _reduce(tile, cut[8])
    if not _leaves_colors(tint):
        _tint(tile, tint, cut[9], cut[10])
    if mirrored != 0:
        for y in range(side):
            for x in range(side // 2):
                for c in range(3):
                    left = tile[y, x, c]
                    tile[y, x, c] = tile[y, side - 1 - x, c]
                    tile[y, side - 1 - x, c] = left


@_compiled
def _leaves_colors(tint: Any) -> Any:
    for c in range(3):
        for k in range(5):
            if tint[c, k] != (1 if c == k else 0):
                return False
    return True


@_compiled
def _tint(tile: Any, tint: Any, top: Any, left: Any) -> None:
    for y in range(tile.shape[0]):
        for x in range(tile.shape[1]):
            red, green, blue = tile[y, x, 0], tile[y, x, 1], tile[y, x, 2]
            for c in range(3):
                value = tint[c, 0] * red + tint[c, 1] * green + tint[c, 2] * blue + tint[c, 3]
                if tint[c, 4] != 0:
                    value += tint[c, 4] * noise_at(top + y, left + x, c)
                tile[y, x, c] = _rounded(value)


@_compiled
def _reduce(tile: Any, side: Any) -> None:
    """Resample a tile to `side` px and back."""
    small = np.empty((side, side, 3), np.uint8)
    _resample(small, tile)
    _resample(tile, small)


@_compiled
def _resample(out: Any, source: Any) -> None:
    """Fill `out` (N, N, 3) with `source` (M, M, 3), antialiased."""
    num, side = out.shape[0], source.shape[0]
    starts, weights = taps(num, side)
    last = side - 1
    for y in range(num):
        line = np.zeros((side, 3), np.float32)
        for k in range(weights.shape[1]):  # Taps past the edge weigh nothing.
            line += weights[y, k] * source[min(starts[y] + k, last)]
        for x in range(num):
            for c in range(3):
                value = np.float32(0)
                for k in range(weights.shape[1]):
                    value += weights[x, k] * line[min(starts[x] + k, last), c]
                out[y, x, c] = _rounded(value)


@_compiled
def _rounded(value: Any) -> Any:
    return np.uint8(np.int32(min(max(value, np.float32(0)), np.float32(255)) + np.float32(0.5)))
