"""Labelled shards as one pool of images, of which a transfer takes its two sides."""

# Shapes: N images, C classes.

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.data import open_store
from pipeline.remote.cache import CacheConfig
from pipeline.shards.manifest import Manifest
from pipeline.shards.store import Store
from training.transfer.job import Labelled
from training.transfer.overlap import is_copy
from training.transfer.split import Sides, SplitRule, limit_all, limit_by_hash, sides_by_hash
from training.transfer.voc_shards import has_several_classes, read_voc_shards


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
    sides: Sides
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
        Sides(np.arange(num), np.arange(num, both)),
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


def limit_pool(pool: Pool, rule: SplitRule) -> Sides:
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
    return Sides(train, test)


def labelled(pool: Pool, sides: Sides) -> tuple[Labelled, Labelled]:
    """Return the images to train and to test on, with their ids in their own stores."""
    train = Labelled(pool.stores[0], sides.train, pool.targets[sides.train])
    test = Labelled(pool.stores[1], sides.test - pool.first_test, pool.targets[sides.test])
    return train, test
