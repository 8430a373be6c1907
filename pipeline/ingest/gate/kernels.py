"""Compiled loops of the gate; a module of its own because Numba takes half a second to load."""

from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from pipeline.ingest.gate.formats import EOI, SOI, SOS

_FILL = 0xFF
_ONES = np.uint64(0x0101010101010101)
_HIGH = np.uint64(0x8080808080808080)
_FEW = 64
_CUT, _MALFORMED = -1, -2


def find_segments(data: bytes) -> tuple[list[list[int]], bool]:
    """Find the segments of a JPEG that starts at the first byte, up to its end or truncation.

    A marker is 0xFF and a byte that is no stuffed zero, no fill (0xFF) and no restart (0xD0 to
    0xD7). Bytes between segments belong to none.

    Returns:
        For each segment the second byte of its marker, its start, the end of its body, and the end
        of the coded data after that; EOI, if found, is the last. And whether they end because what
        follows is malformed: a second SOI, or an impossible length.
    """
    array, words = np.frombuffer(data, np.uint8), np.frombuffer(data, "<u8", count=len(data) // 8)
    found = np.empty((_FEW, 4), np.int64)
    number, is_malformed = _walk(array, words, found)
    if number > len(found):
        found = np.empty((number, 4), np.int64)
        _walk(array, words, found)
    return found[:number].tolist(), is_malformed


@njit(cache=True)
def _find(data: Any, words: Any, start: Any) -> Any:
    """Find the next marker from `start` on; -1 if there is none."""
    position = start
    while position < len(data) - 1:
        if position % 8 == 0:
            word = position // 8
            # strlen's test for a zero byte, here among the complements.
            while word < len(words) and not (~words[word] - _ONES) & words[word] & _HIGH:
                word += 1
            position = max(position, word * 8)
        end = min(position - position % 8 + 8, len(data) - 1)
        for at in range(position, end):
            second = data[at + 1]
            if data[at] == 0xFF and 0 < second < 0xFF and not 0xD0 <= second <= 0xD7:
                return at
        position = end
    return -1


@njit(cache=True)
def _coded_end(data: Any, words: Any, start: Any) -> Any:
    """Find the end of the coded data from `start` on, without the fills before the next marker."""
    following = _find(data, words, start)
    end = len(data) if following < 0 else following
    while end > start and data[end - 1] == _FILL:  # In coded data a zero follows it.
        end -= 1
    return end


@njit(cache=True)
def _body_end(data: Any, start: Any) -> Any:
    if start + 2 > len(data):
        return _CUT
    size = np.int64(data[start]) << 8 | np.int64(data[start + 1])
    if start + size > len(data):
        return _CUT
    return start + size if size >= 2 else _MALFORMED


@njit(cache=True)
def _segment(data: Any, words: Any, position: Any) -> Any:
    """Find the next segment: its marker, start, end of its body (or _CUT, _MALFORMED), and end."""
    start = _find(data, words, position)
    if start < 0:
        return np.int64(0), start, _CUT, start
    marker, body = np.int64(data[start + 1]), start + 2
    if marker == SOI:
        return marker, start, _MALFORMED, start
    if marker == EOI:
        return marker, start, body, body
    body_end = _body_end(data, body)
    end = _coded_end(data, words, body_end) if marker == SOS and body_end >= 0 else body_end
    return marker, start, body_end, end


# Explicit signatures compile at import.
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_WORDS = types.Array(types.uint64, 1, "C", readonly=True)
_NUMBER_AND_FLAG = types.Tuple((types.int64, types.boolean))


@njit(_NUMBER_AND_FLAG(_BYTES, _WORDS, types.int64[:, ::1]), cache=True)
def _walk(data: Any, words: Any, found: Any) -> Any:
    """Write segments to `found`, (N, 4), as far as they fit; returns how many there are."""
    number, position, marker = 0, 2, np.int64(0)
    while marker != EOI:
        marker, start, body_end, position = _segment(data, words, position)
        if body_end < 0:
            return number, body_end == _MALFORMED
        if number < len(found):
            row = found[number]
            row[0], row[1], row[2], row[3] = marker, start, body_end, position
        number += 1
    return number, False


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert an image, uint8 (H, W, C), C 1 or 3, to gray as Pillow does: uint8 (H, W)."""
    if pixels.shape[2] == 1:
        return pixels[:, :, 0]
    gray = np.empty(pixels.shape[:2], np.uint8)
    _mix(gray.reshape(-1), np.ascontiguousarray(pixels).reshape(-1))
    return gray


# Compiled at import, for writable and read-only arrays.
_RGB = types.Array(types.uint8, 1, "C", readonly=True)


@njit(types.void(types.uint8[::1], _RGB), cache=True)
def _mix(gray: Any, pixels: Any) -> None:
    red, green, blue, half = (
        np.uint32(19595),
        np.uint32(38470),
        np.uint32(7471),
        np.uint32(0x8000),
    )
    for n in range(gray.size):
        place = np.uint64(3 * n)  # A signed index would be tested for being negative.
        value = red * np.uint32(pixels[place]) + half
        value += green * np.uint32(pixels[place + np.uint64(1)])
        value += blue * np.uint32(pixels[place + np.uint64(2)])
        gray[n] = value >> np.uint32(16)


_BITS = 11
"""Weights are in 2**-11: two of them and a byte fit into 31 bits, so that nothing is rounded."""

_SHIFT = 2 * _BITS
_HALF = 1 << (_SHIFT - 1)
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)


def shrink(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Reduce an image to the means of equal areas; the bytes are the same on any machine.

    Args:
        pixels: uint8 (H, W, C), C 1 or 3.
        width: Width of the result, at most W, px.
        height: Height of the result, at most H, px.
    """
    tall, wide, channels = pixels.shape
    out = np.empty((height, width, channels), np.uint8)
    _shrink(out, np.ascontiguousarray(pixels), *_areas(tall, height), *_areas(wide, width))
    return out


def _areas(size: int, smaller: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Find the first pixel of each area (N,) and the weights (N, K), which sum to 2**_BITS."""
    ends = np.arange(smaller + 1) * size  # in units of 1 / smaller px
    first = ends[:-1] // smaller
    taps = int((-(-ends[1:] // smaller) - first).max())
    pixels = first[:, None] + np.arange(taps + 1)
    edges = np.clip(pixels * smaller, ends[:-1, None], ends[1:, None]) - ends[:-1, None]
    # Cumulative sums are rounded, so that the total is exact.
    steps = (edges * 2**_BITS + size // 2) // size
    weights = np.diff(steps, axis=1).astype(np.int32)
    inside = np.minimum(first, size - taps)
    return inside, _shifted(weights, first - inside)


def _shifted(weights: NDArray[np.int32], places: NDArray[np.int64]) -> NDArray[np.int32]:
    """Shift each row of weights right by its number of places, filling with zeros."""
    columns = np.arange(weights.shape[1]) - places[:, None]
    moved = np.take_along_axis(weights, np.maximum(columns, 0), axis=1)
    return np.where(columns >= 0, moved, 0).astype(np.int32)


@njit(inline="always")
def _mix_colours(out: Any, line: Any, columns: Any, weights: Any) -> None:
    """Mix the columns of one row; unsigned indices are not tested for being negative."""
    for x in range(len(columns)):
        red, green, blue = _HALF, _HALF, _HALF
        place = np.uint64(columns[x] * 3)
        for k in range(weights.shape[1]):
            weight = weights[x, k]
            red += weight * line[place]
            green += weight * line[place + _ONE]
            blue += weight * line[place + _TWO]
            place += _THREE
        out[3 * x], out[3 * x + 1], out[3 * x + 2] = red >> _SHIFT, green >> _SHIFT, blue >> _SHIFT


@njit(inline="always")
def _mix_gray(out: Any, line: Any, columns: Any, weights: Any) -> None:
    for x in range(len(columns)):
        gray = _HALF
        for k in range(weights.shape[1]):
            gray += weights[x, k] * line[np.uint64(columns[x] + k)]
        out[x] = gray >> _SHIFT


# Compiled at import, for writable and read-only arrays.
_PIXELS = types.Array(types.uint8, 3, "C", readonly=True)
_AREAS = (types.int64[::1], types.int32[:, ::1])


@njit(types.void(types.uint8[:, :, ::1], _PIXELS, *_AREAS, *_AREAS), cache=True)
def _shrink(out: Any, pixels: Any, rows: Any, row_weights: Any, columns: Any, weights: Any) -> None:
    length = pixels.shape[1] * pixels.shape[2]
    flat = pixels.reshape(pixels.size)
    line = np.empty(length, np.int32)
    for y in range(out.shape[0]):
        line[:] = 0
        for k in range(row_weights.shape[1]):
            weight, start = row_weights[y, k], (rows[y] + k) * length
            row = flat[start : start + length]
            for x in range(length):
                line[x] += weight * np.int32(row[x])
        if out.shape[2] == 3:
            _mix_colours(out[y].reshape(out.shape[1] * 3), line, columns, weights)
        else:
            _mix_gray(out[y, :, 0], line, columns, weights)
