"""What every DALI graph here shares: its options, and how its pixels reach torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.utils.dlpack
from numpy.typing import NDArray
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

Arrays = Sequence[NDArray[np.generic]] | NDArray[np.generic]
"""One array for each image of a batch: a list where their lengths differ, else batch first."""
Feed = Callable[[], tuple[Any, ...]]
"""Gives `Arrays` for each input of a graph; StopIteration ends the graph."""


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
        # Given the tensor itself, `from_dlpack` asks it in vain for a newer protocol, and a Ctrl-C
        # that comes while it does so is lost. What `run` returns is ready: no stream is to wait.
        return torch.utils.dlpack.from_dlpack(out.as_tensor().__dlpack__())
