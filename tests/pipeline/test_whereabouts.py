import dataclasses

import numpy as np
import pytest
from explained import JIGSAW, subject_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ConfigError
from pipeline.explain.locate import find_sample, place_of, sample_id_of
from pipeline.explain.pictures.step import CONTACT_SHEET, save_pictures
from pipeline.explain.step import explain_sample, explain_step
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.shards.store import Store


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    lanes=st.integers(1, 5),
    share=st.integers(1, 4),
    window=st.integers(1, 30),
    epoch=st.integers(0, 3),
)
def test_the_place_of_a_sample_is_the_inverse_of_the_order(counts, lanes, share, window, epoch):
    config = OrderConfig(global_batch=lanes * share, num_lanes=lanes, window=window)
    order = Order(np.array([*counts, lanes * share]), config, seed=9)
    steps = range(order.steps_per_epoch)
    batches = [order.global_batch(epoch, step).tolist() for step in steps]
    expected = {i: (step, slot) for step in steps for slot, i in enumerate(batches[step])}
    got = {i: place_of(order, epoch, i) for i in range(order.num_samples)}
    assert {i: place for i, place in got.items() if place} == expected
    assert sum(place is None for place in got.values()) == order.remainder


def test_a_sample_among_a_million_is_found():
    config = OrderConfig(global_batch=512, num_lanes=64, window=4096)
    order = Order(np.full(1000, 1000), config, seed=1)
    sample_id = int(order.global_batch(5, 1900)[500])
    assert place_of(order, 5, sample_id) == (1900, 500)


def test_a_sample_of_the_remainder_comes_at_no_step(shards):
    subject = subject_of(shards)
    ids = {int(i) for step in range(16) for i in subject.data.sets[0].order.global_batch(0, step)}
    (first, *_) = set(range(198)) - ids
    found = find_sample(subject.data, 0, first)
    assert (found.appearances, found.left_over) == ((), True)
    assert explain_sample(subject, found, 0) == []


def test_ids_and_keys_name_samples(shards):
    data = subject_of(shards).data
    keys = Store(shards).keys()
    assert sample_id_of(data, "5") == 5
    assert sample_id_of(data, keys[5]) == sample_id_of(data, f"key:{keys[5]}") == 5
    for unknown in ("198", "-1", "05", "key:5", "", "9" * 5000):
        with pytest.raises(ConfigError, match=r"is neither an id in 0..197 nor the key"):
            sample_id_of(data, unknown)


def test_a_key_of_two_samples_is_refused(shards):
    data = subject_of(shards, shards, order=OrderConfig(global_batch=4, num_lanes=2, window=8)).data
    key = Store(shards).keys()[5]
    with pytest.raises(ConfigError, match=r"is the key of 2 samples; .* ids: 5, 203\."):
        sample_id_of(data, key)


def test_a_key_that_is_a_path_names_one_file(shards, tmp_path):
    explained = explain_step(subject_of(shards), 0, 0, RankInfo(0, 6))
    first, second = explained.samples
    samples = (dataclasses.replace(first, key="../a b/c"), second)
    save_pictures(tmp_path, dataclasses.replace(explained, samples=samples), JIGSAW, "Data set")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"00-.._a_b_c.png", f"01-{second.key}.png", CONTACT_SHEET}
