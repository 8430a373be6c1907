"""The graph that cuts an image into tiles."""

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from pipeline.dali.graph import Cut, Extra, Feed, Graph, GraphOptions, cut_crops
from pipeline.pretext.jigsaw import JigsawConfig


def tile_graph(feed: Feed, config: JigsawConfig, options: GraphOptions) -> Graph:
    """Build the graph: decode the crop, resize, cut the tiles, show some images in gray.

    Args:
        feed: Gives for each batch the encoded images (uint8, 1-D), crops int32 (B, 4), anchors
            int32 (B, T, 2) and gray flags int32 (B,) of `JigsawPlan`. Encoded images may be views
            of memory that outlives the batch; nothing is copied.
        config: Geometry.
        options: Device, threads, batch.

    Returns:
        Its output is uint8 (B, T, tile_px, tile_px, 3), tiles in reading order.
    """
    cut = Cut(config.crop_px, config.num_tiles, config.tile_px)

    @pipeline_def(enable_conditionals=True, **options.pipeline_arguments())
    def graph() -> DataNode:
        tiles, (gray,) = cut_crops(feed, cut, options, [Extra(types.INT32, 0)])
        # Only flagged samples are converted, to the luma of ITU-R BT.601: a saturation operator on
        # all of them costs more than the decode.
        if gray != 0:
            luma = fn.color_space_conversion(tiles, image_type=types.RGB, output_type=types.GRAY)
            seen = fn.reshape(fn.cat(luma, luma, luma, axis=3), layout="FHWC")
        else:
            seen = tiles
        return seen

    return Graph(graph())
