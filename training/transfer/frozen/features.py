"""Frozen features of every stage of a trunk, extracted once for both sides and cached on disk."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from pipeline.atomic import write_json
from pipeline.dali.graph import GraphOptions
from pipeline.loading.crops import whole_batches
from pipeline.pretext.normalize import normalize
from training.models.trunks import Trunk
from training.precision import Precision, autocast
from training.transfer.job import Labelled, NamedTrunk, Progress, Setting, require_finite

# Shapes: N images, C channels, H/W map size, D dimension.


_FORMAT = 1
"""Version of the cached files; other versions are not read."""
_INDEX = "features.json"
_LARGE = 9000
"""Approximate width of a pooled map (Goyal et al. 2019, section 6)."""
_SIDES = ("train", "test")

Rows = NDArray[np.float32]
"""Features of a layer, float32 (N, D)."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a stage's map is pooled to a row of features: averages over the cells of a grid."""

    name: Literal["gap", "map", "large"]
    """gap: one cell, the whole map; map: `side` cells per side; large: as many per side as give
    about 9,000 numbers. The layer "layer3.gap" is the stage layer3 under gap."""
    side: int = 1

    def side_for(self, channels: int) -> int:
        """Return the cells per side for a map of this many channels."""
        return max(1, round((_LARGE / channels) ** 0.5)) if self.name == "large" else self.side


GAP = Pooling("gap")
LARGE = Pooling("large")


@dataclass(frozen=True, slots=True)
class Frozen:
    """Features of both sides of a task, on disk."""

    folder: Path
    layers: tuple[str, ...]
    """Layer names in the order of the stages."""
    files: dict[str, str]
    """Stem of the files of each layer."""
    images_per_s: float
    """Rate of the extraction: decoding and forward pass."""

    def rows(self, layer: str) -> tuple[Rows, Rows]:
        """Read a layer's training and test rows."""
        train, test = (np.load(_file(self.folder, side, self.files[layer])) for side in _SIDES)
        return train, test


def frozen_features(
    setting: Setting,
    trunk: NamedTrunk,
    seed: int,
    poolings: Sequence[Pooling],
    on_progress: Progress,
) -> Frozen:
    """Return a trunk's features on the images of the task, from the cache where possible.

    The cache is below the setting's folder, under a hash of the weights, the images, the view and
    the precision; an index holds the hash of each file.

    Args:
        setting: Images, view and device.
        trunk: Trunk to run.
        seed: Seed of a trunk whose weights are drawn.
        poolings: Which layers.
        on_progress: Called only while features are extracted.
    """
    identity = _identity(setting, trunk, seed)
    folder = setting.folder / "features" / _key(identity)
    index = _read_index(folder, identity)
    missing = [pooling for pooling in poolings if _stem(pooling) not in index["poolings"]]
    if missing:
        report = partial(on_progress, f"{trunk.name}: features")
        index = _make(setting, trunk.build(seed), missing, folder, index, report)
    stages = index["stages"]
    files = {f"{s}.{p.name}": f"{s}.{_stem(p)}" for s in stages for p in poolings}
    return Frozen(folder, tuple(files), files, index["images_per_s"])


@torch.inference_mode()
def extract_features(
    trunk: Trunk,
    images: Labelled,
    setting: Setting,
    poolings: Sequence[Pooling],
    on_progress: Callable[[int], None],
) -> Iterator[dict[str, Rows]]:
    """Run the trunk over the given images, in order; yields the rows of each batch by file stem.

    Args:
        trunk: On its device; BatchNorm uses its running statistics.
        images: Images to run it on.
        setting: View, batch size and precision.
        poolings: Which layers.
        on_progress: Called with the number of images done.

    Raises:
        NotFiniteError: A layer gives NaN or infinite features.
    """
    device = next(trunk.parameters()).device
    trunk.eval()
    options = GraphOptions(
        max_batch=setting.batch, num_threads=setting.threads, device_id=device.index, prefetch=2
    )
    precision: Precision = setting.precision  # type: ignore[assignment]
    done = 0
    for batch in whole_batches(images.store, images.sample_ids, options, px=setting.view_px):
        rows = layer_rows(trunk, normalize(batch.views), poolings, precision)
        for stem, features in rows.items():
            require_finite(f"the features of layer {stem}", features)
        yield rows
        done += len(batch.sample_ids)
        on_progress(done)


@torch.inference_mode()
def layer_rows(
    trunk: Trunk, images: Tensor, poolings: Sequence[Pooling], precision: Precision
) -> dict[str, Rows]:
    """Run the trunk over normalized images (B, 3, H, W); returns their rows by file stem.

    Args:
        trunk: On the device of the images; in evaluation mode.
        images: From `normalize`.
        poolings: Which layers.
        precision: Precision of the forward pass.
    """
    with autocast(precision, images.device):
        maps = trunk.stages(images)
    rows = {}
    for stage, map_NCHW in zip(trunk.stage_names, maps, strict=True):
        for pooling in poolings:
            side = pooling.side_for(map_NCHW.shape[1])
            pooled = F.adaptive_avg_pool2d(map_NCHW.float(), side).flatten(1)
            rows[f"{stage}.{_stem(pooling)}"] = pooled.cpu().numpy()
    return rows


def fingerprint_of(images: Labelled) -> str:
    """Hash the identity and the targets of images."""
    hashed = hashlib.sha256(images.store.manifest.fingerprint.encode())
    hashed.update(np.ascontiguousarray(images.sample_ids).tobytes())
    hashed.update(np.ascontiguousarray(images.targets).tobytes())
    return hashed.hexdigest()


def _make(
    setting: Setting,
    net: Trunk,
    poolings: Sequence[Pooling],
    folder: Path,
    index: dict[str, Any],
    on_progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Extract both sides, and return the extended index."""
    net = net.to(setting.device).to(memory_format=torch.channels_last)
    folder.mkdir(parents=True, exist_ok=True)
    sides = (setting.task.train, setting.task.test)
    total, before = sum(len(images.sample_ids) for images in sides), 0
    started, hashes = time.monotonic(), dict(index["hashes"])
    for side, images in zip(_SIDES, sides, strict=True):

        def report(done: int, before: int = before) -> None:
            on_progress(before + done, total)

        batches = extract_features(net, images, setting, poolings, report)
        for stem, digest in _write(folder, side, batches, len(images.sample_ids)).items():
            hashes[f"{side}.{stem}"] = digest
        before += len(images.sample_ids)
    made = {
        **index,
        "stages": list(net.stage_names),
        "poolings": sorted({*index["poolings"], *map(_stem, poolings)}),
        "hashes": hashes,
        "images_per_s": total / (time.monotonic() - started),
    }
    write_json(folder / _INDEX, made)
    return made


def _write(folder: Path, side: str, batches: Iterator[dict[str, Rows]], num: int) -> dict[str, str]:
    """Write rows as they come, one file for each layer, and return each file's hash."""
    files: dict[str, Any] = {}
    start = 0
    for batch in batches:
        for stem, rows in batch.items():
            if stem not in files:
                path = _partial(folder, side, stem)
                files[stem] = np.lib.format.open_memmap(
                    path, mode="w+", dtype=np.float32, shape=(num, rows.shape[1])
                )
            files[stem][start : start + len(rows)] = rows
        start += len(next(iter(batch.values())))
    hashes = {}
    for stem, mapped in files.items():
        mapped.flush()
        path = _partial(folder, side, stem)
        hashes[stem] = _hash(path)
        path.replace(_file(folder, side, stem))
    return hashes


def _read_index(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Read the index; an empty one where it is missing or a file does not match its hash."""
    empty = {"identity": identity, "stages": [], "poolings": [], "hashes": {}, "images_per_s": 0}
    try:
        index: dict[str, Any] = json.loads((folder / _INDEX).read_text())
        files = {name: folder / f"{name}.npy" for name in index["hashes"]}
        whole = all(_hash(path) == index["hashes"][name] for name, path in files.items())
    except (OSError, ValueError, KeyError):
        return empty
    return index if whole and index["identity"] == identity else empty


def _identity(setting: Setting, trunk: NamedTrunk, seed: int) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "weights": trunk.digest,
        "seed": seed if trunk.draws_weights else None,
        "images": [fingerprint_of(setting.task.train), fingerprint_of(setting.task.test)],
        "view_px": setting.view_px,
        "precision": setting.precision,
        "device": setting.device.type,
    }


def _key(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _stem(pooling: Pooling) -> str:
    return pooling.name + (str(pooling.side) if pooling.name == "map" else "")


def _file(folder: Path, side: str, stem: str) -> Path:
    return folder / f"{side}.{stem}.npy"


def _partial(folder: Path, side: str, stem: str) -> Path:
    return folder / f".{side}.{stem}.{os.getpid()}.partial"


def _hash(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())
