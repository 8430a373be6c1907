import numpy as np
import pytest

from pipeline.config import ConfigError
from training.transfer.images.pool import LabelledSet, SplitRule, limit_pool, split_set

KEYS = [f"{n:020x}" for n in range(400)]
LABELS = np.arange(400) % 4


def split_by_hash(keys, labels, rule):
    classes = tuple(map(str, np.unique(labels)))
    labelled = LabelledSet(None, keys, labels, classes, labels >= 0)  # Splits read no bytes.
    return limit_pool(split_set(labelled, rule), rule)


def sides(split, keys):
    return {keys[i]: side for side in ("train", "test") for i in getattr(split, side)}


def test_every_labelled_image_is_on_one_side():
    labels = np.where(np.arange(400) % 10 == 0, -1, LABELS)  # Some have no label.
    split = split_by_hash(KEYS, labels, SplitRule())
    both = np.concatenate([split.train, split.test])
    assert sorted(both) == np.flatnonzero(labels >= 0).tolist()
    assert len(split.test) / len(both) == pytest.approx(0.3, abs=0.07)
    for side in (split.train, split.test):
        assert set(labels[side]) == {0, 1, 2, 3}


@pytest.mark.parametrize("changes", [{}, {"train_per_class": 30, "test_per_class": 10}])
def test_adding_images_moves_none_to_the_other_side(changes):
    before = sides(split_by_hash(KEYS[:300], LABELS[:300], SplitRule(**changes)), KEYS[:300])
    order = np.random.default_rng(0).permutation(400)  # Ids change too.
    keys = [KEYS[i] for i in order]
    after = sides(split_by_hash(keys, LABELS[order], SplitRule(**changes)), keys)
    both = before.keys() & after.keys()
    assert len(both) > 100
    assert all(before[key] == after[key] for key in both)


def test_images_of_one_class_do_not_depend_on_the_other_classes():
    whole = sides(split_by_hash(KEYS, LABELS, SplitRule()), KEYS)
    some = np.flatnonzero(LABELS < 2)
    keys = [KEYS[i] for i in some]
    assert sides(split_by_hash(keys, LABELS[some], SplitRule()), keys).items() <= whole.items()


@pytest.mark.parametrize(
    ("changes", "train", "test"),
    [
        ({"train_per_class": 20, "test_per_class": 5}, 20, 5),
        ({"max_train": 83, "max_test": 43}, 20, 10),  # Equal shares, rounded down.
        ({"train_per_class": 20, "max_train": 40}, 10, None),  # The tighter one holds.
        ({"max_test": 2}, None, 1),  # Fewer than classes: one each.
    ],
)
def test_caps_hold_for_every_class(changes, train, test):
    split = split_by_hash(KEYS, LABELS, SplitRule(**changes))
    free = split_by_hash(KEYS, LABELS, SplitRule())
    for side, cap in (("train", train), ("test", test)):
        rows, all_rows = getattr(split, side), getattr(free, side)
        assert set(rows) <= set(all_rows)
        if cap is None:
            assert len(rows) == len(all_rows)
        else:
            assert np.bincount(LABELS[rows]).tolist() == [cap] * 4


def test_a_class_too_small_for_the_folds_is_excluded():
    labels = np.where(np.arange(400) == 7, 4, LABELS)
    split = split_by_hash(KEYS, labels, SplitRule())
    for side in (split.train, split.test):
        assert np.unique(labels[side]).tolist() == [0, 1, 2, 3]


def test_fewer_than_two_large_enough_classes_are_refused():
    labels = np.where(np.arange(400) == 7, 1, 0)
    with pytest.raises(ConfigError, match=r"^1 of 2 classes have folds \(=3\) training images"):
        split_by_hash(KEYS, labels, SplitRule())
