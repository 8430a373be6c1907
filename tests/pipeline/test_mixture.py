import io
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import ConfigError
from pipeline.dali.graph import GraphOptions
from pipeline.ingest.config import ShardConfig
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo, orders
from pipeline.loading.order import Order, OrderConfig
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig, plan_jigsaw
from pipeline.shards.store import Store

JIGSAW = JigsawConfig(name="jigsaw", crop_px=33, tile_px=9, num_permutations=20)


class Manifest:
    """As much of a manifest as the arithmetic asks for."""

    def __init__(self, name):
        self.fingerprint = name


class Numbers:
    """A store of nothing but its manifest's name."""

    def __init__(self, name):
        self.manifest = Manifest(name)

    def keep_open(self, num):
        assert num > 0


def mixture_of(sizes, weights, config, seed=0):
    made = orders([np.array(size) for size in sizes], weights, config, seed=seed)
    return Mixture([DataSet(Numbers(str(n)), order) for n, order in enumerate(made)])


@st.composite
def mixtures(draw):
    lanes = draw(st.integers(1, 5))
    weights = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    share = draw(st.integers(1, 2))
    global_batch = lanes * sum(weights) * share
    sizes = [
        [*draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)), lanes * weight * share]
        for weight in weights
    ]
    config = OrderConfig(global_batch=global_batch, num_lanes=lanes, window=draw(st.integers(1, 9)))
    return mixture_of(sizes, weights, config, seed=draw(st.integers(0, 9))), weights, config


@settings(max_examples=60, deadline=None)
@given(made=mixtures())
def test_each_set_gives_its_exact_share_and_passes_through_its_own_epochs(made):
    mixture, weights, config = made
    starts = np.cumsum([0, *(one.order.num_samples for one in mixture.sets)])
    seen = [{} for _ in weights]
    for t in range(2 * mixture.steps_per_epoch):
        share = mixture.share(*divmod(t, mixture.steps_per_epoch), RankInfo(0, 1))
        owners = np.searchsorted(starts, share.sample_ids, side="right") - 1
        assert len(owners) == config.global_batch
        for number, weight in enumerate(weights):
            mine = share.sample_ids[owners == number]
            assert len(mine) * sum(weights) == config.global_batch * weight
            epochs = set(share.epochs[owners == number].tolist())
            assert epochs == {t // mixture.sets[number].order.steps_per_epoch}
            seen[number].setdefault(epochs.pop(), []).extend(mine.tolist())
    for by_epoch in seen:  # Exactly once in each of the set's own epochs.
        assert all(len(ids) == len(set(ids)) for ids in by_epoch.values())


@settings(max_examples=40, deadline=None)
@given(made=mixtures(), data=st.data())
def test_any_number_of_ranks_shares_the_same_global_batches(made, data):
    mixture, _, config = made
    world_size = data.draw(st.integers(1, config.num_lanes))
    step = data.draw(st.integers(0, mixture.steps_per_epoch - 1))
    places = [RankInfo(rank, world_size) for rank in range(world_size)]
    parts = [mixture.share(3, step, place) for place in places]
    for place, part in zip(places, parts, strict=True):
        assert len(part.sample_ids) == mixture.batch_size(place)
    whole = mixture.share(3, step, RankInfo(0, 1))
    together = np.concatenate([part.sample_ids for part in parts])
    assert sorted(together.tolist()) == sorted(whole.sample_ids.tolist())
    # The same sample is replaced by the same spare, whichever rank owns it.
    spares = {int(i): mixture.spare(whole, n, 0) for n, i in enumerate(whole.sample_ids)}
    for part in parts:
        for n, i in enumerate(part.sample_ids):
            assert mixture.spare(part, n, 0) == spares[int(i)]


def test_a_mixture_of_one_is_the_set_alone():
    config = OrderConfig(global_batch=6, num_lanes=3, window=5)
    mixture = mixture_of([[20, 30]], [7], config, seed=4)
    order = Order(np.array([20, 30]), config, seed=4)
    assert mixture.fingerprint == "0"
    for step in range(order.steps_per_epoch):
        assert (
            mixture.share(2, step, RankInfo(0, 1)).sample_ids == order.global_batch(2, step)
        ).all()


def test_a_share_that_is_no_whole_number_for_every_lane_is_refused():
    config = OrderConfig(global_batch=64, num_lanes=8, window=5)
    with pytest.raises(ConfigError) as caught:
        mixture_of([[100], [100]], [2, 1], config)
    assert str(caught.value) == (
        "weight (=2) of 3 gives set 0 a share of global_batch * weight / sum = 42.6667 samples, "
        "which must be a multiple of num_lanes (=8); change weights or global_batch."
    )


def test_other_shares_are_another_mixture():
    config = OrderConfig(global_batch=24, num_lanes=2, window=5)
    names = {
        mixture_of([[100], [100]], w, config).fingerprint for w in ([1, 1], [1, 2], [2, 1], [3, 1])
    }
    assert len(names) == 4


def test_views_and_labels_of_two_sets_are_those_of_their_own_plans(
    shards, tmp_path, tmp_path_factory, make_shards
):
    other = tmp_path_factory.mktemp("other")
    for number in range(40):
        (tmp_path / f"{number}.jpg").write_bytes(_stripes(number))
    make_shards(tmp_path, other, ShardConfig(samples_per_shard=16))
    stores = [Store(shards), Store(other)]
    config = OrderConfig(global_batch=12, num_lanes=2, window=8)
    counts = [store.manifest.shard_counts for store in stores]
    made = orders(counts, [2, 1], config, seed=0)
    data = Mixture([DataSet(s, o) for s, o in zip(stores, made, strict=True)])
    loader = PretextLoader(data, JIGSAW, seed=0, rank_info=RankInfo(0, 1))
    options = GraphOptions(max_batch=12, num_threads=1, device_id=None, prefetch=2)
    with closing(loader.batches(options)) as batches:
        taken = list(islice(batches, 25))  # The small set is in its third epoch then.
    for t, batch in enumerate(taken):
        first, second = batch.sample_ids[:8], batch.sample_ids[8:] - 198
        assert (first < 198).all()
        assert ((second >= 0) & (second < 40)).all()
        samples = stores[1].read(second)
        draws = Draws(0, t // 10, batch.sample_ids[8:])
        plan = plan_jigsaw(JIGSAW, samples.heights, samples.widths, draws)
        assert (batch.labels[8:] == plan.labels).all()
    assert loader.state()["step"] == 25 - loader.steps_per_epoch


def _stripes(number):
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()
