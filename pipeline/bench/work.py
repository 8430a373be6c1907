"""The work of the loader's contests, and our own loader doing it.

What only ours needs is imported in its functions: a peer's process is not to hold DALI, with which
webdataset's workers cut 30 % fewer images per CPU second.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.bench.worker import Answer, Batches

if TYPE_CHECKING:
    from pipeline.dali.graph import GraphOptions
    from pipeline.loading.loader import PretextLoader

View = Literal["tiles", "whole"]
"""Nine jittered tiles of a random crop (pretraining), or the central square (transfer)."""

GRID = 3
CROP_PX = 255
TILE_PX = 64
MIN_SCALE = 0.7
WHOLE_PX = 224
CELL_PX = CROP_PX // GRID
CELLS = np.stack(np.divmod(np.arange(GRID * GRID), GRID), axis=1) * CELL_PX
"""int64 (9, 2): top, left of every cell in the resized crop."""

SEED = 0
_LANES = 8
_WINDOW = 1024
_WHOLE_RUN = 1_000_000  # Images of one evaluation; then the next one begins.
_FRESH_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderWork:
    """One unit of measurement: an image read, decoded, cropped, resized and cut."""

    shards: Path
    """Folder of shards with its manifest."""
    scratch: Path
    """Folder of the run, where a contender keeps the form it converts the images to."""
    view: View
    batch: int
    cores: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's view, channels last."""
        if self.view == "tiles":
            return (GRID * GRID, TILE_PX, TILE_PX, 3)
        return (WHOLE_PX, WHOLE_PX, 3)

    def tars(self) -> list[str]:
        """Return the shards in order."""
        return [str(path) for path in sorted(self.shards.glob("*.tar"))]


def check_batch(batch: NDArray[Any], work: LoaderWork) -> float:
    """Return the mean of a batch after checking its shape, type and contrast.

    Args:
        batch: What a contender gave, on the CPU, channels last or channels first.
        work: What it should be.

    Raises:
        ValueError: It is not a batch of images of the agreed shape.
    """
    *lead, height, width, channels = work.shape
    first = (work.batch, *lead, channels, height, width)
    last = (work.batch, *work.shape)
    if batch.shape not in (first, last) or batch.dtype != np.uint8:
        raise ValueError(f"batch is {batch.dtype} {batch.shape}, must be uint8 {last} or {first}.")
    flat = batch.reshape(work.batch, -1).astype(np.float32)
    if np.median(flat.std(axis=1)) < 1:
        raise ValueError("batch holds images of one colour; a contender must decode them.")
    return float(flat.mean())


def make_loader(shards: Path, batch: int) -> "PretextLoader":
    """Open shards for one rank of one."""
    from pipeline.loading.loader import PretextLoader
    from pipeline.loading.mixture import DataSet, Mixture, RankInfo
    from pipeline.loading.order import Order, OrderConfig
    from pipeline.pretext.jigsaw import JigsawConfig
    from pipeline.shards.store import Store

    pretext = JigsawConfig(
        name="jigsaw",
        grid=GRID,
        crop_px=CROP_PX,
        tile_px=TILE_PX,
        min_scale=MIN_SCALE,
        gray_probability=0,
        channel_shift_px=0,
    )
    store = Store(shards)
    lanes = _LANES if batch % _LANES == 0 else 1
    config = OrderConfig(global_batch=batch, num_lanes=lanes, window=_WINDOW)
    order = Order(store.manifest.shard_counts, config, seed=SEED)
    data = Mixture([DataSet(store, order)])
    return PretextLoader(data, pretext, seed=SEED, rank_info=RankInfo(0, 1))


def graph_options(batch: int, threads: int, device_id: int | None = None) -> "GraphOptions":
    """Return the settings that runs use."""
    from pipeline.dali.graph import GraphOptions

    return GraphOptions(max_batch=batch, num_threads=threads, device_id=device_id, prefetch=2)


def open_ours(work: LoaderWork, threads: int) -> Batches:
    """Yield the batches of our own loader, uint8, channels last."""
    from pipeline.loading.crops import whole_batches
    from pipeline.shards.store import Store

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


@contextmanager
def fresh_start(shards: str, threads: int, started: float) -> Iterator[Answer]:
    """Time the first batch of this process, as a worker.

    Args:
        shards: Folder of shards.
        threads: Threads of the graph.
        started: The parent's `time.monotonic` before it started this process: it is the machine's.
    """
    import_module("pipeline.loading.loader")
    imports = time.monotonic() - started

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        begin = time.monotonic()
        options = graph_options(_FRESH_BATCH, threads)
        next(make_loader(Path(shards), _FRESH_BATCH).batches(options))
        own = time.monotonic() - begin
        return {"seconds": imports + own, "imports": imports, "own": own}

    yield answer
