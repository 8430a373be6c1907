"""What the loader promises, it promises for every pretext."""

from contextlib import closing
from itertools import islice

import pytest
import torch

from pipeline.dali.graph import GraphOptions
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import MultitaskConfig
from pipeline.pretext.rotation import RotationConfig
from pipeline.shards.store import Store

JIGSAW = JigsawConfig(name="jigsaw", crop_px=48, tile_px=12, num_permutations=20)
CONTEXT = ContextConfig(
    name="context", patch_px=24, gap_px=12, jitter_px=2, min_pixels=3000, max_pixels=20_000
)
ROTATION = RotationConfig(name="rotation", crop_px=32)
PRETEXTS = {
    "context": CONTEXT,
    "rotation": ROTATION,
    "multitask": MultitaskConfig(
        name="multitask", tasks=(JIGSAW, CONTEXT, ROTATION), weights=(1, 1, 1)
    ),
}
ORDER = OrderConfig(global_batch=12, num_lanes=4, window=20)


@pytest.fixture(scope="module")
def store(shards):
    with closing(Store(shards)) as opened:
        yield opened


def loader_of(store, pretext, *, rank=0, world_size=1):
    order = Order(store.manifest.shard_counts, ORDER, seed=0)
    data = Mixture([DataSet(store, order)])
    return PretextLoader(data, pretext, seed=0, rank_info=RankInfo(rank, world_size))


def take(loader, num):
    options = GraphOptions(max_batch=loader.max_batch, num_threads=2, device_id=None, prefetch=2)
    with closing(loader.batches(options)) as batches:
        return list(islice(batches, num))


@pytest.mark.parametrize("name", PRETEXTS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_sees_the_same_views(store, name, world_size):
    pretext = PRETEXTS[name]
    alone = take(loader_of(store, pretext), 2)
    ranks = [
        take(loader_of(store, pretext, rank=rank, world_size=world_size), 2)
        for rank in range(world_size)
    ]
    for step, whole in enumerate(alone):
        row_of = {sample: row for row, sample in enumerate(whole.sample_ids.tolist())}
        shares = [rank[step] for rank in ranks]
        assert sum(len(share.sample_ids) for share in shares) == 12
        for share in shares:
            rows = [row_of[sample] for sample in share.sample_ids.tolist()]
            assert torch.equal(share.views, whole.views[rows])
            assert (share.labels == whole.labels[rows]).all()


@pytest.mark.parametrize("name", PRETEXTS)
def test_a_loader_that_goes_on_shows_what_would_have_come(store, name):
    whole = take(loader_of(store, PRETEXTS[name]), 4)
    first = loader_of(store, PRETEXTS[name])
    take(first, 2)
    second = loader_of(store, PRETEXTS[name])
    second.restore(first.state())
    for expected, batch in zip(whole[2:], take(second, 2), strict=True):
        assert (batch.sample_ids == expected.sample_ids).all()
        assert torch.equal(batch.views, expected.views)
        assert (batch.labels == expected.labels).all()
