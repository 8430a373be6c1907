"""Labelled shards as one pool of images, split by hash into the two sides of a transfer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.loading.data import open_store
from pipeline.pretext.supervised import hash_keys, held_out
from pipeline.remote.cache import CacheConfig
from pipeline.shards.manifest import Manifest
from pipeline.shards.store import Store
from training.transfer.images.voc_annotation import has_several_classes, read_voc_shards
from training.transfer.job import Labelled

# Shapes: N images, C classes.


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How to split a set without an official split, and how many images to use of any set."""

    test_share: float = 0.3
    """Share of the images to test on, chosen by the hash of their key."""
    train_per_class: int | None = None
    """At most this many training images of each class."""
    test_per_class: int | None = None
    """At most this many test images of each class."""
    max_train: int | None = None
    """At most this many training images in all, shared equally among the classes."""
    max_test: int | None = None
    """At most this many test images in all, shared equally among the classes."""
    folds: int = 3
    """Lowest number of training images of a class: one for each fold of a cross-validation."""


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Rows of a set on each side of the split."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


_content_of = re.compile(r"([0-9a-f]{20})(-[0-9]+)?").fullmatch


@dataclass(frozen=True, slots=True)
class Contents:
    """Identity of the content of each image of a set."""

    hashes: NDArray[np.uint64]
    """(N,), hashes of the stored bytes, as in `ShardIndex`."""
    originals: tuple[str | None, ...]
    """N hashes of the source files, where the keys of the shards are such hashes: they identify an
    image that was re-encoded."""


def contents_of(store: Store, sample_ids: NDArray[np.int64] | None = None) -> Contents:
    """Identify the given images of a store, or all; reads indexes only."""
    hashes, keys = store.hashes(), store.keys()
    rows = np.arange(len(keys)) if sample_ids is None else sample_ids
    found = (_content_of(keys[row]) for row in rows.tolist())
    return Contents(hashes[rows], tuple(match[1] if match else None for match in found))


def is_copy(key: str) -> bool:
    """Whether a key is that of a packed image that duplicates an earlier one.

    >>> is_copy("0123456789abcdef0123-2"), is_copy("0123456789abcdef0123"), is_copy("dog-2")
    (True, False, False)
    """
    match = _content_of(key)
    return match is not None and match[2] is not None


def count_shared(ours: Contents, theirs: Contents) -> int:
    """Count the images of `theirs` also in `ours`: equal bytes, or the same source file."""
    same = np.isin(theirs.hashes, ours.hashes)
    known = set(ours.originals) - {None}
    return int((same | np.array([o in known for o in theirs.originals], np.bool_)).sum())


def count_all(contents: dict[str, Contents], pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Count for each pair (a, b) of names the images of b that are also in a, under "a/b"."""
    return {
        f"{a}/{b}": count_shared(contents[a], contents[b])
        for a, b in pairs
        if a in contents and b in contents
    }


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """One set of labelled shards."""

    store: Store
    keys: list[str]
    targets: NDArray[np.int64]
    """(N,), -1 where unlabelled; or (N, C)."""
    classes: tuple[str, ...]
    is_labelled: NDArray[np.bool_]
    """(N,)."""


@dataclass(frozen=True, slots=True)
class Pool:
    """All images to choose from; those of two sets are concatenated."""

    stores: tuple[Store, Store]
    """Stores of training and test images; the same one twice where one set is split."""
    first_test: int
    """Row of the first image of the second store; 0 where both are the same."""
    keys: list[str]
    targets: NDArray[np.int64]
    """(N,) or (N, C)."""
    classes: tuple[str, ...]
    sides: SplitRows
    """Sides before the limits are applied."""
    is_labelled: NDArray[np.bool_]
    """(N,)."""
    is_copy: NDArray[np.bool_]
    """(N,), duplicates, which could otherwise be on both sides."""

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(N,), labelled and not a duplicate."""
        return self.is_labelled & ~self.is_copy

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,), -1 where not usable; None for multi-label sets."""
        return np.where(self.usable, self.targets, -1) if self.targets.ndim == 1 else None


def require_classes(manifest: Manifest, location: str | Path) -> None:
    """Refuse shards with fewer than 2 classes."""
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
    """Split one set by the hash of its keys, so that adding images moves none.

    Of duplicates, the first is used.
    """
    is_test, rows = held_out(found.keys, rule.test_share), np.arange(len(found.keys))
    return Pool(
        (found.store, found.store),
        0,
        found.keys,
        found.targets,
        found.classes,
        SplitRows(rows[~is_test], rows[is_test]),
        found.is_labelled,
        np.array([is_copy(key) for key in found.keys], np.bool_),
    )


def pair_sets(train: LabelledSet, test: LabelledSet) -> Pool:
    """Join the two sets of a split, over the classes of both.

    Raises:
        ConfigError: One is single-label, the other multi-label.
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
    """Return targets renumbered to the given classes."""
    numbers = np.array([classes.index(name) for name in found.classes], np.int64)
    if found.targets.ndim == 1:
        return np.where(found.targets < 0, -1, numbers[found.targets])
    targets = np.zeros((len(found.targets), len(classes)), np.int64)
    targets[:, numbers] = found.targets
    return targets


def limit_pool(pool: Pool, rule: SplitRule) -> SplitRows:
    """Apply the limits to each side.

    Raises:
        ConfigError: Fewer than 2 classes are left, or no image on a side.
    """
    if pool.labels is not None:
        return _limit_by_hash(pool.keys, pool.labels, pool.sides, rule)
    usable = pool.usable
    both = ((pool.sides.train, rule.max_train), (pool.sides.test, rule.max_test))
    train, test = (_limit_all(pool.keys, rows[usable[rows]], most) for rows, most in both)
    for name, rows in (("train", train), ("test", test)):
        if not len(rows):
            raise ConfigError(
                f"data has no image to {name} on at test_share (={rule.test_share}); add images "
                "with annotations."
            )
    return SplitRows(train, test)


def labelled(pool: Pool, sides: SplitRows) -> tuple[Labelled, Labelled]:
    """Return the training and the test images, with ids in their own stores."""
    train = Labelled(pool.stores[0], sides.train, pool.targets[sides.train])
    test = Labelled(pool.stores[1], sides.test - pool.first_test, pool.targets[sides.test])
    return train, test


def _limit_by_hash(
    keys: Sequence[str], labels: NDArray[np.int64], sides: SplitRows, rule: SplitRule
) -> SplitRows:
    """Keep as many images of each class and side as the rule allows, those of the smallest hashes.

    Classes with fewer training images than folds, or without a test image, are excluded.

    Raises:
        ConfigError: Fewer than 2 classes are left.
    """
    hashes = hash_keys(keys)
    classes = np.unique(labels[labels >= 0])
    most_train = _cap(rule.train_per_class, rule.max_train, len(classes))
    most_test = _cap(rule.test_per_class, rule.max_test, len(classes))
    train, test = [], []
    for label in classes:
        train_rows = _of_class(sides.train, labels, label, hashes)[:most_train]
        test_rows = _of_class(sides.test, labels, label, hashes)[:most_test]
        if len(train_rows) >= rule.folds and len(test_rows):
            train.append(train_rows)
            test.append(test_rows)
    if len(train) < 2:
        raise ConfigError(
            f"{len(train)} of {len(classes)} classes have folds (={rule.folds}) training images "
            f"and a test image at test_share (={rule.test_share}); a transfer needs 2 such "
            "classes. Add images or lower folds."
        )
    return SplitRows(np.concatenate(train), np.concatenate(test))


def _limit_all(keys: Sequence[str], rows: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    """Keep at most this many rows, those of the smallest hashes, in their order."""
    if most is None or len(rows) <= most:
        return rows
    hashes = hash_keys([keys[row] for row in rows])
    chosen: NDArray[np.int64] = rows[np.sort(np.argsort(hashes, kind="stable")[:most])]
    return chosen


def _of_class(
    rows: NDArray[np.int64], labels: NDArray[np.int64], label: int, hashes: NDArray[np.uint64]
) -> NDArray[np.int64]:
    members = rows[labels[rows] == label]
    by_hash: NDArray[np.int64] = members[np.argsort(hashes[members], kind="stable")]
    return by_hash


def _cap(per_class: int | None, in_all: int | None, num_classes: int) -> int | None:
    """Return the limit of images per class, None for all."""
    caps = [per_class] if per_class else []
    caps += [max(1, in_all // num_classes)] if in_all else []
    return min(caps, default=None)
