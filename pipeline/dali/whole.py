"""The graphs that show an image whole, or crops of it, to a network that asks nothing of it."""

from dataclasses import replace

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from pipeline.dali.graph import Arrays, Feed, Graph, GraphOptions
from pipeline.dali.tiles import compiled_tiles, native_tiles
from pipeline.pretext.plan import Tiles, plain_plan


def fitted_graph(feed: Feed, options: GraphOptions) -> Graph:
    """Build the graph: decode, resize every image to its own size, mirror it, pad the batch.

    Args:
        feed: Gives for each batch the encoded images (uint8, 1-D), sizes float32 (B, 2) (height,
            width in px after the resize), and int32 (B, 1), 1 where left and right are exchanged.
        options: Device, threads, batch.

    Returns:
        Its output is uint8 (B, H, W, 3), H and W the largest of the batch; images lie at the top
        left, and what is right of them and below is 0.
    """

    @pipeline_def(**options.pipeline_arguments())
    def graph() -> DataNode:
        encoded, size, mirrored = fn.external_source(
            source=feed,
            num_outputs=3,
            no_copy=True,
            dtype=[types.UINT8, types.FLOAT, types.INT32],
            ndim=[1, 1, 1],
        )
        # Boxes and masks belong to the pixels as stored, whatever EXIF says.
        pixels = fn.decoders.image(
            encoded, device=options.decoder, output_type=types.RGB, adjust_orientation=False
        )
        resized = fn.resize(pixels, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.pad(fn.flip(resized, horizontal=mirrored[0]), axes=[0, 1], fill_value=0)

    return Graph(graph())


# Shapes: B batch, V views of an image.


def whole_graph(feed: Feed, options: GraphOptions, *, px: int) -> Graph:
    """Build the graph: decode a crop and resize it to a square of side `px`.

    Args:
        feed: Gives for each batch the encoded images (uint8, 1-D), crops int32 (B, 4) (top, left,
            height, width).
        options: Device, threads, batch.
        px: Side of the result.

    Returns:
        Its output is uint8 (B, px, px, 3).
    """

    def with_one_tile() -> tuple[Arrays, ...]:  # All of the crop.
        encoded, crops = feed()
        anchors = np.zeros((len(encoded), 1, 2), np.int32)
        plan = plain_plan(crops, anchors, np.zeros((len(encoded), 0), np.int64), px)
        return encoded, *plan.arrays()

    cut = compiled_tiles if options.device_id is None else native_tiles

    @pipeline_def(**options.pipeline_arguments())
    def graph() -> DataNode:
        (tiles,) = cut(with_one_tile, [Tiles(px, 1, px)], options)
        return fn.squeeze(tiles, axes=[0])

    return Graph(graph())


def crop_graph(feed: Feed, options: GraphOptions, *, px: int, num_views: int) -> Graph:
    """Build the graph: decode once, then resize each crop to a square of side `px`.

    Args:
        feed: Gives for each batch the encoded images (uint8, 1-D), crops int32 (B, V, 4) (top,
            left, height, width), and int32 (B, V), 1 where left and right are exchanged.
        options: Device, threads, batch.
        px: Side of the views.
        num_views: Of an image, V.

    Returns:
        Its output is uint8 (B, V, px, px, 3).
    """

    def with_a_tile_each() -> tuple[Arrays, ...]:  # All of the crop.
        encoded, crops, mirrored = feed()
        anchors = np.zeros((len(encoded), 1, 2), np.int32)
        asked = np.zeros((len(encoded), 0), np.int64)
        arrays: list[Arrays] = []
        for view in range(num_views):
            plan = plain_plan(crops[:, view], anchors, asked, px)
            arrays += replace(plan, mirrored=mirrored[:, view]).arrays()
        return encoded, *arrays

    cut = compiled_tiles if options.device_id is None else native_tiles
    tasks = [Tiles(px, 1, px, mirrored=True)] * num_views

    @pipeline_def(**options.pipeline_arguments())
    def graph() -> DataNode:
        tiles = cut(with_a_tile_each, tasks, options)
        return tiles[0] if num_views == 1 else fn.cat(*tiles, axis=0)

    return Graph(graph())
