"""Tiles of other images in a puzzle: which ones is drawn for the image, not for the batch."""

from contextlib import closing

import numpy as np
import pytest

from pipeline.config import ConfigError, parse
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig, draw_foreign
from pipeline.shards.store import Store

CONFIG = JigsawConfig(
    name="jigsaw",
    crop_px=48,
    tile_px=12,
    num_permutations=20,
    puzzles_per_image=3,
    max_foreign_tiles=2,
)
ORDER = OrderConfig(global_batch=12, num_lanes=4, window=20)


@pytest.fixture(scope="module")
def store(shards):
    with closing(Store(shards)) as opened:
        yield opened


def mixture_of(store, order=ORDER):
    return Mixture([DataSet(store, Order(store.manifest.shard_counts, order, seed=0))])


def parts(drawn):
    return drawn.reshape(len(drawn), 2, 3, 2).swapaxes(0, 1)


def test_a_mate_is_another_image_of_the_same_lane_for_every_number_of_ranks(store):
    data = mixture_of(store)
    mate_of = {}
    for world_size in (1, 2, 3, 4):
        for rank in range(world_size):
            share = data.share(0, 5, RankInfo(rank, world_size))
            mates = data.mates(share)
            for row, (sample, ahead) in enumerate(zip(share.sample_ids, mates, strict=True)):
                mate = share.sample_ids[row + ahead]
                assert mate != sample
                assert mate_of.setdefault(sample, mate) == mate
    assert len(mate_of) == 12
    assert set(mate_of.values()) == set(mate_of)  # Every image gives to exactly one.


def test_none_to_all_of_the_tiles_are_exchanged_evenly_and_at_different_places():
    draws = Draws(0, 0, np.arange(3000))
    places, donors = parts(draw_foreign(CONFIG, draws, np.full(3000, 1)))
    counts = np.bincount((places >= 0).sum(axis=2).ravel(), minlength=3)
    assert np.abs(counts / counts.mean() - 1).max() < 0.06
    both = places[(places >= 0).all(axis=2)]
    assert (both[:, 0] != both[:, 1]).all()
    spread = np.bincount(places[places >= 0], minlength=9)
    assert np.abs(spread / spread.mean() - 1).max() < 0.1
    assert (donors // 9 == 1).all()
    assert set((donors % 9).ravel()) == set(range(9))


def test_a_batch_of_one_lane_asks_what_the_global_batch_asks(store):
    loaders = [
        PretextLoader(mixture_of(store), CONFIG, seed=0, rank_info=rank_info)
        for rank_info in (RankInfo(0, 1), RankInfo(1, 4))
    ]
    whole, lane = (loader._plan(0, 3) for loader in loaders)
    rows = [whole.sample_ids.tolist().index(sample) for sample in lane.sample_ids]
    assert (lane.labels == whole.labels[rows]).all()
    assert lane.labels.shape == (3, CONFIG.num_answers)


def test_a_lane_with_a_single_sample_has_no_other_image_to_give(store):
    data = mixture_of(store, OrderConfig(global_batch=4, num_lanes=4, window=20))
    with pytest.raises(ConfigError) as caught:
        PretextLoader(data, CONFIG, seed=0, rank_info=RankInfo(0, 1))
    assert str(caught.value) == (
        "max_foreign_tiles (=2) needs two samples of a lane in a step, but global_batch / num_lanes"
        " is 1; raise global_batch or lower num_lanes."
    )


def test_more_foreign_tiles_than_leave_a_puzzle_are_refused():
    with pytest.raises(ConfigError) as caught:
        parse(JigsawConfig, {"name": "jigsaw", "max_foreign_tiles": 8}, "jigsaw")
    assert str(caught.value) == (
        "jigsaw: max_foreign_tiles (=8) must leave 2 of the 9 tiles of a puzzle; lower it."
    )
