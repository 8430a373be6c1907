import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uniform import assert_uniform

from pipeline.loading.order import permute


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.one_of(
            st.integers(1, 40),
            # Beside squares, where the two sides of the cipher change.
            st.tuples(st.integers(2, 60), st.integers(-1, 1)).map(lambda t: t[0] ** 2 + t[1]),
        ),
        min_size=1,
        max_size=4,
    ),
    keys=st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4),
)
def test_permute_is_a_bijection_of_each_domain(sizes, keys):
    values = np.concatenate([np.arange(size) for size in sizes])
    out = permute(
        values, np.repeat(sizes, sizes), np.repeat(np.array(keys[: len(sizes)], np.uint64), sizes)
    )
    for part, size in zip(np.split(out, np.cumsum(sizes)[:-1]), sizes, strict=True):
        assert (np.sort(part) == np.arange(size)).all()


@pytest.mark.parametrize("size", [2**31, 2**31 - 1, 46_340**2 + 1, 46_341**2 - 1])
@pytest.mark.parametrize("start", [0, 10**9])
def test_permute_does_not_collide_in_its_largest_domains(size, start):
    values = np.arange(start, start + 100_000)
    sizes = np.full(len(values), size)
    out = permute(values, sizes, np.full(len(values), 7, np.uint64))
    assert out.min() >= 0
    assert out.max() < size
    assert len(np.unique(out)) == len(out)
    assert_uniform(np.bincount(out * 50 // size, minlength=50), freedom=49)


@pytest.mark.parametrize("size", [2, 3, 4, 10, 17])
def test_permute_sends_any_value_anywhere_equally_often(size):
    num_keys = 20_000
    keys = np.random.default_rng(size).integers(0, 2**64, num_keys, dtype=np.uint64)
    table = np.empty((size, size), dtype=np.int64)
    for value in range(size):
        out = permute(np.full(num_keys, value), np.full(num_keys, size), keys)
        table[value] = np.bincount(out, minlength=size)
    assert_uniform(table, freedom=(size - 1) ** 2)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_permute_reaches_every_permutation_about_equally_often(size):
    num_keys = 24_000
    keys = np.random.default_rng(size).integers(0, 2**64, num_keys, dtype=np.uint64)
    rows = np.stack(
        [permute(np.full(num_keys, v), np.full(num_keys, size), keys) for v in range(size)], axis=1
    )
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(counts) == np.prod(range(1, size + 1))
    # Six rounds on so few values are not quite even: some orders of 4 come 10 % too often.
    assert counts.min() > 0.85 * counts.mean()
    assert counts.max() < 1.15 * counts.mean()
