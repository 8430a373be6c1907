"""What detection and segmentation are shown: whole images in their own shape, some mirrored."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dali.graph import GraphOptions
from pipeline.loading.crops import even_parts, shuffled
from pipeline.loading.resized import Fitted, Fitting, fit
from pipeline.pretext.draws import Draws
from pipeline.pretext.normalize import normalize
from training.transfer.job import Setting

# Shapes: N images of a set, B batch.


@dataclass(frozen=True, slots=True)
class Files:
    """The images of a set, and the size they are shown at."""

    paths: tuple[Path, ...]
    """Of N files."""
    stored: NDArray[np.int32]
    """(N, 2), height and width in px."""
    short_px: int
    """Short side of the resized image."""
    long_px: int
    """Largest long side; images that are longer get a smaller short side."""

    def fitting(self, rows: NDArray[np.int64], mirrored: NDArray[np.int32]) -> Fitting:
        """Plan to show some rows of the set."""
        stored = self.stored[rows]
        sizes = fit(stored, short_px=self.short_px, long_px=self.long_px)
        return Fitting(rows, tuple(self.paths[row] for row in rows), stored, sizes, mirrored)


def train_fittings(files: Files, *, batch: int, seed: int) -> Iterator[Fitting]:
    """Show every image once in each epoch, for ever, half of them mirrored.

    Order and mirrors are drawn by (seed, epoch, row). Batches of an epoch differ by at most one
    image.
    """
    everyone, epoch = np.arange(len(files.paths)), 0
    while True:
        order = shuffled(everyone, seed=seed, epoch=epoch)
        for part in even_parts(len(order), batch):
            rows = order[part]
            drawn = Draws(seed, epoch, rows).uniform("fitted.mirror", 1)[:, 0]
            yield files.fitting(rows, (drawn < 0.5).astype(np.int32))
        epoch += 1


def plain_fittings(files: Files, *, batch: int) -> Iterator[Fitting]:
    """Show every image once, as it is, in the order of the set."""
    for start in range(0, len(files.paths), batch):
        rows = np.arange(start, min(start + batch, len(files.paths)))
        yield files.fitting(rows, np.zeros(len(rows), np.int32))


def graph_options(setting: Setting, batch: int) -> GraphOptions:
    """Say how the graph of such views runs."""
    return GraphOptions(
        max_batch=batch,
        num_threads=setting.threads,
        device_id=setting.device.index,
        prefetch=2,
    )


def seen(fitted: Fitted, device: torch.device) -> list[Tensor]:
    """Normalise each image over its own pixels: B of float32 (3, height, width) on the device."""
    views, sizes = fitted.views.to(device, non_blocking=True), fitted.plan.sizes.tolist()
    return [
        normalize(view[None, :height, :width])[0]
        for view, (height, width) in zip(views, sizes, strict=True)
    ]
