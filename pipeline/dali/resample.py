"""The resampling kernel of the CPU graph: antialiased tiles, compiled, on DALI's own threads.

DALI's resize costs more than the decode on the CPU. This kernel computes the same pixels (within 1
of 255), but only those that lie in a tile, and it runs inside the graph, without Python.
"""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, config, njit
from numba.core.types import float32
from numba.extending import intrinsic
from numpy.typing import NDArray
from nvidia.dali import types
from nvidia.dali.plugin.numba import NumbaFunction
from nvidia.dali.plugin.numba import address_as_void_pointer as at

from pipeline.pretext.plan import noise_at

_GROUP = 4
"""Taps are summed four at a time: the widest filter of a scale up to 2."""

# No flag that lets the compiler choose how sums are formed or rounded: the choice depends on what
# was compiled before, in which process, and pixels must not. Division by zero cannot happen
# (px > 0), and NaN cannot arise from uint8.
_EXACT = {"fastmath": {"nnan", "ninf", "nsz"}, "error_model": "numpy", "nogil": True}


@intrinsic
def _fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """Give a * b + c of float32, rounded once."""

    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return float32(float32, float32, float32), generate


@njit(**_EXACT, cache=True)
def _taps(px: Any, side: Any) -> Any:
    """First source pixel and weights of each of `px` places along an axis of `side` pixels.

    Beyond the edge of the crop its outermost pixel is repeated. Returns int64 (px,) and float32
    (px, K), K a multiple of the group.
    """
    scale = side / px
    reach = max(scale, 1.0)
    num = int(np.ceil(2 * reach))  # All that an open interval of this length can hold.
    num = _GROUP * ((num + _GROUP - 1) // _GROUP)
    starts = np.empty(px, np.int64)
    weights = np.zeros((px, num), np.float32)
    for i in range(px):
        center = (i + 0.5) * scale
        first = int(np.floor(center - reach + 0.5))
        start = min(max(first, 0), max(side - num, 0))
        total = 0.0
        for k in range(first, first + num):
            total += max(0.0, 1.0 - abs(k + 0.5 - center) / reach)
        for k in range(first, first + num):
            weight = max(0.0, 1.0 - abs(k + 0.5 - center) / reach)
            weights[i, min(max(k, 0), side - 1) - start] += np.float32(weight / total)
        starts[i] = start
    return starts, weights


_compiled = njit(**_EXACT, cache=True)
_inlined = njit(**_EXACT, inline="always")


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
    starts, weights = _taps(num, side)
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


def windows(
    crops: NDArray[np.int32], anchors: NDArray[np.int32], *, px: int, tile_px: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Find the rectangle of each image that its tiles are made of: all that must be decoded.

    Args:
        crops: int32 (B, 4): top, left, height, width of the crop in the image.
        anchors: int32 (B, T, 2): top, left of each tile in the crop resized to `px`.
        px: Side that the crop is resized to.
        tile_px: Side of a tile.

    Returns:
        int32 (B, 4), top, left, height, width in the image; and int32 (B, 5), what the kernel must
        know: top, left of that rectangle in the crop, height, width of the crop, px.
    """
    batch = len(crops)
    rectangles, geometry = np.empty((batch, 4), np.int32), np.empty((batch, 5), np.int32)
    _find_windows(crops, anchors, px, tile_px, rectangles, geometry)
    return rectangles, geometry


@njit(cache=True)  # In NumPy it is thirty calls for a batch.
def _find_windows(
    crops: Any, anchors: Any, px: int, tile_px: int, rectangles: Any, geometry: Any
) -> None:
    for b in range(len(crops)):
        for axis in range(2):
            side = crops[b, 2 + axis]
            scale = side / px
            reach = max(scale, 1.0)
            taps = _GROUP * -(-math.ceil(2 * reach) // _GROUP)
            last_start = max(side - taps, 0)
            low, high = anchors[b, :, axis].min(), anchors[b, :, axis].max() + tile_px - 1
            first = _start(low, scale, reach, last_start)
            end = min(_start(high, scale, reach, last_start) + taps, side)
            rectangles[b, axis], rectangles[b, 2 + axis] = crops[b, axis] + first, end - first
            geometry[b, axis], geometry[b, 2 + axis] = first, side
        geometry[b, 4] = px


@njit(cache=True, inline="always")
def _start(place: int, scale: float, reach: float, last_start: int) -> Any:
    """Return the first pixel of the crop that a pixel of the resized crop is made of."""
    first = math.floor((place + 0.5) * scale - reach + 0.5)
    return min(max(first, 0), last_start)


class _Compiled(NumbaFunction):
    """DALI's operator for compiled functions, given ones already compiled and cached on disk.

    DALI itself recompiles in each process and for each graph: 2 seconds every time.
    """

    def _get_run_fn_cpu(self, run_fn: Any, *_: Any) -> int:
        return int(run_fn.address)

    def _get_setup_fn_cpu(self, setup_fn: Any) -> int:
        return int(setup_fn.address)


@contextmanager
def _vectors() -> Iterator[None]:
    """Let LLVM make vectors of straight-line code, which Numba leaves off; a third of the time."""
    before, config.SLP_VECTORIZE = config.SLP_VECTORIZE, 1
    try:
        yield
    finally:
        config.SLP_VECTORIZE = before


@functools.cache
@_vectors()
def tile_operator(num_tiles: int, tile_px: int) -> Any:
    """Make the operator that cuts tiles from a decoded rectangle.

    Inside a pipeline it is called with the pixels (uint8 HWC), geometry int32 (7,) (`windows`, then
    reach and whether to mirror), and the cuts int32 (T, 11) and tints float32 (T, 3, 5) of
    `TilePlan`; it gives uint8 (T, tile_px, tile_px, 3).
    """

    @cfunc("void(uint64, uint64, int32, uint64, uint64, int32, int32)", cache=True)
    def shape(outs: Any, _ndims: Any, _num: Any, _ins: Any, _: Any, __: Any, samples: Any) -> None:
        for pointer in carray(at(outs), samples, np.uint64):
            out = carray(at(pointer), 4, np.int64)
            out[0], out[1], out[2], out[3] = num_tiles, tile_px, tile_px, 3

    @cfunc("void(uint64, uint64, uint64, int32, uint64, uint64, uint64, int32)", cache=True)
    def run(
        outs: Any, out_shapes: Any, _o: Any, _no: Any, ins: Any, in_shapes: Any, _i: Any, _ni: Any
    ) -> None:
        """Cut the tiles of one sample; arguments point to one pointer for each array."""
        out = carray(at(outs), 1, np.uint64)
        out_shape = carray(at(carray(at(out_shapes), 1, np.uint64)[0]), 4, np.int64)
        data = carray(at(ins), 4, np.uint64)
        size = carray(at(carray(at(in_shapes), 1, np.uint64)[0]), 3, np.int64)
        num_tiles, tile_px = out_shape[0], out_shape[1]
        cut_tiles(
            carray(at(out[0]), (num_tiles, tile_px, tile_px, 3), np.uint8),
            carray(at(data[0]), (size[0], size[1], 3), np.uint8),
            carray(at(data[1]), 7, np.int32),
            carray(at(data[2]), (num_tiles, 11), np.int32),
            carray(at(data[3]), (num_tiles, 3, 5), np.float32),
        )

    return _Compiled(
        run_fn=run,
        setup_fn=shape,
        out_types=[types.UINT8],
        in_types=[types.UINT8, types.INT32, types.INT32, types.FLOAT],
        outs_ndim=[4],
        ins_ndim=[3, 1, 2, 3],
    )


@_compiled
def cut_tiles(out: Any, pixels: Any, geometry: Any, cuts: Any, tints: Any) -> None:
    """Fill `out` with the tiles of one image, resampled with a triangle as wide as the scale.

    Args:
        out: uint8 (T, S, S, 3), written.
        pixels: uint8 (H, W, 3), a rectangle that holds that of `windows`.
        geometry: int32 (7,) of `tile_operator`.
        cuts: int32 (T, 11) of `TilePlan`.
        tints: float32 (T, 3, 5) of `TilePlan`.
    """
    top, left, height, width, px, reach, mirrored = geometry
    rows_start, rows_weight = _taps(px, height)
    columns_start, columns_weight = _taps(px, width)
    num_tiles, tile_px = out.shape[0], out.shape[1]
    size = tile_px + reach
    line = np.zeros((pixels.shape[1] + columns_weight.shape[1]) * 3 + 4, np.float32)
    sums = np.empty(size * 3 + 1, np.float32)
    wide = np.empty((size, size, 3), np.uint8)
    for t in range(num_tiles):
        first_row, first_column = cuts[t, 0], cuts[t, 1]
        starts = columns_start[first_column : first_column + size]
        weights = columns_weight[first_column : first_column + size]
        begin = max(starts[0] - left, 0)
        length = min(starts[-1] + weights.shape[1] - left, pixels.shape[1]) - begin
        tile = out[t] if reach == 0 else wide
        for y in range(size):
            row = rows_start[first_row + y] - top
            _sum_rows(line, pixels, row, rows_weight[first_row + y], begin * 3, length * 3)
            _sum_columns(tile[y].reshape(size * 3), line, starts, weights, sums)
        if reach > 0:
            shift_channels(out[t], wide, cuts[t])
        show(out[t], cuts[t], tints[t], mirrored)


@_inlined
def _sum_rows(line: Any, pixels: Any, row: Any, weights: Any, begin: Any, length: Any) -> None:
    """Mix the rows of one output row into `line`; slices without offsets, so that it vectorises."""
    last, stride = pixels.shape[0] - 1, pixels.shape[1] * 3
    flat = pixels.reshape(pixels.size)
    for k in range(0, len(weights), _GROUP):
        a = min(max(row + k, 0), last) * stride + begin
        b = min(max(row + k + 1, 0), last) * stride + begin
        c = min(max(row + k + 2, 0), last) * stride + begin
        d = min(max(row + k + 3, 0), last) * stride + begin
        row_a, row_b = flat[a : a + length], flat[b : b + length]
        row_c, row_d = flat[c : c + length], flat[d : d + length]
        wa, wb, wc, wd = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        if k == 0:
            line[:length] = 0
        for x in range(length):
            mixed = _fma(wa, np.float32(row_a[x]), line[x])
            mixed = _fma(wb, np.float32(row_b[x]), mixed)
            mixed = _fma(wc, np.float32(row_c[x]), mixed)
            line[x] = _fma(wd, np.float32(row_d[x]), mixed)


@_inlined
def _sum_columns(out: Any, line: Any, starts: Any, weights: Any, sums: Any) -> None:
    """Mix the columns of one output row; `out` is uint8 (S * 3,), `sums` is scratch space.

    Four neighbouring floats are summed at once, one more than a pixel has: the compiler makes
    vectors of them, and the fourth is overwritten by the next pixel. Unsigned indices: a signed one
    is tested for Python's counting from the end. `sums` is written in a loop without another inside
    for the usual width, or there would be no vectors.
    """
    num, width, begin = len(starts), weights.shape[1], starts[0]
    for x in range(num):
        p, q = np.uint64((starts[x] - begin) * 3), np.uint64(x * 3)
        wa, wb, wc, wd = weights[x, 0], weights[x, 1], weights[x, 2], weights[x, 3]
        s0 = _fma(wa, line[p], _fma(wb, line[p + _U3], _fma(wc, line[p + _U6], wd * line[p + _U9])))
        s1 = _fma(
            wa, line[p + _U1], _fma(wb, line[p + _U4], _fma(wc, line[p + _U7], wd * line[p + _U10]))
        )
        s2 = _fma(
            wa, line[p + _U2], _fma(wb, line[p + _U5], _fma(wc, line[p + _U8], wd * line[p + _U11]))
        )
        s3 = _fma(
            wa, line[p + _U3], _fma(wb, line[p + _U6], _fma(wc, line[p + _U9], wd * line[p + _U12]))
        )
        sums[q], sums[q + _U1], sums[q + _U2], sums[q + _U3] = s0, s1, s2, s3
    if width > _GROUP:
        for x in range(num):
            first, place = (starts[x] - begin) * 3, x * 3
            for k in range(_GROUP, width):
                for c in range(3):
                    at_c = place + c
                    sums[at_c] = _fma(weights[x, k], line[first + k * 3 + c], sums[at_c])
    for x in range(num * 3):
        out[x] = np.uint8(np.int32(sums[x] + _HALF))  # Rounds to the nearest.


_HALF = np.float32(0.5)
_U1, _U2, _U3, _U4, _U5, _U6 = (np.uint64(n) for n in range(1, 7))
_U7, _U8, _U9, _U10, _U11, _U12 = (np.uint64(n) for n in range(7, 13))
