"""The graph that cuts an image into tiles."""

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from pipeline.dali.graph import Feed, Graph, GraphOptions, decode_crop
from pipeline.pretext.jigsaw import JigsawConfig


def tile_graph(feed: Feed, config: JigsawConfig, options: GraphOptions) -> Graph:
    """Build the graph: decode the crop, resize, cut the tiles, show some images in gray.

    Args:
        feed: Gives for each batch the encoded images (uint8, 1-D), crops int32 (4,), anchors
            int32 (T, 2) and gray flags int32 () of `JigsawPlan`. Encoded images may be views of
            memory that outlives the batch; nothing is copied.
        config: Geometry.
        options: Device, threads, batch.

    Returns:
        Its output is uint8 (B, T, tile_px, tile_px, 3), tiles in reading order.
    """

    @pipeline_def(enable_conditionals=True, **options.pipeline_arguments())
    def graph() -> DataNode:
        encoded, crop, anchors, gray = fn.external_source(
            source=feed,
            num_outputs=4,
            no_copy=True,
            dtype=[types.UINT8, types.INT32, types.INT32, types.INT32],
            ndim=[1, 1, 2, 0],
        )
        pixels = decode_crop(encoded, crop, options, px=config.crop_px)
        shape = [config.tile_px, config.tile_px]
        tiles = fn.stack(
            *[
                fn.slice(pixels, start=anchors[t], shape=shape, axes=[0, 1])
                for t in range(config.num_tiles)
            ]
        )
        # Only flagged samples are converted, to the luma of ITU-R BT.601: a saturation operator on
        # all of them costs more than the decode.
        if gray != 0:
            luma = fn.color_space_conversion(tiles, image_type=types.RGB, output_type=types.GRAY)
            seen = fn.reshape(fn.cat(luma, luma, luma, axis=3), layout="FHWC")
        else:
            seen = fn.reshape(tiles, layout="FHWC")
        return seen

    return Graph(graph())
