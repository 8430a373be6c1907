"""The graph that shows an image whole, for evaluation."""

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from pipeline.dali.graph import Feed, Graph, GraphOptions, decode_crop


def whole_graph(feed: Feed, options: GraphOptions, *, px: int) -> Graph:
    """Build the graph: decode a crop and resize it to a square of side `px`.

    Args:
        feed: Gives for each batch the encoded images (uint8, 1-D) and crops int32 (4,): top,
            left, height, width.
        options: Device, threads, batch.
        px: Side of the result.

    Returns:
        Its output is uint8 (B, px, px, 3).
    """

    @pipeline_def(**options.pipeline_arguments())
    def graph() -> DataNode:
        encoded, crop = fn.external_source(
            source=feed, num_outputs=2, no_copy=True, dtype=[types.UINT8, types.INT32], ndim=[1, 1]
        )
        return decode_crop(encoded, crop, options, px=px)

    return Graph(graph())
