"""Linear probes: a classifier on every layer of a frozen trunk, all trained in one pass."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Config, ConfigError
from pipeline.loading.crops import CropConfig, even_parts, shuffled
from training.models.trunks import Trunk
from training.optimizer import SgdConfig, build_optimizer, set_rate
from training.precision import Precision, autocast
from training.transfer.average_precision import Definition
from training.transfer.classification import (
    Evaluation,
    evaluate_scores,
    joined,
    loss_of,
    merge_views,
    metric_of,
)
from training.transfer.images.augmented import (
    VIEWS_IN_WORDS,
    TestViews,
    evaluation_batches,
    steps_of,
    train_batches,
)
from training.transfer.job import (
    Labelled,
    NamedTrunk,
    Progress,
    Score,
    Setting,
    each_seed,
    require_finite,
    require_finite_model,
)

# Shapes: B batch, N images, C channels, H/W map size, D dimension of a pooled map.


Features = dict[str, Tensor]
"""Pooled features by stage, float32 (B, D)."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """The grid that a stage's map is pooled to."""

    side: int
    """Cells per side."""
    dimension: int
    """D = C * side * side."""


def pooled_stages(
    trunk: Trunk, names: tuple[str, ...] | None, *, view_px: int, dimension: int | None
) -> dict[str, Pooled]:
    """Choose the grid of each stage so that it gives about `dimension` numbers.

    For ResNet-50 at 224 px and 9,000 these are the grids of Goyal et al. 2019: 12, 6, 4, 3 and 2.

    Args:
        trunk: On its device.
        names: Stages; None takes all.
        view_px: Side of the views.
        dimension: None pools to one cell, the global average.

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
    """Run the trunk over normalized images (B, 3, H, W), and pool the maps of its stages."""
    maps = dict(zip(trunk.stage_names, trunk.stages(images), strict=True))
    return {
        name: F.adaptive_avg_pool2d(maps[name].float(), pooled.side).flatten(1)
        for name, pooled in stages.items()
    }


@dataclass(frozen=True, slots=True)
class KeptFeatures:
    """Features of all images in a file, reread in every epoch."""

    rows: NDArray[np.float32]
    """(N, sum of D), memory-mapped."""
    stages: dict[str, Pooled]

    def put(self, start: int, features: Features) -> int:
        """Store a batch from row `start` on; returns the row after it."""
        batch = torch.cat([features[name] for name in self.stages], dim=1)
        self.rows[start : start + len(batch)] = batch.cpu().numpy()
        return start + len(batch)

    def batches(
        self, labelled: Labelled, *, batch: int, seed: int, device: torch.device
    ) -> Iterator[tuple[Features, Tensor]]:
        """Yield features and targets endlessly, in the order of `train_batches`."""
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
    """Open a temporary file for features below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    width = sum(pooled.dimension for pooled in stages.values())
    with tempfile.TemporaryDirectory(dir=folder, prefix=".features-") as kept:
        path = Path(kept) / "rows.f32"
        rows = np.memmap(path, np.float32, mode="w+", shape=(num_images, width))
        yield KeptFeatures(rows, stages)


class LinearConfig(Config):
    """Softmax or sigmoid regression on frozen features of every layer (Goyal et al. 2019)."""

    name: Literal["linear"]
    layers: tuple[str, ...] | None = Field(None, min_length=1)
    """Stages to probe. Default: all."""
    pooling: Literal["map", "gap"] = "map"
    """map: average over the cells of a grid that gives about `dimension` numbers; gap: global
    average pooling."""
    dimension: int = Field(9000, gt=0)
    """Approximate feature width of a layer; the side of its grid is recorded."""
    epochs: int = Field(10, gt=0)
    batch: int = Field(64, ge=4)
    """At most this many images per step."""
    lr: float = Field(0.01, gt=0)
    """Learning rate at this batch size; never rescaled."""
    lr_steps: tuple[float, ...] = (1 / 3, 2 / 3)
    """Shares of the training after which the learning rate drops."""
    lr_factor: float = Field(0.1, gt=0, le=1)
    """Factor of each drop."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Nesterov momentum of SGD."""
    weight_decay: float = Field(1e-4, ge=0)
    augment: bool = True
    """Draw new crops in every epoch and run the trunk over them. Otherwise it runs over the central
    views once, and features stay on disk, below the run's folder, until the end."""
    crops: CropConfig = CropConfig()
    """How crops are drawn."""
    test_views: TestViews = "central"
    average_precision: Definition = "area"
    """Definition to use for multi-label images."""


@dataclass(frozen=True, slots=True)
class _Probed:
    """Results of one seed, by layer."""

    evaluations: dict[str, Evaluation]
    losses: dict[str, float]
    """Losses of the last step."""
    seconds: float


def run_linear(
    job: LinearConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Train and test a linear classifier on every layer of a trunk.

    The trunk is frozen and in evaluation mode. Features of a layer go through a BatchNorm without
    scale and shift. Layers share only the views and their order: a layer probed alone gives the
    same score. The seconds of a layer are its share of the pass.

    Raises:
        ConfigError: A layer is no stage of the trunk, or training diverged.
    """
    probed = []
    stages: dict[str, Pooled] = {}
    dimension = job.dimension if job.pooling == "map" else None
    for seed, say in each_seed(f"{trunk.name}: linear probes", setting.seeds):
        made = trunk.build(seed).to(setting.device).to(memory_format=torch.channels_last)
        stages = pooled_stages(made, job.layers, view_px=setting.view_px, dimension=dimension)
        probe = _Probe(job, setting, made, stages, seed)
        probed.append(probe.run(partial(on_progress, say)))
    return [
        Score(
            job=job.name,
            trunk=trunk.name,
            layer=f"{layer}.{job.pooling}",
            metric=_metric(job, setting),
            scores=tuple(one.evaluations[layer].score for one in probed),
            train_images=len(setting.task.train.sample_ids),
            test_images=len(setting.task.test.sample_ids),
            seconds=sum(one.seconds for one in probed) / len(stages),
            details={
                "side": pooled.side,
                "dimension": pooled.dimension,
                "last_loss": [one.losses[layer] for one in probed],
                "by_seed": [one.evaluations[layer].details for one in probed],
            },
        )
        for layer, pooled in stages.items()
    ]


def _metric(job: LinearConfig, setting: Setting) -> str:
    views = "crops drawn anew in each epoch" if job.augment else "central views"
    return (
        f"{metric_of(setting.task, job.average_precision)}; linear classifier on frozen features, "
        f"trained on {views}, tested on {VIEWS_IN_WORDS[job.test_views]}"
    )


class _Probe:
    """The classifiers of one seed, one for each layer."""

    def __init__(
        self,
        job: LinearConfig,
        setting: Setting,
        trunk: Trunk,
        stages: dict[str, Pooled],
        seed: int,
    ) -> None:
        self._job, self._setting, self._seed = job, setting, seed
        self._trunk, self._stages = trunk.requires_grad_(False).eval(), stages
        num_classes = len(setting.task.classes)
        heads = {k: linear_head(k, v.dimension, num_classes, seed) for k, v in stages.items()}
        self._heads = nn.ModuleDict(heads).to(setting.device)

    def run(self, on_progress: Callable[[int, int], None]) -> _Probed:
        started = time.monotonic()
        with ExitStack() as held:
            losses = self._train(self._batches(held), on_progress)
        evaluations = self._test()
        return _Probed(evaluations, losses, time.monotonic() - started)

    def _train(
        self, batches: Iterator[tuple[Features, Tensor]], on_progress: Callable[[int, int], None]
    ) -> dict[str, float]:
        job, heads = self._job, self._heads.train()
        sgd = SgdConfig(name="sgd", lr=job.lr, momentum=job.momentum, weight_decay=job.weight_decay)
        optimizer = build_optimizer(heads, sgd)
        total = job.epochs * steps_of(self._setting.task.train, job.batch)
        losses: dict[str, Tensor] = {}
        for step, (features, targets) in enumerate(islice(batches, total)):
            passed = sum(step >= share * total for share in job.lr_steps)
            set_rate(optimizer, job.lr * job.lr_factor**passed)
            losses = {k: loss_of(heads[k](features[k]), targets) for k in self._stages}
            optimizer.zero_grad()
            torch.autograd.backward(list(losses.values()))
            optimizer.step()
            on_progress(step + 1, total)
        for name, loss in losses.items():
            require_finite(f"the losses of the probe of layer {name}", loss)
        require_finite_model(heads)
        return {name: loss.item() for name, loss in losses.items()}

    def _batches(self, held: ExitStack) -> Iterator[tuple[Features, Tensor]]:
        job, setting, train = self._job, self._setting, self._setting.task.train
        if job.augment:
            shown = train_batches(train, job.crops, setting, batch=job.batch, seed=self._seed)
            held.enter_context(closing(shown))
            return ((self._features(each.images), each.targets) for each in shown)
        folder, num = setting.folder / job.name, len(train.sample_ids)
        kept = held.enter_context(kept_features(folder, num, self._stages))
        row = 0
        for each in evaluation_batches(train, "central", job.crops, setting, seed=self._seed):
            row = kept.put(row, self._features(each.images))
        return kept.batches(train, batch=job.batch, seed=self._seed, device=setting.device)

    @torch.no_grad()
    def _test(self) -> dict[str, Evaluation]:
        job, task, heads = self._job, self._setting.task, self._heads.eval()
        scores: dict[str, list[Tensor]] = {name: [] for name in self._stages}
        for shown in evaluation_batches(
            task.test, job.test_views, job.crops, self._setting, seed=self._seed
        ):
            for name, features in self._features(shown.images).items():
                merged = merge_views(
                    heads[name](features), shown.num_views, multi_label=task.test.is_multi_label
                )
                scores[name].append(merged)
        return {
            k: evaluate_scores(joined(v), task, job.average_precision) for k, v in scores.items()
        }

    def _features(self, images: Tensor) -> Features:
        precision = cast(Precision, self._setting.precision)
        with autocast(precision, self._setting.device):
            found = pool_stages(self._trunk, images, self._stages)
        for name, features in found.items():
            require_finite(f"the features of layer {name}", features)
        return found


def linear_head(name: str, dimension: int, num_classes: int, seed: int) -> nn.Sequential:
    """Make the classifier of a layer; its weights depend on (seed, name) alone.

    At test time features are normalized by the cumulative mean and variance of all batches, since
    the trunk does not change.
    """
    linear = nn.Linear(dimension, num_classes)
    drawn = torch.Generator().manual_seed(xxhash.xxh32_intdigest(f"{seed}:{name}".encode()))
    nn.init.normal_(linear.weight, std=0.01, generator=drawn)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(dimension, momentum=None, affine=False), linear)
