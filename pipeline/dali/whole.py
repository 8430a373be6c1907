"""The graph that shows an image whole, for evaluation."""

import numpy as np
from nvidia.dali import fn, pipeline_def
from nvidia.dali.data_node import DataNode

from pipeline.dali.graph import Arrays, Cut, Feed, Graph, GraphOptions, cut_crops


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

    def with_anchors() -> tuple[Arrays, ...]:
        encoded, crops = feed()
        return encoded, crops, np.zeros((len(encoded), 1, 2), np.int32)  # One tile: all of it.

    @pipeline_def(**options.pipeline_arguments())
    def graph() -> DataNode:
        tiles, _ = cut_crops(with_anchors, Cut(px, 1, px), options)
        return fn.squeeze(tiles, axes=[0])

    return Graph(graph())
