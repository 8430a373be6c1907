"""The bench's graphs of DALI alone: its own reader, its own random numbers, its own resize."""

from collections.abc import Generator, Sequence

import numpy as np
import torch.utils.dlpack
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from pipeline.dali.graph import GraphOptions

_BUFFER = 500  # Encoded images that the reader shuffles.


def own_reader_tiles(
    tars: Sequence[str], options: GraphOptions, *, cells: Sequence[tuple[int, int]], tile_px: int
) -> Generator[Tensor, None, None]:
    """Yield tiles for ever, cut as a DALI user would write it.

    Args:
        tars: WebDataset shards.
        options: Device, threads, batch.
        cells: Top, left of each square cell of the crop, which the cells fill.
        tile_px: Side of the tile cut at random inside its cell.

    Returns:
        uint8 (B, T, tile_px, tile_px, 3) on the graph's device.
    """
    grid = round(len(cells) ** 0.5)
    cell_px = max(left for _, left in cells) // (grid - 1)

    @pipeline_def(**options.pipeline_arguments())
    def graph() -> DataNode:
        encoded = _read(tars)
        side = _short_side(encoded) * fn.random.uniform(range=[0.7, 1.0])
        pixels = fn.decoders.image_crop(
            encoded,
            crop_w=side,
            crop_h=side,
            crop_pos_x=fn.random.uniform(range=[0.0, 1.0]),
            crop_pos_y=fn.random.uniform(range=[0.0, 1.0]),
            device=options.decoder,
            output_type=types.RGB,
        )
        resized = _resize(pixels, grid * cell_px)
        slack = cell_px - tile_px
        tiles = []
        for top, left in cells:
            jitter = fn.random.uniform(range=[0, slack], shape=[2])
            start = fn.cast(types.Constant([float(top), float(left)]) + jitter, dtype=types.INT32)
            tiles.append(fn.slice(resized, start=start, shape=[tile_px, tile_px], axes=[0, 1]))
        return fn.stack(*tiles)

    return _run(graph())


def own_reader_whole(
    tars: Sequence[str], options: GraphOptions, *, px: int
) -> Generator[Tensor, None, None]:
    """Yield central squares for ever, uint8 (B, px, px, 3) on the graph's device."""

    @pipeline_def(**options.pipeline_arguments())
    def graph() -> DataNode:
        encoded = _read(tars)
        side = _short_side(encoded)
        pixels = fn.decoders.image_crop(
            encoded, crop_w=side, crop_h=side, device=options.decoder, output_type=types.RGB
        )
        return _resize(pixels, px)

    return _run(graph())


def decode_only(
    tars: Sequence[str], options: GraphOptions, *, hw_decoder_load: float = 0.65
) -> Generator[int, None, None]:
    """Decode whole images for ever and drop them; yields the size of each batch.

    Args:
        tars: WebDataset shards.
        options: Device, threads, batch.
        hw_decoder_load: Share of the images that the GPU's JPEG engine takes; of no account on the
            CPU.
    """

    @pipeline_def(**options.pipeline_arguments())
    def graph() -> DataNode:
        return fn.decoders.image(
            _read(tars),
            device=options.decoder,
            output_type=types.RGB,
            hw_decoder_load=hw_decoder_load,
        )

    pipe = graph()
    pipe.build()
    while True:
        (images,) = pipe.run()
        yield len(images)


def decode_batch(
    batches: Sequence[Sequence[NDArray[np.uint8]]], options: GraphOptions
) -> list[str]:
    """Decode batches one after the other; says "ok" or "error" for each."""
    feed = iter(batches)

    @pipeline_def(**{**options.pipeline_arguments(), "prefetch_queue_depth": 1})
    def graph() -> DataNode:
        encoded = fn.external_source(source=lambda: next(feed), dtype=types.UINT8, ndim=1)
        return fn.decoders.image(encoded, device=options.decoder, output_type=types.RGB)

    pipe, outcomes = graph(), []
    pipe.build()
    for _ in batches:
        try:
            pipe.run()
            outcomes.append("ok")
        except RuntimeError:
            outcomes.append("error")
    return outcomes


def _read(tars: Sequence[str]) -> DataNode:
    return fn.readers.webdataset(
        paths=list(tars), ext=["jpg"], random_shuffle=True, initial_fill=_BUFFER
    )


def _short_side(encoded: DataNode) -> DataNode:
    shape = fn.peek_image_shape(encoded, dtype=types.FLOAT)
    return fn.reductions.min(shape[0:2])


def _resize(pixels: DataNode, px: int) -> DataNode:
    return fn.resize(pixels, size=[px, px], interp_type=types.INTERP_LINEAR, antialias=True)


def _run(pipe: Pipeline) -> Generator[Tensor, None, None]:
    pipe.build()
    while True:
        (views,) = pipe.run()
        yield torch.utils.dlpack.from_dlpack(views.as_tensor())
