"""Find the next marker of a JPEG behind coded data, eight bytes at a time."""

from typing import Any

import numpy as np
from numba import njit

_ONES = np.uint64(0x0101010101010101)
_HIGH = np.uint64(0x8080808080808080)


def find_marker(data: bytes, start: int) -> int:
    """Find where the next marker begins, from `start` on; -1 where there is none.

    A marker is 0xFF and a byte that is no stuffed zero, no fill (0xFF) and no restart (0xD0 to
    0xD7).
    """
    words = np.frombuffer(data, "<u8", count=len(data) // 8)
    return int(_find(np.frombuffer(data, np.uint8), words, start))


@njit(cache=True)
def _find(data: Any, words: Any, start: Any) -> Any:
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
