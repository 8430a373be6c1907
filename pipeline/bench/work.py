"""The work every contender does: which images, which views, how many cores."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

View = Literal["tiles", "whole"]
"""Nine jittered tiles of a random crop (pretraining), or the central square (transfer)."""

Batches = Generator[Any, None, None]
"""Arrays or tensors, uint8, batch first; never ends. Closing it ends its workers."""
Variants = dict[str, Callable[[], Batches]]
"""Settings a contender may choose from, by name; it runs with the one that is fastest here."""

GRID = 3
CROP_PX = 255
TILE_PX = 64
MIN_SCALE = 0.7
WHOLE_PX = 224
CELL_PX = CROP_PX // GRID
CELLS = np.stack(np.divmod(np.arange(GRID * GRID), GRID), axis=1) * CELL_PX
"""int64 (9, 2): top, left of every cell in the resized crop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderWork:
    """One unit of measurement: an image read, decoded, cropped, resized and cut."""

    shards: Path
    """Folder of shards with its manifest."""
    scratch: Path
    """Folder of the run, where a contender keeps the form it converts the images to."""
    view: View
    batch: int
    cores: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's view, channels last."""
        if self.view == "tiles":
            return (GRID * GRID, TILE_PX, TILE_PX, 3)
        return (WHOLE_PX, WHOLE_PX, 3)

    def tars(self) -> list[str]:
        """Return the shards in order."""
        return [str(path) for path in sorted(self.shards.glob("*.tar"))]


def check_batch(batch: NDArray[Any], work: LoaderWork) -> float:
    """Return the mean of a batch after a look at its shape, type and contrast.

    Args:
        batch: What a contender gave, on the CPU, channels last or channels first.
        work: What it should be.

    Raises:
        ValueError: It is not a batch of pictures of the agreed shape.
    """
    *lead, height, width, channels = work.shape
    first = (work.batch, *lead, channels, height, width)
    last = (work.batch, *work.shape)
    if batch.shape not in (first, last) or batch.dtype != np.uint8:
        raise ValueError(f"batch is {batch.dtype} {batch.shape}, must be uint8 {last} or {first}.")
    flat = batch.reshape(work.batch, -1).astype(np.float32)
    if np.median(flat.std(axis=1)) < 1:
        raise ValueError("batch holds images of one colour; a contender must decode them.")
    return float(flat.mean())
