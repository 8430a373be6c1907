"""Labelled shards as one pool of images, of which a transfer takes its two sides."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.loading.data import open_store
from pipeline.remote.cache import CacheConfig
from pipeline.shards.manifest import Manifest
from pipeline.shards.store import Store
from training.transfer.images.split import (
    SplitRows,
    SplitRule,
    limit_all,
    limit_by_hash,
    sides_by_hash,
)
from training.transfer.images.voc_shards import has_several_classes, read_voc_shards
from training.transfer.job import Labelled

# Shapes: N images.


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


# Shapes: N images, C classes.


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """One set of labelled shards; N images."""

    store: Store
    keys: list[str]
    targets: NDArray[np.int64]
    """(N,) with -1 where there is none, or (N, C)."""
    classes: tuple[str, ...]
    is_labelled: NDArray[np.bool_]
    """(N,)."""


@dataclass(frozen=True, slots=True)
class Pool:
    """All images to choose from, those of both sets behind each other; N images."""

    stores: tuple[Store, Store]
    """Of training and test images; twice the same where it is split."""
    first_test: int
    """Row of the first image of the second store, 0 where both are the same."""
    keys: list[str]
    targets: NDArray[np.int64]
    """(N,) or (N, C)."""
    classes: tuple[str, ...]
    sides: SplitRows
    """Before the limits."""
    is_labelled: NDArray[np.bool_]
    """(N,)."""
    is_copy: NDArray[np.bool_]
    """(N,), of an image that would else be on two sides."""

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(N,)."""
        return self.is_labelled & ~self.is_copy

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,), -1 for what is not used; None where an image may show several classes."""
        return np.where(self.usable, self.targets, -1) if self.targets.ndim == 1 else None


def require_classes(manifest: Manifest, location: str | Path) -> None:
    """Refuse shards with fewer than 2 classes.

    Raises:
        ConfigError: The line that says so.
    """
    found = len(manifest.classes) if manifest.classes else 0
    if found < 2:
        raise ConfigError(
            f"manifest (={location}) has {found} classes, a transfer needs at least 2. Shard a "
            "tree whose last folder level names the classes."
        )


def open_set(place: str, cache: CacheConfig) -> LabelledSet:
    """Open labelled shards.

    Raises:
        ConfigError: They have fewer than 2 classes, or no labels.
    """
    store = open_store(place, cache)
    labels, keys = store.labels(), store.keys()
    if (labels < 0).all() and has_several_classes(store):
        targets, classes, known = read_voc_shards(store, store.manifest.classes)
        return LabelledSet(store, keys, targets, classes, known)
    require_classes(store.manifest, place)
    assert store.manifest.classes is not None
    if (labels < 0).all():
        raise ConfigError(
            f"manifest (={place}) has classes, and none of its images has a label; give shards of "
            "labelled images."
        )
    return LabelledSet(store, keys, labels, store.manifest.classes, labels >= 0)


def split_set(found: LabelledSet, rule: SplitRule) -> Pool:
    """Split one set by the hash of its keys; of equal images, the first one is used."""
    return Pool(
        (found.store, found.store),
        0,
        found.keys,
        found.targets,
        found.classes,
        sides_by_hash(found.keys, rule.test_share),
        found.is_labelled,
        np.array([is_copy(key) for key in found.keys], np.bool_),
    )


def pair_sets(train: LabelledSet, test: LabelledSet) -> Pool:
    """Put the two sets of a split together, over the classes of both.

    Raises:
        ConfigError: The images of one have one class, those of the other several.
    """
    if train.targets.ndim != test.targets.ndim:
        raise ConfigError(
            "data has one class for each image on one side of its split, and several on the "
            "other; pack both sides alike."
        )
    classes = (*train.classes, *(name for name in test.classes if name not in train.classes))
    first, second = (_renumber(one, classes) for one in (train, test))
    num, both = len(train.keys), len(train.keys) + len(test.keys)
    return Pool(
        (train.store, test.store),
        num,
        [*train.keys, *test.keys],
        np.concatenate([first, second]),
        classes,
        SplitRows(np.arange(num), np.arange(num, both)),
        np.concatenate([train.is_labelled, test.is_labelled]),
        np.zeros(both, np.bool_),
    )


def _renumber(found: LabelledSet, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return targets that count through other classes."""
    numbers = np.array([classes.index(name) for name in found.classes], np.int64)
    if found.targets.ndim == 1:
        return np.where(found.targets < 0, -1, numbers[found.targets])
    targets = np.zeros((len(found.targets), len(classes)), np.int64)
    targets[:, numbers] = found.targets
    return targets


def limit_pool(pool: Pool, rule: SplitRule) -> SplitRows:
    """Take what is used of each side.

    Raises:
        ConfigError: Fewer than 2 classes are left, or no image on a side.
    """
    if pool.labels is not None:
        return limit_by_hash(pool.keys, pool.labels, pool.sides, rule)
    usable = pool.usable
    both = ((pool.sides.train, rule.max_train), (pool.sides.test, rule.max_test))
    train, test = (limit_all(pool.keys, rows[usable[rows]], most) for rows, most in both)
    for name, rows in (("train", train), ("test", test)):
        if not len(rows):
            raise ConfigError(
                f"data has no image to {name} on at test_share (={rule.test_share}); add images "
                "with annotations."
            )
    return SplitRows(train, test)


def labelled(pool: Pool, sides: SplitRows) -> tuple[Labelled, Labelled]:
    """Return the images to train and to test on, with their ids in their own stores."""
    train = Labelled(pool.stores[0], sides.train, pool.targets[sides.train])
    test = Labelled(pool.stores[1], sides.test - pool.first_test, pool.targets[sides.test])
    return train, test
