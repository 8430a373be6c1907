"""Frozen features: every stage of a trunk, over the whole set, in one pass."""

# Shapes: N images, C channels, H/W map size.

from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.dali.graph import GraphOptions
from pipeline.loader import whole_batches
from pipeline.seen import normalize
from pipeline.shards.store import Store
from training.models.trunks import Trunk
from training.precision import autocast
from training.transfer.config import TransferConfig

Features = dict[str, NDArray[np.float32]]
"""Layer name ("layer3.gap": averaged over all places, "layer3.map": over a grid of places) to
float32 (N, dimension)."""


def load_trunk(trunk: Trunk, path: Path) -> None:
    """Load exported weights into a trunk of the same architecture.

    Raises:
        ConfigError: The file is missing, no safetensors, or of another architecture.
    """
    try:
        weights = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"weights (={path}) cannot be read: {error}.") from None
    trunk.make_room(weights)
    ours = trunk.net.state_dict()
    odd = sorted(set(ours) ^ set(weights))
    odd += [k for k in ours if k in weights and ours[k].shape != weights[k].shape]
    if odd:
        raise ConfigError(
            f"weights (={path}) are of another architecture: {', '.join(odd[:3])} "
            f"{'differs' if len(odd) == 1 else 'differ'} ({len(odd)} keys in all). Give the "
            "trunk section that they were trained with."
        )
    trunk.net.load_state_dict(weights)


@torch.inference_mode()
def extract_features(
    trunk: Trunk,
    store: Store,
    sample_ids: NDArray[np.int64],
    config: TransferConfig,
    on_progress: Callable[[int], None],
) -> Features:
    """Run the trunk over the given images, in the given order.

    Args:
        trunk: On its device; BatchNorm uses its running statistics.
        store: Shards that hold the images.
        sample_ids: int64 (N,).
        config: View and pooling.
        on_progress: Called with the number of images done.
    """
    device = next(trunk.parameters()).device
    trunk.eval()
    options = GraphOptions(
        max_batch=config.batch,
        num_threads=config.threads,
        device_id=device.index,
        prefetch=2,
    )
    parts: dict[str, list[Tensor]] = {}
    done = 0
    for batch in whole_batches(store, sample_ids, options, px=config.view_px):
        with autocast(config.precision, device):
            maps = trunk.stages(normalize(batch.views))
        for stage, map_NCHW in zip(trunk.stage_names, maps, strict=True):
            for kind, side in (("gap", 1), ("map", config.map_side)):
                pooled = F.adaptive_avg_pool2d(map_NCHW.float(), side).flatten(1)
                parts.setdefault(f"{stage}.{kind}", []).append(pooled.cpu())
        done += len(batch.sample_ids)
        on_progress(done)
    return {name: torch.cat(rows).numpy() for name, rows in parts.items()}
