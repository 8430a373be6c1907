"""DALI with its own reader, crop and resize: no Python between the tar and the tiles."""

from functools import partial

from pipeline.bench.ours import graph_options
from pipeline.bench.work import CELLS, TILE_PX, WHOLE_PX, Batches, LoaderWork, Variants
from pipeline.dali.peer import own_reader_tiles, own_reader_whole


def variants(work: LoaderWork) -> Variants:
    """Offer a thread for each core, and one more, which fills in where a batch ends unevenly."""
    return {f"{n} threads": partial(_open, work, n) for n in (work.cores, work.cores + 1)}


def _open(work: LoaderWork, threads: int) -> Batches:
    options = graph_options(work.batch, threads)
    if work.view == "whole":
        return own_reader_whole(work.tars(), options, px=WHOLE_PX)
    cells = [(int(top), int(left)) for top, left in CELLS]
    return own_reader_tiles(work.tars(), options, cells=cells, tile_px=TILE_PX)
