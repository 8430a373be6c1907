import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pretext.draws import Draws, _rounds

SEEDS = st.integers(0, 2**63)
IDS = st.lists(st.integers(0, 2**62), min_size=1, max_size=20)


def draws(ids, seed=0, epoch=0):
    return Draws(seed, epoch, np.array(ids, dtype=np.int64))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123, tests/kat_vectors, philox4x32 10.
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (  # Digits of pi.
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_its_published_answers(counter, key, expected):
    assert _rounds(*map(np.uint64, (*counter, *key))) == expected


@settings(max_examples=50, deadline=None)
@given(ids=IDS, seed=SEEDS, epoch=st.integers(0, 10**6), num=st.integers(1, 11), data=st.data())
def test_a_sample_draws_the_same_in_any_batch(ids, seed, epoch, num, data):
    alone = {i: draws([i], seed, epoch).bits("crop", num)[0] for i in ids}
    batch = data.draw(st.permutations(ids + ids[:3]))
    together = draws(batch, seed, epoch).bits("crop", num)
    assert together.shape == (len(batch), num)
    for sample_id, row in zip(batch, together, strict=True):
        assert (row == alone[sample_id]).all()


@settings(max_examples=50, deadline=None)
@given(ids=IDS, few=st.integers(1, 12), many=st.integers(1, 30))
def test_the_first_columns_do_not_depend_on_how_many_are_drawn(ids, few, many):
    few, many = sorted((few, many))
    short, long = draws(ids).bits("jitter", few), draws(ids).bits("jitter", many)
    assert (short == long[:, :few]).all()


def test_seed_epoch_name_and_sample_each_change_the_draws():
    rows = [
        draws([5]).bits("crop", 4),
        draws([5], seed=1).bits("crop", 4),
        draws([5], epoch=1).bits("crop", 4),
        draws([5]).bits("gray", 4),
        draws([6]).bits("crop", 4),
        draws([5 + 2**32]).bits("crop", 4),  # Both halves of a large id count.
        draws([5 + 2**62]).bits("crop", 4),
        # Neighbours in one place must not meet neighbours in another.
        draws([6], epoch=1).bits("crop", 4),
        draws([0], epoch=5).bits("crop", 4),
    ]
    assert len(np.unique(np.concatenate(rows), axis=0)) == len(rows)
    assert len(np.unique(np.concatenate(rows))) == 4 * len(rows)


def test_no_column_repeats_another():
    bits = draws(range(500)).bits("jitter", 9)
    assert len(np.unique(bits)) > 4490  # Of 4,500; by chance 0.002 of them meet.


@settings(max_examples=100, deadline=None)
@given(high=st.integers(1, 2**31), ids=IDS, seed=SEEDS)
def test_integers_stay_below_high(high, ids, seed):
    values = draws(ids, seed).integers("label", high, 5)
    assert values.dtype == np.int64
    assert values.shape == (len(ids), 5)
    assert ((values >= 0) & (values < high)).all()


@pytest.mark.parametrize("high", [1, 2, 22, 1000])
def test_integers_hit_every_value_equally_often(high):
    num = 40 * high
    values = draws(range(num)).integers("label", high, 1)[:, 0]
    counts = np.bincount(values, minlength=high)
    assert counts.min() > 0
    assert_uniform(counts)


def test_uniform_fills_the_unit_interval_without_its_end():
    values = draws(range(20_000)).uniform("crop", 3)
    assert values.min() >= 0
    assert values.max() < 1
    for column in values.T:
        assert_uniform(np.bincount((column * 100).astype(int), minlength=100))
    # The largest 32 bits must not round up to 1.
    assert float(2**32 - 1) * 2.0**-32 < 1


def test_columns_and_neighbouring_samples_are_uncorrelated():
    values = draws(range(20_000)).uniform("crop", 4) - 0.5
    columns = np.corrcoef(values.T)[np.triu_indices(4, k=1)]
    neighbours = np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]
    assert np.abs([*columns, neighbours]).max() < 5 / np.sqrt(20_000)


def test_an_empty_batch_draws_nothing():
    assert draws([]).uniform("crop", 3).shape == (0, 3)


def assert_uniform(counts):
    """Chi-square within five standard deviations of its mean; the draws are fixed."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - freedom) <= 5 * np.sqrt(2 * freedom)
