import itertools

import numpy as np
import pytest

from pipeline.config import ConfigError
from pipeline.pretext.permutations import distances, max_min_hamming_set


@pytest.mark.parametrize(
    ("num_tiles", "size", "least"),
    [
        (9, 100, 6),
        (9, 1000, 5),  # The size of the paper.
        (9, 2000, 4),
        (4, 24, 2),  # Every permutation there is.
        (4, 4, 4),  # A Latin square.
        (16, 30, 14),  # 16! can not be listed: the set is chosen among a sample.
    ],
)
def test_rows_are_distinct_permutations_far_apart(num_tiles, size, least):
    perms = max_min_hamming_set(num_tiles, size, seed=0)
    assert perms.dtype == np.int64
    assert perms.shape == (size, num_tiles)
    assert (np.sort(perms, axis=1) == np.arange(num_tiles)).all()
    assert len(np.unique(perms, axis=0)) == size
    assert distances(perms).min == least


def test_a_small_grid_gives_every_permutation_there_is():
    perms = max_min_hamming_set(4, 24, seed=3)
    assert sorted(map(tuple, perms.tolist())) == sorted(itertools.permutations(range(4)))


def test_the_set_depends_on_the_seed_and_on_nothing_else():
    first = max_min_hamming_set(9, 20, seed=1)
    assert (max_min_hamming_set(9, 20, seed=1) == first).all()
    assert (max_min_hamming_set(9, 20, seed=2) != first).any()


def test_a_smaller_set_opens_a_larger_one():
    # Greedy: the first rows do not depend on how many follow.
    assert (max_min_hamming_set(5, 30, seed=0)[:10] == max_min_hamming_set(5, 10, seed=0)).all()


def test_each_row_is_the_best_that_was_left():
    perms = max_min_hamming_set(4, 10, seed=0)
    everything = np.array(list(itertools.permutations(range(4))))
    for k in range(1, len(perms)):
        apart = (everything[:, None] != perms[None, :k]).sum(axis=2)
        ours = (perms[k] != perms[:k]).sum(axis=1)
        best = max(zip(apart.min(axis=1), apart.sum(axis=1), strict=True))
        assert (ours.min(), ours.sum()) == best


@pytest.mark.parametrize(
    ("num_tiles", "size", "message"),
    [
        (4, 25, "num_permutations (=25) exceeds the 24 permutations of 4 tiles (4!); lower it."),
        (2, 3, "num_permutations (=3) exceeds the 2 permutations of 2 tiles (2!); lower it."),
    ],
)
def test_too_large_a_set_names_the_limit(num_tiles, size, message):
    with pytest.raises(ConfigError) as caught:
        max_min_hamming_set(num_tiles, size, seed=0)
    assert str(caught.value) == message


def test_distances_count_every_pair():
    found = distances(np.array([[0, 1, 2], [1, 0, 2], [1, 2, 0]]))
    assert found.histogram == (0, 0, 2, 1)
    assert found.min == 2
    assert found.mean == pytest.approx(7 / 3)
