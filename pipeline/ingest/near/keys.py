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

from pipeline.ingest.near.check import LOW, WINDOWS, is_flat, open_words, spectra
from pipeline.ingest.near.hash import SIDE

BANDS = 5
"""Keys of a view; a pair that shares one is compared."""
KEY_BITS = 28
"""Signs in a key."""
MAX_ROWS = 2**31
"""Images that entries, and pairs of them, can be told apart of."""

_WEAK_SHOWN, _WEAK_LARGE = 4, 2
ENTRIES = 2**_WEAK_SHOWN + len(WINDOWS) * 2**_WEAK_LARGE
"""Entries of an image in a band."""

_POOL = 48  # of them, the lowest, feed keys; all but the mean feed the 63 signs
_ENTRY_SHIFT = np.uint64(64 - KEY_BITS)
_ONE = np.uint64(1)


def _frequencies() -> NDArray[np.int64]:
    """The (vertical, horizontal) frequencies without the mean, low ones first: (63, 2)."""
    pairs = [(v, h) for v in range(LOW) for h in range(LOW) if (v, h) != (0, 0)]
    return np.array(sorted(pairs, key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair)))


def _chosen(band: int) -> list[int]:
    """Draw the frequencies of a key, the same everywhere."""
    drawn = sorted(range(_POOL), key=lambda n: xxhash.xxh3_64_intdigest(f"{band}:{n}".encode()))
    return drawn[:KEY_BITS]


_FREQUENCIES = _frequencies()
# Power falls as one over the frequency: with it undone, weakness can be compared.
_GAINS = np.rint(64 * np.hypot(*_FREQUENCIES.T))
_CHOSEN = np.array([_chosen(band) for band in range(BANDS)])


@njit(cache=True)
def _enter(spectrum: Any, chosen: Any, num_weak: int, tail: Any, out: Any) -> None:
    """Write the entries of one view in one band to `out`, (2**num_weak,)."""
    key = np.uint64(0)
    size = np.empty(KEY_BITS)
    for bit in range(KEY_BITS):
        size[bit] = abs(spectrum[chosen[bit]])
        if spectrum[chosen[bit]] > 0:
            key |= _ONE << np.uint64(bit)
    out[0] = key << _ENTRY_SHIFT | tail
    for n in range(num_weak):
        weakest = size.argmin()
        size[weakest] = np.inf
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


@njit(cache=True)  # Numba looks at this file alone: touch it after a change of near_check.
def enter(words: Any, first: int, entries: Any, signs: Any) -> Any:
    """Make the entries of images that are ranked `first`, `first` + 1, and so on.

    An entry is the key, above the image's place in the ranking, above one bit: 1 for "large".
    Flat images have none.

    Args:
        words: uint64 (N, WORDS).
        first: The place of row 0.
        entries: Receives them, uint64 (BANDS, N * ENTRIES), from the left.
        signs: Receives the 63 signs of each window, uint64 (N, 10).

    Returns:
        The number of entries in each band.
    """
    thumb = np.empty((SIDE, SIDE))
    views = np.empty((len(WINDOWS), LOW, LOW))
    levelled = np.empty((len(WINDOWS), len(_FREQUENCIES)))
    num = 0
    for row in range(len(words)):
        open_words(words[row], thumb)
        if is_flat(thumb):
            continue
        spectra(thumb, views)
        for n in range(len(_FREQUENCIES)):
            levelled[:, n] = views[:, _FREQUENCIES[n, 0], _FREQUENCIES[n, 1]] * _GAINS[n]
        place = np.uint64(first + row) << _ONE
        num = _enter_view(levelled[0], _WEAK_SHOWN, place, entries, num)
        for window in range(len(WINDOWS)):
            signs[row, window] = _signs(levelled[window])
            num = _enter_view(levelled[window], _WEAK_LARGE, place | _ONE, entries, num)
    return num
