"""Near duplicates: of images that look alike, the best-ranked is kept.

An image loses to a better-ranked one where either shows a window of the other (`near_check`) and
both are found under one key (`near_keys`). Keys are looked through one partition at a time, and
no rule looks at the order of rows or at the partitions.

Under one key an image is compared with the BUCKET best-ranked images of either kind at most, so
that a key that many share (drawings on white) costs no more than in proportion.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.crawl.near_check import open_words, shows
from pipeline.crawl.near_hash import SIDE, WORDS
from pipeline.crawl.near_keys import BANDS, ENTRIES, KEY_BITS, MAX_ROWS, enter

Words = NDArray[np.uint64]

BUCKET = 64
"""Better-ranked images of a kind that an image is compared with under one key."""

_ROWS_AT_ONCE = 2**15  # entered together
_PARTITION = 2**24  # entries, on average
_MAX_APART = 20  # of 63 signs; unrelated images differ in about half
_PLACE = np.uint64(2 ** (64 - KEY_BITS) - 1)
_ONE = np.uint64(1)


def find_near(words: Words, ranks: NDArray[np.int64], folder: Path | None) -> NDArray[np.int64]:
    """Find the images that a better-ranked image makes superfluous.

    Flat images (paper, sky) have no look of their own: they are always kept.

    Args:
        words: uint64 (N, WORDS), of `near_hash.near_words`; may be a memory map.
        ranks: int64 (N,), distinct; the smaller is kept.
        folder: Where up to 1.4 kB per image lie meanwhile; None holds them in memory.

    Returns:
        int64 (N,): the row of the image each one loses to, chains followed to their end; -1 where
        it is kept.
    """
    order = np.argsort(ranks, kind="stable")
    _check(words, ranks, order)
    signs = np.zeros(len(order), np.uint64)
    winners = np.arange(len(order))  # by place in the ranking
    for entries in _partitions(words, order, signs, folder):
        _compare(entries, words, order, signs, winners)
    _follow(winners)
    rows = np.full(len(order), -1)
    lost = winners < np.arange(len(order))
    rows[order[lost]] = order[winners[lost]]
    return rows


def _check(words: Words, ranks: NDArray[np.int64], order: NDArray[np.int64]) -> None:
    if words.shape != (len(ranks), WORDS) or words.dtype != np.uint64:
        raise ValueError(
            f"words (={words.dtype} {words.shape}) must be uint64 ({len(ranks)}, {WORDS}), one row "
            "for each of ranks; take them from near_words."
        )
    if len(ranks) > MAX_ROWS:
        raise ValueError(f"{len(ranks)} images are more than {MAX_ROWS}; split the crawl.")
    if (np.diff(ranks[order]) == 0).any():
        raise ValueError("ranks must be distinct: equals leave open which image is kept.")


def _partitions(
    words: Words, order: NDArray[np.int64], signs: Words, folder: Path | None
) -> Iterator[Words]:
    """Enter all images; then give their entries, sorted, all of a key together."""
    num = -(-len(order) * ENTRIES // _PARTITION)
    prefix_bits = min((num - 1).bit_length(), KEY_BITS) if num else 0
    if folder is None:
        held: dict[str, list[Words]] = defaultdict(list)
        for name, run in _runs(words, order, signs, prefix_bits):
            held[name].append(run)
        for name in sorted(held):
            entries = np.concatenate(held.pop(name))
            entries.sort()
            yield entries
        return
    with TemporaryDirectory(dir=folder, prefix="near-") as made:
        for name, run in _runs(words, order, signs, prefix_bits):
            with (Path(made) / name).open("ab") as file:
                run.tofile(file)
        for path in sorted(Path(made).iterdir()):
            entries = np.fromfile(path, np.uint64)
            path.unlink()
            entries.sort()
            yield entries


def _runs(
    words: Words, order: NDArray[np.int64], signs: Words, prefix_bits: int
) -> Iterator[tuple[str, Words]]:
    """Enter the images in the order of their ranks, piece by piece.

    Yields:
        The name of a partition, and sorted entries that belong there.
    """
    prefixes = np.arange(1, 2**prefix_bits, dtype=np.uint64) << np.uint64(64 - prefix_bits)
    for first in range(0, len(order), _ROWS_AT_ONCE):
        rows = order[first : first + _ROWS_AT_ONCE]
        entries = np.empty((BANDS, len(rows) * ENTRIES), np.uint64)
        num = enter(words[rows], first, entries, signs[first : first + len(rows)])
        for band in range(BANDS):
            run = np.sort(entries[band, :num])
            for prefix, part in enumerate(np.split(run, np.searchsorted(run, prefixes))):
                if len(part):
                    yield f"{band}-{prefix:08}", part


@njit(cache=True)
def _apart(one: Any, other: Any) -> Any:
    """In how many bits two words differ."""
    left = one ^ other
    num = 0
    while left:
        left &= left - _ONE
        num += 1
    return num


@njit(cache=True)
def _near_to(words: Any, rows: Any, kind: Any, signs_apart: Any, thumbs: Any) -> Any:
    """Whether the images at two rows are near; `kind` says what the first is: 1 for "large"."""
    if signs_apart > _MAX_APART:
        return False
    open_words(words[rows[0]], thumbs[kind])
    open_words(words[rows[1]], thumbs[1 - kind])
    return shows(thumbs[1], thumbs[0])


@njit(cache=True)
def _compare(entries: Any, words: Any, order: Any, signs: Any, winners: Any) -> None:
    """Lower `winners` to the best-ranked image that each is found near to; entries are sorted."""
    best = np.empty((2, BUCKET), np.int64)  # of this key: shown, large
    nums = np.zeros(2, np.int64)
    thumbs = np.empty((2, SIDE, SIDE))
    last = ~np.uint64(0)  # no entry
    for entry in entries:
        if entry == last:  # Windows of one image can share a key.
            continue
        if (entry ^ last) & ~_PLACE:
            nums[:] = 0
        last = entry
        place, kind = np.int64((entry & _PLACE) >> _ONE), np.int64(entry & _ONE)
        for better in best[1 - kind, : nums[1 - kind]]:
            if better >= winners[place]:
                break
            rows = (order[place], order[better])
            apart = _apart(signs[place], signs[better])
            if _near_to(words, rows, kind, apart, thumbs):
                winners[place] = better
        if nums[kind] < BUCKET:
            best[kind, nums[kind]] = place
            nums[kind] += 1


@njit(cache=True)
def _follow(winners: Any) -> None:
    """Replace each winner by the winner's own; winners stand before those they beat."""
    for place in range(len(winners)):
        winners[place] = winners[winners[place]]
