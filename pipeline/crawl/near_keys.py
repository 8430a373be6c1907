"""Under which keys near duplicates meet: signs of low frequencies, of the image and its crops.

An image is entered once as what it is ("shown") and once for each window of 95 % that somebody
may have cut from it ("large"). Each of BANDS keys takes KEY_BITS signs. As a sign near zero may
flip, an entry is made for either value of the weakest few. In integers throughout.
"""

from typing import Any

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from pipeline.crawl.near_check import WINDOWS, is_flat, open_words
from pipeline.crawl.near_hash import SIDE, cosines

BANDS = 4
"""Keys of a view; a pair that shares one is compared."""
KEY_BITS = 26
"""Signs in a key."""
MAX_ROWS = 2**37
"""Images that an entry can tell apart."""

_WEAK_SHOWN, _WEAK_LARGE = 4, 2
ENTRIES = 2**_WEAK_SHOWN + len(WINDOWS) * 2**_WEAK_LARGE
"""Entries of an image in a band."""

_LOW = 8  # frequencies per axis that signs are taken from
_POOL = 48  # of them, the lowest, feed keys; all but the mean feed the 63 signs
_ENTRY_SHIFT = np.uint64(64 - KEY_BITS)
_ONE = np.uint64(1)


def _projections() -> NDArray[np.int64]:
    """Thumbnail -> low frequencies along one axis, for each of WINDOWS: (10, 2, _LOW, SIDE)."""
    centres = (np.arange(SIDE) + 0.5) / SIDE
    power = np.where(np.arange(SIDE) == 0, 1.0, np.sqrt(2.0))
    analyse = cosines(SIDE).T / SIDE
    rows = np.empty((len(WINDOWS), 2, _LOW, SIDE))
    for n, (left, top, side) in enumerate(WINDOWS):
        for axis, start in enumerate((top, left)):
            at = start + centres * side
            inside = np.cos(np.pi * at[:, None] * np.arange(SIDE)) * power
            rows[n, axis] = analyse[:_LOW] @ inside @ analyse
    return np.rint(rows * 2**16).astype(np.int64)


def _frequencies() -> NDArray[np.int64]:
    """The (vertical, horizontal) frequencies without the mean, low ones first: (63, 2)."""
    pairs = [(v, h) for v in range(_LOW) for h in range(_LOW) if (v, h) != (0, 0)]
    return np.array(sorted(pairs, key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair)))


def _chosen(band: int) -> list[int]:
    """Draw the frequencies of a key, the same everywhere."""
    drawn = sorted(range(_POOL), key=lambda n: xxhash.xxh3_64_intdigest(f"{band}:{n}".encode()))
    return drawn[:KEY_BITS]


_PROJECTIONS = _projections()
_FREQUENCIES = _frequencies()
# Power falls as one over the frequency: with it undone, weakness can be compared.
_GAINS = np.rint(64 * np.hypot(*_FREQUENCIES.T)).astype(np.int64)
_CHOSEN = np.array([_chosen(band) for band in range(BANDS)])


@njit(cache=True)
def _spectrum(thumb: Any, projection: Any, out: Any) -> None:
    """Write the 63 low frequencies of one window of `thumb`, int64, to `out`."""
    rows = np.zeros((_LOW, SIDE), np.int64)
    for v in range(_LOW):
        for y in range(SIDE):
            for x in range(SIDE):
                rows[v, x] += projection[0, v, y] * thumb[y, x]
    for n in range(len(_FREQUENCIES)):
        v, h = _FREQUENCIES[n]
        total = np.int64(0)
        for x in range(SIDE):
            total += projection[1, h, x] * rows[v, x]
        out[n] = (total >> 16) * _GAINS[n]


@njit(cache=True)
def _enter(spectrum: Any, chosen: Any, num_weak: int, tail: Any, out: Any) -> None:
    """Write the entries of one view in one band to `out`, (2**num_weak,)."""
    key = np.uint64(0)
    size = np.empty(KEY_BITS, np.int64)
    for bit in range(KEY_BITS):
        size[bit] = abs(spectrum[chosen[bit]])
        if spectrum[chosen[bit]] > 0:
            key |= _ONE << np.uint64(bit)
    out[0] = key << _ENTRY_SHIFT | tail
    for n in range(num_weak):
        weakest = size.argmin()
        size[weakest] = np.iinfo(np.int64).max
        flip = _ONE << (np.uint64(weakest) + _ENTRY_SHIFT)
        for k in range(1 << n):
            out[(1 << n) + k] = out[k] ^ flip


@njit(cache=True)
def _enter_view(spectrum: Any, num_weak: int, tail: Any, entries: Any, num: int) -> Any:
    """Write the entries of one view, from column `num` on; returns the column behind them."""
    behind = num + (1 << num_weak)
    for band in range(BANDS):
        _enter(spectrum, _CHOSEN[band], num_weak, tail, entries[band, num:behind])
    return behind


@njit(cache=True)
def _signs(spectrum: Any) -> Any:
    signs = np.uint64(0)
    for n in range(len(spectrum)):
        if spectrum[n] > 0:
            signs |= _ONE << np.uint64(n)
    return signs


@njit(cache=True)
def enter(words: Any, first: int, entries: Any, signs: Any) -> Any:
    """Make the entries of images that are ranked `first`, `first` + 1, and so on.

    An entry is the key, above the image's place in the ranking, above one bit: 1 for "large".
    Flat images have none.

    Args:
        words: uint64 (N, WORDS).
        first: The place of row 0.
        entries: Receives them, uint64 (BANDS, N * ENTRIES), from the left.
        signs: Receives the 63 signs of each image, uint64 (N,).

    Returns:
        The number of entries in each band.
    """
    thumb = np.empty((SIDE, SIDE))
    whole = np.empty((SIDE, SIDE), np.int64)
    spectrum = np.empty(len(_FREQUENCIES), np.int64)
    num = 0
    for row in range(len(words)):
        open_words(words[row], thumb)
        if is_flat(thumb):
            continue
        whole[:] = thumb
        place = np.uint64(first + row) << _ONE
        _spectrum(whole, _PROJECTIONS[0], spectrum)
        signs[row] = _signs(spectrum)
        num = _enter_view(spectrum, _WEAK_SHOWN, place, entries, num)
        for window in range(len(WINDOWS)):
            _spectrum(whole, _PROJECTIONS[window], spectrum)
            num = _enter_view(spectrum, _WEAK_LARGE, place | _ONE, entries, num)
    return num
