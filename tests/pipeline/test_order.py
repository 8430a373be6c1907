import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uniform import assert_uniform

from pipeline.config import ConfigError
from pipeline.loading.order import Order, OrderConfig

SEEDS = st.integers(0, 2**63)
LAWS = settings(max_examples=60, deadline=None)


@st.composite
def arguments(draw):
    """Any data set that fills at least one step, and any way to cut it."""
    num_lanes = draw(st.integers(1, 9))
    global_batch = num_lanes * draw(st.integers(1, 5))
    counts = draw(
        st.one_of(
            st.lists(st.integers(1, 60), min_size=1, max_size=12),  # Often fewer than lanes.
            st.integers(1, 80).map(lambda num: [1] * num),  # Shards of one sample.
            st.permutations([1, 1000, 1, 1]),  # One shard holds nearly all.
        )
    )
    counts = [*counts, *[1] * (global_batch - sum(counts))]
    window = draw(st.sampled_from([1, 2, 3, 7, 64, 2**31]))
    config = OrderConfig(global_batch=global_batch, num_lanes=num_lanes, window=window)
    return np.array(counts), config, draw(SEEDS)


def make(counts, config, seed):
    return Order(counts, config, seed=seed)


def orders():
    return arguments().map(lambda case: make(*case))


def epoch_of(order, epoch=0):
    return np.concatenate([order.global_batch(epoch, s) for s in range(order.steps_per_epoch)])


def order_of(counts, *, seed=0, **config):
    return Order(np.array(counts), OrderConfig(**config), seed=seed)


@LAWS
@given(order=orders(), epoch=st.integers(0, 10**9))
def test_an_epoch_delivers_every_sample_once_but_for_the_remainder(order, epoch):
    ids = epoch_of(order, epoch)
    assert len(np.unique(ids)) == len(ids) == order.num_samples - order.remainder
    assert ids.min() >= 0
    assert ids.max() < order.num_samples
    assert 0 <= order.remainder < order.config.global_batch


@LAWS
@given(order=orders(), epoch=st.integers(0, 1000), data=st.data())
def test_ranks_of_any_world_size_share_out_the_same_global_batch(order, epoch, data):
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    whole = order.global_batch(epoch, step)
    assert len(whole) == order.config.global_batch
    for world_size in range(1, order.config.num_lanes + 1):
        parts = [
            order.rank_batch(epoch, step, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert (np.sort(np.concatenate(parts)) == np.sort(whole)).all()
        sizes = [len(part) for part in parts]
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) in (0, order.config.lane_share)


@LAWS
@given(order=orders(), epoch=st.integers(0, 1000))
def test_the_first_rank_of_one_takes_the_global_batch_as_it_is(order, epoch):
    alone = order.rank_batch(epoch, 0, rank=0, world_size=1)
    assert (alone == order.global_batch(epoch, 0)).all()


@LAWS
@given(order=orders(), epoch=st.integers(0, 1000), data=st.data())
def test_a_lane_gives_the_same_samples_whatever_rank_owns_it(order, epoch, data):
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    num_lanes, share = order.config.num_lanes, order.config.lane_share
    by_lane = order.global_batch(epoch, step).reshape(num_lanes, share)
    world_size = data.draw(st.integers(1, num_lanes))
    rank = data.draw(st.integers(0, world_size - 1))
    ours = order.rank_batch(epoch, step, rank=rank, world_size=world_size)
    assert (ours.reshape(-1, share) == by_lane[rank::world_size]).all()


@LAWS
@given(case=arguments(), epoch=st.integers(0, 1000), data=st.data())
def test_any_position_is_reached_without_what_came_before(case, epoch, data):
    order = make(*case)
    ids = epoch_of(order, epoch)
    epoch_of(order, epoch + 1)  # Whatever the order has cached by now.
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    size = order.config.global_batch
    for either in (make(*case), order):
        assert (either.global_batch(epoch, step) == ids[step * size : (step + 1) * size]).all()


@LAWS
@given(seed=SEEDS, epochs=st.lists(st.integers(0, 10**9), min_size=2, max_size=2, unique=True))
def test_epochs_and_seeds_differ(seed, epochs):
    config = {"global_batch": 20, "num_lanes": 4, "window": 50}
    one = order_of([100] * 10, seed=seed, **config)
    other = order_of([100] * 10, seed=seed + 1, **config)
    first, second = (epoch_of(one, epoch) for epoch in epochs)
    assert (first != second).mean() > 0.9
    assert (first != epoch_of(other, epochs[0])).mean() > 0.9


@LAWS
@given(case=arguments(), data=st.data())
def test_rows_finds_the_shard_and_the_row_of_every_id(case, data):
    counts, order = case[0], make(*case)
    pairs = [(s, r) for s, count in enumerate(counts) for r in range(count)]
    ids = data.draw(st.lists(st.integers(0, order.num_samples - 1), min_size=1, max_size=20))
    shards, rows = order.rows(np.array(ids))
    assert list(zip(shards.tolist(), rows.tolist(), strict=True)) == [pairs[i] for i in ids]


@pytest.mark.parametrize(
    ("count", "window", "most"),
    [
        (50, 100, 3),  # A window of whole shards that starts inside one.
        (50, 7, 2),
        (50, 1, 1),
        (1, 7, 7),  # Shards of one sample: a window can not touch fewer.
    ],
)
def test_a_window_touches_few_shards(count, window, most):
    order = order_of([count] * (4200 // count), global_batch=6, num_lanes=6, window=window)
    lanes = epoch_of(order).reshape(-1, 6).T  # A share of one: row l is lane l in time.
    touched = order.rows(lanes)[0]
    for lane in touched:
        for start in range(0, len(lane), window):
            assert len(np.unique(lane[start : start + window])) <= most


def test_a_window_permutes_one_stretch_of_the_lane():
    counts = [10, 30, 5, 55]
    steady = epoch_of(order_of(counts, global_batch=1, num_lanes=1, window=1))
    shuffled = epoch_of(order_of(counts, global_batch=1, num_lanes=1, window=20))
    for start in range(0, 100, 20):
        stretch = np.s_[start : start + 20]
        assert (np.sort(shuffled[stretch]) == np.sort(steady[stretch])).all()
        assert (shuffled[stretch] != steady[stretch]).any()


def test_without_shuffling_inside_shards_follow_each_other_row_by_row():
    order = order_of([10, 30, 5, 55], global_batch=1, num_lanes=1, window=1)
    shards, rows = order.rows(epoch_of(order))
    borders = np.flatnonzero(np.diff(shards)) + 1
    assert len(borders) == 3
    for part in np.split(rows, borders):
        assert (part == np.arange(len(part))).all()


def test_shards_follow_each_other_in_an_order_of_the_epoch_and_the_seed():
    sequences = set()
    for seed in (0, 1):
        order = order_of([2] * 12, seed=seed, global_batch=2, num_lanes=1, window=1)
        for epoch in range(10):
            shards = order.rows(epoch_of(order, epoch))[0][::2]
            assert sorted(shards) == list(range(12))
            sequences.add(tuple(shards.tolist()))
    assert len(sequences) == 20


def test_windows_and_lanes_are_not_shuffled_alike():
    order = order_of([4000], global_batch=4, num_lanes=4, window=100)
    lanes = epoch_of(order).reshape(-1, 4).T
    patterns = lanes.reshape(40, 100) - lanes.reshape(40, 100).min(axis=1, keepdims=True)
    assert len(np.unique(patterns, axis=0)) == 40


def test_every_sample_is_anywhere_in_an_epoch_equally_often():
    order = order_of([3, 9, 4, 4], global_batch=20, num_lanes=1, window=20)
    epochs = 2000
    positions = np.empty((epochs, 20), dtype=np.int64)
    for epoch in range(epochs):
        positions[epoch, epoch_of(order, epoch)] = np.arange(20)
    table = np.stack([np.bincount(column, minlength=20) for column in positions.T])
    assert_uniform(table, freedom=19 * 19)


def test_a_billion_samples_in_a_hundred_thousand_shards_are_planned():
    counts = np.full(100_000, 10_000)
    counts[::7] += 1
    order = order_of(counts, global_batch=4096, num_lanes=64, window=2**16)
    assert order.num_samples > 10**9
    for first in (0, order.steps_per_epoch - 20):
        ids = np.concatenate([order.global_batch(3, first + step) for step in range(20)])
        assert ids.min() >= 0
        assert ids.max() < order.num_samples
        assert len(np.unique(ids)) == 20 * 4096
        assert (order.rows(ids)[1] < counts[order.rows(ids)[0]]).all()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: order_of([3, 4], global_batch=8, num_lanes=2, window=4),
            "the data set holds 7 samples, fewer than one global_batch (=8); lower global_batch "
            "or add images.",
        ),
        (
            lambda: order_of([30], global_batch=8, num_lanes=2, window=4).lanes_of(0, 3),
            "world_size (=3) exceeds num_lanes (=2): some ranks would read nothing and DDP would "
            "hang. Raise num_lanes.",
        ),
        (
            lambda: order_of([30], global_batch=8, num_lanes=2, window=4).global_batch(0, 3),
            "step (=3) must be in 0..2.",
        ),
        (
            lambda: order_of([30], global_batch=8, num_lanes=2, window=4).global_batch(0, -1),
            "step (=-1) must be in 0..2.",
        ),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(act, message):
    with pytest.raises(ConfigError) as caught:
        act()
    assert str(caught.value) == message


def test_a_batch_that_lanes_can_not_share_equally_is_refused():
    with pytest.raises(ValueError, match=r"global_batch \(=9\) must be a multiple of num_lanes"):
        OrderConfig(global_batch=9, num_lanes=2, window=4)
