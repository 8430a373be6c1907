"""What every DALI graph here shares: its feed, its options, and the way its pixels get to torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.utils.dlpack
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

Arrays = Sequence[NDArray[np.generic]]
Feed = Callable[[], tuple[Arrays, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphOptions:
    """How a graph runs; what it computes does not depend on it."""

    max_batch: int
    """Largest batch the feed gives."""
    num_threads: int
    """CPU threads of the graph."""
    device_id: int | None
    """GPU that decodes and augments; None runs the same graph on the CPU."""
    prefetch: int
    """Batches computed ahead of the consumer."""

    @property
    def decoder(self) -> str:
        """DALI's name of the decoder's device."""
        return "cpu" if self.device_id is None else "mixed"

    def pipeline_arguments(self) -> dict[str, Any]:
        """Arguments of `pipeline_def`. No seed: no operator here draws random numbers."""
        return {
            "batch_size": self.max_batch,
            "num_threads": self.num_threads,
            "device_id": self.device_id,
            "prefetch_queue_depth": self.prefetch,
        }


class Graph:
    """A built pipeline with one output."""

    def __init__(self, pipe: Pipeline) -> None:
        pipe.build()
        self._pipe = pipe

    def run(self) -> Tensor:
        """Run one batch and hand it to torch without a copy.

        Returns:
            uint8, batch first, on the graph's device; stays valid after later runs.

        Raises:
            StopIteration: The feed ended, and its last batch has been returned.
            RuntimeError: An image of this batch does not decode; later batches are not lost.
        """
        (out,) = self._pipe.run()
        return torch.utils.dlpack.from_dlpack(out.as_tensor())


def decode_crop(encoded: DataNode, crop: DataNode, options: GraphOptions, *, px: int) -> DataNode:
    """Decode a rectangle of an image and resize it to a square, antialiased, bilinear.

    Args:
        encoded: uint8 1-D, the bytes of one image.
        crop: int32 (4,): top, left, height, width in pixels of the image.
        options: Names the decoder's device.
        px: Side of the result.

    Returns:
        uint8 HWC RGB, (px, px, 3).
    """
    # The gate applied EXIF orientation; a tag left in a passed-through file is 1 or absent.
    pixels = fn.decoders.image_slice(
        encoded,
        start=crop[0:2],
        shape=crop[2:4],
        axes=[0, 1],
        device=options.decoder,
        output_type=types.RGB,
        adjust_orientation=False,
    )
    return fn.resize(pixels, size=[px, px], interp_type=types.INTERP_LINEAR, antialias=True)
