"""Tessera's own loader as a contender; the one place that knows how it is opened."""

from functools import partial
from pathlib import Path

import numpy as np

from pipeline.bench.work import (
    CROP_PX,
    GRID,
    MIN_SCALE,
    TILE_PX,
    WHOLE_PX,
    Batches,
    LoaderWork,
    Variants,
)
from pipeline.dali.graph import GraphOptions
from pipeline.loading.crops import whole_batches
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.shards.store import Store

SEED = 0
PRETEXT = JigsawConfig(
    name="jigsaw",
    grid=GRID,
    crop_px=CROP_PX,
    tile_px=TILE_PX,
    min_scale=MIN_SCALE,
    gray_probability=0,
    channel_shift_px=0,
)
_LANES = 8
_WINDOW = 1024
_WHOLE_RUN = 1_000_000  # Images of one evaluation; then the next one begins.


def variants(work: LoaderWork) -> Variants:
    """Offer a thread for each core, and one more, which fills in where a batch ends unevenly."""
    return {f"{n} threads": partial(_open, work, n) for n in (work.cores, work.cores + 1)}


def make_loader(shards: Path, batch: int) -> PretextLoader:
    """Open shards for one rank of one."""
    store = Store(shards)
    lanes = _LANES if batch % _LANES == 0 else 1
    config = OrderConfig(global_batch=batch, num_lanes=lanes, window=_WINDOW)
    order = Order(store.manifest.shard_counts, config, seed=SEED)
    data = Mixture([DataSet(store, order)])
    return PretextLoader(data, PRETEXT, seed=SEED, rank_info=RankInfo(0, 1))


def graph_options(batch: int, threads: int, device_id: int | None = None) -> GraphOptions:
    """Return the settings that runs use."""
    return GraphOptions(max_batch=batch, num_threads=threads, device_id=device_id, prefetch=2)


def _open(work: LoaderWork, threads: int) -> Batches:
    options = graph_options(work.batch, threads)
    if work.view == "tiles":
        for batch in make_loader(work.shards, work.batch).batches(options):
            yield batch.views
    store = Store(work.shards)
    once = np.random.default_rng(SEED).permutation(store.manifest.num_samples)
    ids = np.resize(once, _WHOLE_RUN // work.batch * work.batch)
    while True:
        for batch in whole_batches(store, ids, options, px=WHOLE_PX):
            yield batch.views
