"""Keys under which near duplicates meet: signs of low frequencies, of an image and its crops.

An image is entered once as itself ("shown") and once for each window of 95 % that may have been
cropped from it ("large"). Each of BANDS keys takes KEY_BITS signs. A sign near zero may flip, so
entries are made for both values of the weakest few. All arithmetic is on integers.
"""

from typing import Any

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from pipeline.ingest.near.check import LOW, WINDOWS, is_flat, open_words, spectra
from pipeline.ingest.near.hash import SIDE

BANDS = 5
"""Keys per view; a pair that shares one is compared."""
KEY_BITS = 28
"""Signs in a key."""
MAX_ROWS = 2**31
"""Most images that entries, and pairs of them, can address."""

_WEAK_SHOWN, _WEAK_LARGE = 4, 2
ENTRIES = 2**_WEAK_SHOWN + len(WINDOWS) * 2**_WEAK_LARGE
"""Entries of an image per band."""

_POOL = 48  # lowest frequencies that feed keys; all but the mean feed the 63 signs
_ENTRY_SHIFT = np.uint64(64 - KEY_BITS)
_ONE = np.uint64(1)


def _frequencies() -> NDArray[np.int64]:
    """List the (vertical, horizontal) frequencies without the mean, lowest first: (63, 2)."""
    pairs = [(v, h) for v in range(LOW) for h in range(LOW) if (v, h) != (0, 0)]
    return np.array(sorted(pairs, key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair)))


def _chosen(band: int) -> list[int]:
    """Draw the frequencies of a key, the same on every machine."""
    drawn = sorted(range(_POOL), key=lambda n: xxhash.xxh3_64_intdigest(f"{band}:{n}".encode()))
    return drawn[:KEY_BITS]


_FREQUENCIES = _frequencies()
# Amplitudes fall as one over the frequency; the gains make their sizes comparable.
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
    """Write the entries of one view from column `num` on; returns the next free column."""
    end = num + (1 << num_weak)
    for band in range(BANDS):
        _enter(spectrum, _CHOSEN[band], num_weak, tail, entries[band, num:end])
    return end


@njit(cache=True)
def _signs(spectrum: Any) -> Any:
    signs = np.uint64(0)
    for n in range(len(spectrum)):
        if spectrum[n] > 0:
            signs |= _ONE << np.uint64(n)
    return signs


@njit(cache=True)  # Numba's cache checks this file only: touch it when check.py changes.
def enter(words: Any, first: int, entries: Any, signs: Any) -> Any:
    """Make the entries of images of rank `first`, `first` + 1, and so on.

    An entry consists of, from high bits to low, the key, the image's rank, and 1 for "large".
    Flat images have none.

    Args:
        words: uint64 (N, WORDS).
        first: Rank of row 0.
        entries: Receives them, uint64 (BANDS, N * ENTRIES), from the left.
        signs: Receives the 63 signs of each window, uint64 (N, 10).

    Returns:
        The number of entries in each band.
    """
    thumb = np.empty((SIDE, SIDE))
    views = np.empty((len(WINDOWS), LOW, LOW))
    equalised = np.empty((len(WINDOWS), len(_FREQUENCIES)))
    num = 0
    for row in range(len(words)):
        open_words(words[row], thumb)
        if is_flat(thumb):
            continue
        spectra(thumb, views)
        for n in range(len(_FREQUENCIES)):
            equalised[:, n] = views[:, _FREQUENCIES[n, 0], _FREQUENCIES[n, 1]] * _GAINS[n]
        rank = np.uint64(first + row) << _ONE
        num = _enter_view(equalised[0], _WEAK_SHOWN, rank, entries, num)
        for window in range(len(WINDOWS)):
            signs[row, window] = _signs(equalised[window])
            num = _enter_view(equalised[window], _WEAK_LARGE, rank | _ONE, entries, num)
    return num
