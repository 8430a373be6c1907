"""Find the segments of a JPEG, compiled; coded data is looked through eight bytes at a time."""

from typing import Any

import numpy as np
from numba import njit, types

from pipeline.crawl.jpeg_header import EOI, SOI, SOS

_FILL = 0xFF
_ONES = np.uint64(0x0101010101010101)
_HIGH = np.uint64(0x8080808080808080)
_FEW = 64
_CUT, _MALFORMED = -1, -2


def find_segments(data: bytes) -> tuple[list[list[int]], bool]:
    """Find the segments of a JPEG that starts at the first byte, up to its end or where it is cut.

    A marker is 0xFF and a byte that is no stuffed zero, no fill (0xFF) and no restart (0xD0 to
    0xD7). What lies between segments belongs to none.

    Returns:
        Of each its marker's second byte, its start, the end of its body, and the end of the coded
        data behind that; EOI, where it is found, is the last. And whether they end because what
        follows is malformed: a second start, or a length that is none.
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
    """Find where the next marker begins, from `start` on; -1 where there is none."""
    position = start
    while position < len(data) - 1:
        if position % 8 == 0:
            word = position // 8
            # As strlen finds a zero, here among the complements.
            while word < len(words) and not (~words[word] - _ONES) & words[word] & _HIGH:
                word += 1
            position = max(position, word * 8)
        end = min(position - position % 8 + 8, len(data) - 1)
        for at in range(position, end):
            follow = data[at + 1]
            if data[at] == 0xFF and 0 < follow < 0xFF and not 0xD0 <= follow <= 0xD7:
                return at
        position = end
    return -1


@njit(cache=True)
def _behind_coded(data: Any, words: Any, start: Any) -> Any:
    """Find the end of the coded data from `start` on, without the fills before the next marker."""
    following = _find(data, words, start)
    end = len(data) if following < 0 else following
    while end > start and data[end - 1] == _FILL:  # In coded data a zero stands behind it.
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
    marker, behind = np.int64(data[start + 1]), start + 2
    if marker == SOI:
        return marker, start, _MALFORMED, start
    if marker == EOI:
        return marker, start, behind, behind
    body_end = _body_end(data, behind)
    end = _behind_coded(data, words, body_end) if marker == SOS and body_end >= 0 else body_end
    return marker, start, body_end, end


# Compiled when it is loaded.
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_WORDS = types.Array(types.uint64, 1, "C", readonly=True)
_NUMBER_AND_FLAG = types.Tuple((types.int64, types.boolean))


@njit(_NUMBER_AND_FLAG(_BYTES, _WORDS, types.int64[:, ::1]), cache=True)
def _walk(data: Any, words: Any, found: Any) -> Any:
    """Write segments to `found`, (N, 4), as far as it has room; returns how many there are."""
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
