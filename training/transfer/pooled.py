"""Frozen features for linear probes: maps of all stages, pooled to about the same size."""

# Shapes: B batch, N images, C channels, H/W map size, D dimension of a pooled map.

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.crops import even_parts, shuffled
from training.models.trunks import Trunk
from training.transfer.job import Labelled

Features = dict[str, Tensor]
"""Stage to float32 (B, D)."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """What a stage is pooled to."""

    side: int
    """Places on a side of the grid."""
    dimension: int
    """D = C * side * side."""


def pooled_stages(
    trunk: Trunk, names: tuple[str, ...] | None, *, view_px: int, dimension: int | None
) -> dict[str, Pooled]:
    """Find the grid of each stage: as many places as make about `dimension` numbers.

    For ResNet-50 at 224 px and 9,000 these are the grids of Goyal et al. 2019: 12, 6, 4, 3 and 2.

    Args:
        trunk: On its device.
        names: Of stages; None takes all.
        view_px: Side of the views.
        dimension: None takes one place, the average over all.

    Raises:
        ConfigError: A name is no stage of the trunk.
    """
    for name in names or ():
        if name not in trunk.stage_names:
            raise ConfigError(
                f"layers (={name}) must be stages of the trunk: {', '.join(trunk.stage_names)}."
            )
    device = next(trunk.parameters()).device
    with torch.no_grad():
        maps = trunk.eval().stages(torch.zeros(1, 3, view_px, view_px, device=device))
    found = {}
    for name, (_, channels, *size) in zip(trunk.stage_names, (m.shape for m in maps), strict=True):
        wanted = round(math.sqrt(dimension / channels)) if dimension else 1
        side = max(1, min(wanted, *size))
        if names is None or name in names:
            found[name] = Pooled(side, channels * side * side)
    return found


@torch.no_grad()
def pool_stages(trunk: Trunk, images: Tensor, stages: dict[str, Pooled]) -> Features:
    """Run the trunk over normalised images (B, 3, H, W), and average the maps of its stages."""
    maps = dict(zip(trunk.stage_names, trunk.stages(images), strict=True))
    return {
        name: F.adaptive_avg_pool2d(maps[name].float(), pooled.side).flatten(1)
        for name, pooled in stages.items()
    }


@dataclass(frozen=True, slots=True)
class KeptFeatures:
    """Features of all images on the disk, to be read again in every epoch."""

    rows: NDArray[np.float32]
    """(N, sum of D), mapped."""
    stages: dict[str, Pooled]

    def put(self, start: int, features: Features) -> int:
        """Keep a batch from row `start` on; returns the row behind it."""
        batch = torch.cat([features[name] for name in self.stages], dim=1)
        self.rows[start : start + len(batch)] = batch.cpu().numpy()
        return start + len(batch)

    def batches(
        self, labelled: Labelled, *, batch: int, seed: int, device: torch.device
    ) -> Iterator[tuple[Features, Tensor]]:
        """Yield features and targets for ever, in the order of `train_batches`."""
        epoch = 0
        sizes = [pooled.dimension for pooled in self.stages.values()]
        while True:
            rows = shuffled(labelled.sample_ids, seed=seed, epoch=epoch)
            for part in even_parts(len(rows), batch):
                kept = torch.from_numpy(self.rows[rows[part]]).to(device)
                taken = torch.split(kept, sizes, dim=1)
                targets = torch.from_numpy(labelled.targets[rows[part]])
                yield dict(zip(self.stages, taken, strict=True)), targets.to(device)
            epoch += 1


@contextmanager
def kept_features(
    folder: Path, num_images: int, stages: dict[str, Pooled]
) -> Iterator[KeptFeatures]:
    """Make room on the disk, below `folder`; it is given back at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    width = sum(pooled.dimension for pooled in stages.values())
    with tempfile.TemporaryDirectory(dir=folder, prefix=".features-") as kept:
        path = Path(kept) / "rows.f32"
        rows = np.memmap(path, np.float32, mode="w+", shape=(num_images, width))
        yield KeptFeatures(rows, stages)
