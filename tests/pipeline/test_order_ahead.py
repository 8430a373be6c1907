import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loading.order import Order, OrderConfig


@st.composite
def made(draw):
    lanes = draw(st.integers(1, 6))
    config = OrderConfig(
        global_batch=lanes * draw(st.integers(1, 4)),
        num_lanes=lanes,
        window=draw(st.integers(1, 40)),
    )
    counts = draw(st.lists(st.integers(1, 60), min_size=1, max_size=12))
    return Order(np.array([*counts, config.global_batch]), config, seed=draw(st.integers(0, 5)))


@settings(max_examples=100, deadline=None)
@given(order=made(), data=st.data())
def test_the_shards_ahead_are_those_of_the_coming_steps(order, data):
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    world_size = data.draw(st.integers(1, order.config.num_lanes))
    rank = data.draw(st.integers(0, world_size - 1))
    ahead = data.draw(st.integers(1, 50))
    lanes = order.lanes_of(rank, world_size)
    named = order.shards_ahead(1, step, lanes, samples=ahead).tolist()
    assert len(named) == len(set(named))
    steps = -(-ahead // order.config.lane_share)
    needed = set()
    for coming in range(step, min(step + steps, order.steps_per_epoch)):
        ids = order.rank_batch(1, coming, rank=rank, world_size=world_size)
        needed |= set(order.rows(ids)[0].tolist())
    assert needed <= set(named)


def test_the_shard_needed_first_is_named_first():
    config = OrderConfig(global_batch=1, num_lanes=1, window=1)
    order = Order(np.array([5, 5, 5, 5]), config, seed=3)
    needed = [int(order.rows(order.global_batch(0, step))[0][0]) for step in range(20)]
    assert order.shards_ahead(0, 0, np.array([0]), samples=20).tolist() == list(
        dict.fromkeys(needed)
    )


@settings(max_examples=100, deadline=None)
@given(order=made(), data=st.data())
def test_the_first_spares_stand_in_the_window_of_the_damage(order, data):
    config = order.config
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    slot = data.draw(st.integers(0, config.global_batch - 1))
    place = step * config.lane_share + slot % config.lane_share
    window = place // config.window
    # Everything that the lane delivers from this window.
    inside = set()
    for other in range(order.steps_per_epoch):
        for n, sample_id in enumerate(order.global_batch(2, other).tolist()):
            lane, j = divmod(n, config.lane_share)
            at = (other * config.lane_share + j) // config.window
            if lane == slot // config.lane_share and at == window:
                inside.add(sample_id)
    spares = [order.spare(2, step, slot, attempt) for attempt in range(8)]
    # The end of a lane that fills no step may stand in its last window, too.
    whole = (window + 1) * config.window <= order.steps_per_epoch * config.lane_share
    assert set(spares) <= inside or not whole
    assert all(0 <= spare < order.num_samples for spare in spares)


def test_later_spares_come_from_the_whole_set():
    config = OrderConfig(global_batch=2, num_lanes=2, window=2)
    order = Order(np.array([500, 500]), config, seed=0)
    spares = [order.spare(0, 3, 1, attempt) for attempt in range(8, 2008)]
    assert len(set(spares)) > 700
    assert abs(np.mean(spares) - 499.5) < 5 * 289 / np.sqrt(2000)


@pytest.mark.parametrize(("rank", "expected"), [(0, [0, 1, 4, 5]), (1, [2, 3])])
def test_slots_are_positions_in_the_global_batch(rank, expected):
    config = OrderConfig(global_batch=6, num_lanes=3, window=2)
    order = Order(np.array([30]), config, seed=0)
    slots = order.slots_of(rank, 2)
    assert slots.tolist() == expected
    ids = order.rank_batch(0, 2, rank=rank, world_size=2)
    assert (order.global_batch(0, 2)[slots] == ids).all()
