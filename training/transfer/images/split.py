"""Which labelled images are learned from and which are tested on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.pretext.supervised import hash_keys, held_out

# Shapes: N images.


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How a set without a split is split, and how many images are used of any set."""

    test_share: float = 0.3
    """Share of the images that are tested on; which ones is decided by the hash of their key."""
    train_per_class: int | None = None
    """At most so many training images of each class."""
    test_per_class: int | None = None
    """At most so many test images of each class."""
    max_train: int | None = None
    """At most so many training images in all: every class gets the same share of them."""
    max_test: int | None = None
    """At most so many test images in all: every class gets the same share of them."""
    folds: int = 3
    """A class needs so many training images: one for each part of a cross-validation."""


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Rows of a set on each side, class by class, in the order of their hashes."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def split_by_hash(keys: Sequence[str], labels: NDArray[np.int64], rule: SplitRule) -> SplitRows:
    """Decide by its key which side an image is on, so that adding images moves none.

    The smallest hashes of a class go to the test. Images without a label are left out, and so are
    classes with fewer training images than folds, or without a test image.

    Args:
        keys: N of them.
        labels: int64 (N,), class numbers, -1 where there is none.
        rule: Shares and limits.

    Raises:
        ConfigError: Fewer than 2 classes are left.
    """
    return limit_by_hash(keys, labels, sides_by_hash(keys, rule.test_share), rule)


def sides_by_hash(keys: Sequence[str], test_share: float) -> SplitRows:
    """Send each image to a side by the hash of its key."""
    is_test = held_out(keys, test_share)
    rows = np.arange(len(keys))
    return SplitRows(rows[~is_test], rows[is_test])


def limit_by_hash(
    keys: Sequence[str], labels: NDArray[np.int64], sides: SplitRows, rule: SplitRule
) -> SplitRows:
    """Take of each class and side as many images as the rule allows, those of the smallest hashes.

    Classes with fewer training images than folds, or without a test image, are left out.

    Raises:
        ConfigError: Fewer than 2 classes are left.
    """
    hashes = hash_keys(keys)
    classes = np.unique(labels[labels >= 0])
    most_train = _cap(rule.train_per_class, rule.max_train, len(classes))
    most_test = _cap(rule.test_per_class, rule.max_test, len(classes))
    train, test = [], []
    for label in classes:
        learned = _of_class(sides.train, labels, label, hashes)[:most_train]
        tested = _of_class(sides.test, labels, label, hashes)[:most_test]
        if len(learned) >= rule.folds and len(tested):
            train.append(learned)
            test.append(tested)
    if len(train) < 2:
        raise ConfigError(
            f"{len(train)} of {len(classes)} classes have folds (={rule.folds}) training images "
            f"and a test image at test_share (={rule.test_share}); a transfer needs 2 such "
            "classes. Add images or lower folds."
        )
    return SplitRows(np.concatenate(train), np.concatenate(test))


def limit_all(keys: Sequence[str], rows: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    """Take at most so many of the rows, those of the smallest hashes; in the order of the rows."""
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
    """Return how many images a class may give, or None for all."""
    caps = [per_class] if per_class else []
    caps += [max(1, in_all // num_classes)] if in_all else []
    return min(caps, default=None)
