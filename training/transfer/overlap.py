"""Images that are in two sets: counted by content, so that a score says what was seen before."""

# Shapes: N images.

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.store import Store

_content_of = re.compile(r"([0-9a-f]{20})(-[0-9]+)?").fullmatch


@dataclass(frozen=True, slots=True)
class Contents:
    """What names the content of each image of a set."""

    hashes: NDArray[np.uint64]
    """(N,), of the bytes that are stored, as in `ShardIndex`."""
    originals: tuple[str | None, ...]
    """N names of the files the images were made of, where the keys of the shards are such names:
    an image that was encoded again is found by its original."""


def contents_of(store: Store, sample_ids: NDArray[np.int64] | None = None) -> Contents:
    """Name the given images of a store, or all; reads indexes only."""
    hashes, keys = store.hashes(), store.keys()
    rows = np.arange(len(keys)) if sample_ids is None else sample_ids
    found = (_content_of(keys[row]) for row in rows.tolist())
    return Contents(hashes[rows], tuple(match[1] if match else None for match in found))


def is_copy(key: str) -> bool:
    """Whether a key is that of a packed image whose content an earlier one has, too.

    >>> is_copy("0123456789abcdef0123-2"), is_copy("0123456789abcdef0123"), is_copy("dog-2")
    (True, False, False)
    """
    match = _content_of(key)
    return match is not None and match[2] is not None


def count_shared(ours: Contents, theirs: Contents) -> int:
    """Count the images of `theirs` that are in `ours`, too: equal bytes, or of one original."""
    same = np.isin(theirs.hashes, ours.hashes)
    known = set(ours.originals) - {None}
    return int((same | np.array([o in known for o in theirs.originals], np.bool_)).sum())


def count_all(contents: dict[str, Contents], pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Count for each pair (a, b) of names the images of b that are in a, under "a/b"."""
    return {
        f"{a}/{b}": count_shared(contents[a], contents[b])
        for a, b in pairs
        if a in contents and b in contents
    }
