"""The graph that shows all of an image in its own shape, for detection and segmentation."""

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from pipeline.dali.graph import Feed, Graph, GraphOptions


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
