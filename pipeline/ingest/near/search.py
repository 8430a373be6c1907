"""Near duplicates: of images that look alike, the best-ranked one is kept.

An image loses to a better-ranked one if either shows a window of the other (`check`) and they
share a key (`keys`). Keys are searched one partition at a time; the result depends neither on the
order of rows nor on the partitions.

The cost of a key that many share (scans, drawings on white) stays linear: under one key an image
is compared by signs with the BUCKET best-ranked images at most, and in full with the first TESTS
that pass.

Measured on 2026-11-24; 1,000 copies from Caltech-101 and 500 from VOC animals for each change:

| change | Caltech-101 | VOC |
| --- | --- | --- |
| JPEG quality 30 | 99.9 % found | 100 % |
| JPEG quality 30 to 95 | 100 % | 100 % |
| resized by 0.5 to 2 | 99.7 % | 100 % |
| crop of 5 %, centre; anywhere | 99.5 %; 99.5 % | 100 % |
| resized, quality | 99.5 % | 100 % |
| crop anywhere, resized, quality | 99.3 % | 100 % |

Of the 9,144 images of Caltech-101, 69 lose to another: 64 are the same picture, 5 (0.05 %) are
not: a face a moment later, a motorbike in another colour (only luma is compared). Of VOC's 500
none does. The thresholds were set on other copies of Caltech-101, and none of VOC.

Since JPEGs that are stored unchanged are hashed from block means (2026-11-27): of 1,016 images of
Caltech-101 and seven changes, at least 99.5 % of the copies are found when stored as JPEG, 99.0 %
as PNG, which is hashed in full, and all of VOC's. 71 lose: the same 69, and two more that are the
same picture.

Ten million synthetic inputs (`tessera bench shard --plan 10000000`) alongside a test suite, when
the plan was still sorted by hand: 40 minutes, 0.25 GB of memory besides the mapped files, at least
16 GB of disk; every planted copy is found, and nothing else.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import DTypeLike, NDArray

from pipeline.ingest.near.check import WINDOWS, open_words, shows
from pipeline.ingest.near.hash import SIDE, WORDS
from pipeline.ingest.near.keys import BANDS, ENTRIES, KEY_BITS, MAX_ROWS, enter

Words = NDArray[np.uint64]

BUCKET = 256
"""Better-ranked images that an image is compared with by signs under one key."""
TESTS = 16
"""How many of them are then compared in full."""

_ROWS_AT_ONCE = 2**12  # entered together
_PARTITION = 2**21  # entries, on average
_MAX_APART = 9  # of 63 signs; unrelated images differ in about half
_RANK = np.uint64(2 ** (64 - KEY_BITS) - 1)
_ONE = np.uint64(1)
_MEMO_BITS = 20
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # hashes pairs into the memo


def find_near(words: Words, order: NDArray[np.int64], folder: Path) -> NDArray[np.int64]:
    """Find the images that are near duplicates of a better-ranked image.

    Flat images (paper, sky) are not distinctive, and always kept.

    Args:
        words: uint64 (N, WORDS), of `hash.near_words`; may be memory-mapped.
        order: int64 (M,), rows of `words`, each at most once, best first: of two images the better
            is kept. Other rows take no part.
        folder: Receives near.npy, and temporarily 2.4 kB per image.

    Returns:
        int64 (N,), in near.npy: the row of the image each one loses to, chains followed to their
        end; -1 if it is kept or takes no part.
    """
    _check(words, order)
    near = new_array(folder / "near.npy", np.int64, words.shape[:1])
    near[:] = -1
    with TemporaryDirectory(dir=folder, prefix="near-") as made:
        winners = new_array(Path(made) / "winners.npy", np.int64, order.shape)
        _reset(winners)
        _search(words, order, winners, Path(made))
        _follow(winners)
        _name_rows(order, winners, near)
    return near


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Create an array of zeros in a new .npy file.

    Raises:
        OSError: The disk is full; a page written later would kill the process.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            del array  # Unmaps it even while the error is held.
            raise OSError(error.errno, error.strerror, str(path)) from None
    return array


def release(*arrays: NDArray[Any]) -> None:
    """Drop the pages of memory-mapped arrays from this process; the files keep the values.

    Other arrays are left alone.
    """
    for array in arrays:
        if isinstance(array.base, mmap.mmap):
            array.base.madvise(mmap.MADV_DONTNEED)


def _check(words: Words, order: NDArray[np.int64]) -> None:
    if words.shape[1:] != (WORDS,) or words.dtype != np.uint64:
        raise ValueError(
            f"words (={words.dtype} {words.shape}) must be uint64 ({len(words)}, {WORDS}); take "
            "them from near_words."
        )
    if len(order) > MAX_ROWS:
        raise ValueError(f"{len(order)} images are more than {MAX_ROWS}; split the crawl.")


def _search(
    words: Words, order: NDArray[np.int64], winners: NDArray[np.int64], folder: Path
) -> None:
    """Write to `winners` the best-ranked image that each image is near to, by rank."""
    signs = new_array(folder / "signs.npy", np.uint64, (len(order), len(WINDOWS)))
    memo = np.full(2**_MEMO_BITS, ~np.uint64(0))  # no pair
    for entries in _partitions(words, order, signs, folder):
        entries.sort()
        _compare(entries, (words, order, signs, winners), memo)
        release(words, order, signs, winners)


def _partitions(
    words: Words, order: NDArray[np.int64], signs: Words, folder: Path
) -> Iterator[Words]:
    """Enter all images; then yield their entries, all those of a key together."""
    parts = -(-len(order) * ENTRIES // _PARTITION)
    prefix_bits = max(parts - 1, 0).bit_length()
    paths: set[Path] = set()
    for band, prefix, run in _runs(words, order, signs, prefix_bits):
        path = folder / f"{band}-{prefix}"
        paths.add(path)
        with path.open("ab") as file:
            run.tofile(file)
    for path in paths:
        entries = np.fromfile(path, np.uint64)
        path.unlink()
        yield entries


def _runs(
    words: Words, order: NDArray[np.int64], signs: Words, prefix_bits: int
) -> Iterator[tuple[int, int, Words]]:
    """Enter the images in order of rank, piece by piece.

    Yields:
        A band, a key prefix, and the entries with that prefix.
    """
    for first in range(0, len(order), _ROWS_AT_ONCE):
        rows = order[first : first + _ROWS_AT_ONCE]
        entries = np.empty((BANDS, len(rows) * ENTRIES), np.uint64)
        num = enter(words[rows], first, entries, signs[first : first + len(rows)])
        grouped = np.empty(num, np.uint64)
        ends = np.empty(2**prefix_bits, np.int64)
        for band in range(BANDS):
            _group(entries[band, :num], prefix_bits, grouped, ends)
            for prefix in range(2**prefix_bits):
                run = grouped[ends[prefix - 1] if prefix else 0 : ends[prefix]]
                if len(run):
                    yield band, prefix, run
        release(words, order, signs)


@njit(cache=True)
def _group(entries: Any, prefix_bits: int, out: Any, ends: Any) -> None:
    """Write `entries` to `out` grouped by their first bits, and the end of each group to `ends`."""
    shift = np.uint64(63 - prefix_bits)
    ends[:] = 0
    for entry in entries:
        ends[np.int64(entry >> _ONE >> shift)] += 1
    at = np.cumsum(ends) - ends
    for entry in entries:
        prefix = np.int64(entry >> _ONE >> shift)
        out[at[prefix]] = entry
        at[prefix] += 1
    ends[:] = at


@njit(cache=True)
def _bits(word: Any) -> Any:
    num = 0
    while word:
        word &= word - _ONE
        num += 1
    return num


@njit(cache=True)
def _alike(large: Any, small: Any) -> Any:
    """Tell whether the signs of some window, (10,), nearly match the other image's as a whole."""
    apart = 64
    for window in large:
        apart = min(apart, _bits(window ^ small[0]))
    return apart <= _MAX_APART


@njit(cache=True)
def _is_known(rank: Any, better: Any, kind: Any, memo: Any) -> Any:
    """Tell whether a pair was compared before, and remember it; old pairs may be forgotten."""
    pair = np.uint64(rank) << np.uint64(32) | np.uint64(better) << _ONE | np.uint64(kind)
    slot = np.int64((pair * _GOLDEN) >> np.uint64(64 - _MEMO_BITS))
    known = memo[slot] == pair
    memo[slot] = pair
    return known


@njit(cache=True)  # Numba's cache checks this file only: touch it when check.py changes.
def _shows(words: Any, large: Any, small: Any) -> Any:
    thumbs = np.empty((2, SIDE, SIDE))
    open_words(words[large], thumbs[0])
    open_words(words[small], thumbs[1])
    return shows(thumbs[0], thumbs[1])


@njit(cache=True)
def _winner(rank: Any, kind: Any, others: Any, arrays: Any, memo: Any) -> Any:
    """Return the best-ranked image that `rank` is near to, `others` included; or `rank`."""
    words, order, signs, winners = arrays
    tests = 0
    for better in others:
        if better >= winners[rank] or tests == TESTS:
            break
        large, small = (rank, better) if kind else (better, rank)
        if _alike(signs[large], signs[small]):
            tests += 1
            known = _is_known(rank, better, kind, memo)
            if not known and _shows(words, order[large], order[small]):
                return better
    return winners[rank]


@njit(cache=True)
def _compare(entries: Any, arrays: Any, memo: Any) -> None:
    """Lower winners to the best-ranked image each is found near to; entries are sorted."""
    winners = arrays[-1]
    best = np.empty((2, BUCKET), np.int64)  # of this key: shown, large
    nums = np.zeros(2, np.int64)
    last = ~np.uint64(0)  # no entry
    for entry in entries:
        if entry == last:  # Windows of one image can share a key.
            continue
        if (entry ^ last) & ~_RANK:
            nums[:] = 0
        last = entry
        rank, kind = np.int64((entry & _RANK) >> _ONE), np.int64(entry & _ONE)
        winners[rank] = _winner(rank, kind, best[1 - kind, : nums[1 - kind]], arrays, memo)
        if nums[kind] < BUCKET:
            best[kind, nums[kind]] = rank
            nums[kind] += 1


@njit(cache=True)
def _reset(winners: Any) -> None:
    """Make every image its own winner."""
    for rank in range(len(winners)):
        winners[rank] = rank


@njit(cache=True)
def _follow(winners: Any) -> None:
    """Replace each winner by its own winner; winners rank before those they beat."""
    for rank in range(len(winners)):
        winners[rank] = winners[winners[rank]]


@njit(cache=True)
def _name_rows(order: Any, winners: Any, near: Any) -> None:
    """Write winners by row; rows that stand alone keep their -1."""
    for rank in range(len(winners)):
        if winners[rank] < rank:
            near[order[rank]] = order[winners[rank]]
