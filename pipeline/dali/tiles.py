"""The graph that cuts images into tiles, for every pretext and for evaluation."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from pipeline.dali.graph import Arrays, Feed, Graph, GraphOptions
from pipeline.dali.resample import tile_operator, windows
from pipeline.pretext.plan import Tiles, noise_field, plain_plan

# The columns of what a tile is cut by, see `TilePlan.arrays`.
_ANCHOR, _SHIFTS, _SIDE, _NOISE = slice(0, 2), 2, 8, slice(9, 11)
_INPUTS = ((types.INT32, 1), (types.INT32, 2), (types.FLOAT, 3))
"""Type and dimensions of each task's arrays."""


def tile_graph(feed: Feed, tasks: Sequence[Tiles], options: GraphOptions) -> Graph:
    """Build the graph: decode once, then for each task resize its crop, cut its tiles, tint them.

    The GPU resizes all of a crop and slices it. The CPU decodes only the rectangle that the tiles
    need and resamples only their pixels: the same within 1 of 255, at a fifth of the cost.

    Args:
        feed: Gives for each batch the encoded images (uint8, 1-D), and for each task the arrays of
            `TilePlan`. Encoded images may be views of memory that outlives the batch; nothing is
            copied.
        tasks: Geometry of each task.
        options: Device, threads, batch.

    Returns:
        Its output is uint8 (B, T, tile_px, tile_px, 3), tiles in reading order; of several tasks,
        (B, N), the tiles of all in a row.
    """
    cut = compiled_tiles if options.device_id is None else native_tiles

    @pipeline_def(**options.pipeline_arguments())
    def graph() -> DataNode:
        tiles = cut(feed, tasks, options)
        if len(tiles) == 1:
            return tiles[0]
        return fn.cat(*(fn.reshape(one, shape=[-1], layout="") for one in tiles))

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
        # Files come upright, with boxes and masks to match; a tag that is left is not applied.
        pixels = fn.decoders.image(
            encoded, device=options.decoder, output_type=types.RGB, adjust_orientation=False
        )
        resized = fn.resize(pixels, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.pad(fn.flip(resized, horizontal=mirrored[0]), axes=[0, 1], fill_value=0)

    return Graph(graph())


def compiled_tiles(feed: Feed, tasks: Sequence[Tiles], options: GraphOptions) -> list[DataNode]:
    """Cut tiles by the compiled kernel, on the CPU."""

    def windowed() -> tuple[Arrays, ...]:
        encoded, *arrays = feed()
        rectangles, geometries = _windows(arrays, tasks)
        fed = [
            array
            for geometry, (_, cuts, tints) in zip(geometries, _by_task(arrays), strict=True)
            for array in (geometry, cuts, tints)
        ]
        return encoded, rectangles, *fed

    encoded, rectangle, *nodes = _source(windowed, _INPUTS * len(tasks))
    pixels = _decode(encoded, rectangle, options)
    return [
        fn.reshape(tile_operator(task.num_tiles, task.tile_px)(pixels, *three), layout="FHWC")
        for task, three in zip(tasks, _by_task(nodes), strict=True)
    ]


def native_tiles(feed: Feed, tasks: Sequence[Tiles], options: GraphOptions) -> list[DataNode]:
    """Cut tiles by DALI's own operators, on either device."""
    # DALI warns of inputs that nothing uses.
    used = [use for task in tasks for use in (len(tasks) > 1 or task.mirrored, True, task.tinted)]

    def framed() -> tuple[Arrays, ...]:
        encoded, *arrays = feed()
        union = _union(np.stack([frames[:, :4] for frames, _, _ in _by_task(arrays)]))
        fed = []
        for frames, cuts, tints in _by_task(arrays):
            inside = np.concatenate([frames[:, :2] - union[:, :2], frames[:, 2:]], axis=1)
            fed += [inside, cuts, tints]
        return encoded, union, *itertools.compress(fed, used)

    encoded, rectangle, *given = _source(framed, itertools.compress(_INPUTS * len(tasks), used))
    nodes = iter(given)
    every = [next(nodes) if use else None for use in used]
    pixels = _decode(encoded, rectangle, options)
    return [
        _native_task(pixels, task, three, alone=len(tasks) == 1)
        for task, three in zip(tasks, _by_task(every), strict=True)
    ]


def _native_task(pixels: DataNode, task: Tiles, nodes: Any, *, alone: bool) -> DataNode:
    frame, cuts, tints = nodes
    crop = pixels
    if not alone:
        crop = fn.slice(pixels, start=frame[0:2], shape=frame[2:4], axes=[0, 1])
    side = [task.crop_px, task.crop_px]
    resized = fn.resize(crop, size=side, interp_type=types.INTERP_LINEAR, antialias=True)
    pieces = [_native_tile(resized, task, cuts[t]) for t in range(task.num_tiles)]
    tiles = fn.reshape(fn.stack(*pieces), layout="FHWC")
    if task.tinted:
        tiles = _native_tint(tiles, task, cuts, tints)
    return fn.flip(tiles, horizontal=frame[4]) if task.mirrored else tiles


def _native_tile(resized: DataNode, task: Tiles, cut: DataNode) -> DataNode:
    shape = [task.tile_px, task.tile_px]
    if task.reach:
        channels = []
        for c in range(3):
            start = cut[_ANCHOR] + cut[_SHIFTS + 2 * c : _SHIFTS + 2 * c + 2]
            piece = fn.slice(resized, start=start, shape=shape, axes=[0, 1])
            channels.append(piece[:, :, c : c + 1])
        tile = fn.reshape(fn.cat(*channels, axis=2), layout="HWC")
    else:
        tile = fn.slice(resized, start=cut[_ANCHOR], shape=shape, axes=[0, 1])
    if task.resampled:
        linear = {"interp_type": types.INTERP_LINEAR, "antialias": True}
        side = fn.cast(cut[_SIDE], dtype=types.FLOAT)
        small = fn.resize(tile, resize_x=side, resize_y=side, **linear)
        tile = fn.resize(small, size=shape, **linear)
    return tile


def _native_tint(tiles: DataNode, task: Tiles, cuts: DataNode, tints: DataNode) -> DataNode:
    def per_tile(channel: int, column: int) -> DataNode:
        return fn.reshape(tints[:, channel, column], shape=[task.num_tiles, 1, 1, 1], layout="")

    plain = fn.reshape(tiles, layout="")
    channels = [fn.cast(plain[:, :, :, c : c + 1], dtype=types.FLOAT) for c in range(3)]
    noise = _native_noise(task, cuts, tiles.device)
    shown = []
    for c in range(3):
        value = sum((per_tile(c, k) * channels[k] for k in range(3)), per_tile(c, 3))
        shown.append(value + per_tile(c, 4) * noise[:, :, :, c : c + 1])
    # Casts round to the nearest and stay inside 0..255.
    return fn.reshape(fn.cast(fn.cat(*shown, axis=3), dtype=types.UINT8), layout="FHWC")


def _native_noise(task: Tiles, cuts: DataNode, device: str) -> DataNode:
    field = types.Constant(noise_field(task.tile_px), device=device)
    shape = [task.tile_px, task.tile_px]
    return fn.stack(
        *(
            fn.slice(field, start=cuts[t][_NOISE], shape=shape, axes=[0, 1])
            for t in range(task.num_tiles)
        )
    )


def _windows(
    arrays: Sequence[NDArray[Any]], tasks: Sequence[Tiles]
) -> tuple[NDArray[np.int32], list[NDArray[np.int32]]]:
    """Find the rectangle that the tiles of all tasks need, and what the kernel must know of each.

    Returns:
        int32 (B, 4), and for each task int32 (B, 7).
    """
    found = [
        windows(
            frames[:, :4],
            cuts[:, :, _ANCHOR],
            px=task.crop_px,
            tile_px=task.tile_px + task.reach,
        )
        for task, (frames, cuts, _) in zip(tasks, _by_task(arrays), strict=True)
    ]
    union = _union(np.stack([rectangles for rectangles, _ in found]))
    geometries = []
    for task, (frames, _, _), (rectangles, geometry) in zip(
        tasks, _by_task(arrays), found, strict=True
    ):
        geometry[:, :2] += union[:, :2] - rectangles[:, :2]
        reach = np.full((len(frames), 1), task.reach, np.int32)
        geometries.append(np.concatenate([geometry, reach, frames[:, 4:]], axis=1))
    return union, geometries


def _union(rectangles: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the smallest rectangle around the first axis of (K, B, 4): (B, 4)."""
    starts = rectangles[..., :2].min(axis=0)
    ends = (rectangles[..., :2] + rectangles[..., 2:]).max(axis=0)
    return np.concatenate([starts, ends - starts], axis=1)


def _by_task(arrays: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (arrays[k : k + len(_INPUTS)] for k in range(0, len(arrays), len(_INPUTS)))


def _source(feed: Feed, inputs: Iterable[tuple[types.DALIDataType, int]]) -> list[DataNode]:
    dtypes, ndims = zip((types.UINT8, 1), (types.INT32, 1), *inputs, strict=True)
    nodes: list[DataNode] = fn.external_source(
        source=feed, num_outputs=len(dtypes), no_copy=True, dtype=list(dtypes), ndim=list(ndims)
    )
    return nodes


def _decode(encoded: DataNode, rectangle: DataNode, options: GraphOptions) -> DataNode:
    # The gate applied EXIF orientation; in third-party shards the tag is ignored.
    return fn.decoders.image_slice(
        encoded,
        start=rectangle[0:2],
        shape=rectangle[2:4],
        axes=[0, 1],
        device=options.decoder,
        output_type=types.RGB,
        adjust_orientation=False,
    )
