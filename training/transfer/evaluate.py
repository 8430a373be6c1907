"""The transfer stage: one frozen trunk beside a random one, scored on every stage."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.data import open_store
from pipeline.shards.manifest import Manifest
from pipeline.shards.store import Store
from training.models.trunks import Trunk, build_trunk, require_view
from training.run import RunConfig, versions, write_json
from training.transfer.config import TransferConfig
from training.transfer.features import extract_features, load_trunk
from training.transfer.svm import METRIC, LayerScore, Split, score_layers

RESULT_FILE = "transfer.json"

Progress = Callable[[str, int, int], None]
"""Gets what is done now, how much of it, out of how much."""


@dataclass(frozen=True, slots=True)
class TrunkScores:
    """One trunk on every layer."""

    layers: dict[str, LayerScore]
    images_per_s: float
    """Of the feature extraction: decode and forward pass."""

    @property
    def best(self) -> float:
        """Score of the best layer, percent."""
        return max(layer.score for layer in self.layers.values())


@dataclass(frozen=True, slots=True)
class _Images:
    """The images of the split: training rows first, then test rows."""

    store: Store
    sample_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    split: Split
    left_out: list[str]
    """Classes with too few images."""


def transfer(config: RunConfig, device: torch.device, on_progress: Progress) -> dict[str, Any]:
    """Score the run's trunk and a random one of the same architecture; write transfer.json.

    Both see the same images, the same split and the same costs. The random trunk has fresh weights
    and BatchNorm statistics of mean 0 and variance 1.

    Raises:
        ConfigError: There is no transfer section, fewer than 2 classes, no trunk, or views that it
            can not see.
    """
    if config.transfer is None:
        raise ConfigError("transfer is missing: this stage needs that section of the config.")
    px = config.transfer.view_px
    require_view(config.trunk, px, key="transfer.view_px", use="transfer")
    started = time.monotonic()
    images = _labelled_images(config)
    random = _fresh_trunk(config, device)
    pretrained = _fresh_trunk(config, device)
    load_trunk(pretrained, config.transfer.weights or config.out / "trunk.safetensors")
    scores = {
        name: _score_trunk(name, trunk, images, config.transfer, on_progress)
        for name, trunk in (("random", random), ("pretrained", pretrained))
    }
    result = {
        "metric": METRIC,
        **{name: {k: v.score for k, v in s.layers.items()} for name, s in scores.items()},
        **{f"best_{name}": s.best for name, s in scores.items()},
        "chance": 100 / len(np.unique(images.labels)),
        "classes": len(np.unique(images.labels)),
        "classes_left_out": images.left_out,
        "train_images": len(images.split.train),
        "test_images": len(images.split.test),
        "layers": {n: {k: asdict(v) for k, v in s.layers.items()} for n, s in scores.items()},
        "images_per_s": {name: s.images_per_s for name, s in scores.items()},
        "config": config.transfer.model_dump(mode="json"),
        "seed": config.seed,
        "fingerprint": images.store.manifest.fingerprint,
        "versions": versions(),
        "seconds": time.monotonic() - started,
    }
    write_json(config.out / RESULT_FILE, result)
    return result


def require_classes(manifest: Manifest, location: str | Path) -> None:
    """Refuse shards with fewer than 2 classes.

    Raises:
        ConfigError: The line that says so.
    """
    found = len(manifest.classes) if manifest.classes else 0
    if found < 2:
        raise ConfigError(
            f"manifest (={location}) has {found} classes, a transfer needs at least 2. Shard a "
            "tree whose last folder level names the classes."
        )


def split_by_hash(keys: list[str], labels: NDArray[np.int64], config: TransferConfig) -> Split:
    """Decide by its key which side an image is on, so that adding images moves none.

    The smallest hashes of a class go to the test. Images without a label are left out, and so are
    classes with fewer training images than folds, or without a test image.

    Raises:
        ConfigError: Fewer than 2 classes are left.
    """
    hashes = np.array([xxhash.xxh3_64_intdigest(f"split:{k}".encode()) for k in keys], np.uint64)
    limit = np.uint64(config.test_share * 2**64)
    train, test = [], []
    classes = np.unique(labels[labels >= 0])
    most_train = _cap(config.train_per_class, config.max_train, len(classes))
    most_test = _cap(config.test_per_class, config.max_test, len(classes))
    for label in classes:
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(hashes[members], kind="stable")]
        num_test = int((hashes[members] < limit).sum())
        train.append(members[num_test:][:most_train])
        test.append(members[:num_test][:most_test])
        if len(train[-1]) < config.folds or not len(test[-1]):
            del train[-1], test[-1]
    if len(train) < 2:
        raise ConfigError(
            f"{len(train)} of {len(classes)} classes have folds (={config.folds}) training images "
            f"and a test image at test_share (={config.test_share}); a transfer needs 2 such "
            "classes. Add images or lower folds."
        )
    return Split(np.concatenate(train), np.concatenate(test))


def _cap(per_class: int | None, in_all: int | None, num_classes: int) -> int | None:
    """Return how many images a class may give, or None for all."""
    caps = [per_class] if per_class else []
    caps += [max(1, in_all // num_classes)] if in_all else []
    return min(caps, default=None)


def _labelled_images(config: RunConfig) -> _Images:
    assert config.transfer is not None
    location = config.transfer.manifest or config.data.first_manifest
    store = open_store(location, config.data.cache)
    require_classes(store.manifest, location)
    labels = store.labels()
    split = split_by_hash(store.keys(), labels, config.transfer)
    used = np.concatenate([split.train, split.test])
    rows = np.arange(len(used))
    here = Split(rows[: len(split.train)], rows[len(split.train) :])
    left_out = set(np.unique(labels[labels >= 0])) - set(np.unique(labels[used]))
    names = store.manifest.classes or ()
    return _Images(store, used, labels[used], here, [names[k] for k in sorted(left_out)])


def _fresh_trunk(config: RunConfig, device: torch.device) -> Trunk:
    assert config.transfer is not None
    torch.manual_seed(config.seed)
    trunk = build_trunk(config.trunk, use="transfer", view_px=config.transfer.view_px)
    return trunk.to(device).to(memory_format=torch.channels_last)


def _score_trunk(
    name: str, trunk: Trunk, images: _Images, config: TransferConfig, on_progress: Progress
) -> TrunkScores:
    total = len(images.sample_ids)
    started = time.monotonic()
    features = extract_features(
        trunk,
        images.store,
        images.sample_ids,
        config,
        lambda done: on_progress(f"{name}: features", done, total),
    )
    images_per_s = total / (time.monotonic() - started)
    finished: list[str] = []

    def layer_done(layer: str) -> None:
        finished.append(layer)
        on_progress(f"{name}: SVMs", len(finished), len(features))

    on_progress(f"{name}: SVMs", 0, len(features))
    layers = score_layers(features, images.labels, images.split, config, layer_done)
    return TrunkScores(layers, images_per_s)
