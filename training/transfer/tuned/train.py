"""Classifiers on trunks, trained and tested; fine-tuning and layer locking share this."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from pipeline.config import Config
from pipeline.loading.crops import CropConfig
from training.models.trunks import Trunk
from training.optimizer import OptimConfig, SgdConfig, build_optimizer, learning_rate, set_rate
from training.precision import Precision, autocast
from training.transfer.average_precision import Definition
from training.transfer.classification import (
    Evaluation,
    evaluate_scores,
    joined,
    loss_of,
    merge_views,
)
from training.transfer.images.augmented import (
    TestViews,
    evaluation_batches,
    steps_of,
    train_batches,
)
from training.transfer.job import Labelled, Setting, require_finite, require_finite_model

# Shapes: B batch, N images, D width of the trunk, C classes, H/W view size.


HEAD = "head"
"""Name of the classifier among the stage names."""


class FitConfig(Config):
    """Training of a classifier and of the trunk under it."""

    epochs: int = Field(10, gt=0)
    max_minutes: float | None = Field(None, gt=0)
    """Stop training after this time if the epochs are not done by then; the learning rate follows
    whichever is nearer its end. A run stopped by this is not bit-reproducible."""
    batch: int = Field(32, ge=4)
    """At most this many images per step."""
    optim: OptimConfig = SgdConfig(name="sgd", lr=0.02, weight_decay=1e-4, warmup=0.05)
    """Its learning rate belongs to this batch size and is never rescaled."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """How the learning rate decays after the warm-up."""
    lr_steps: tuple[float, ...] = (1 / 3, 2 / 3)
    """steps: shares of the training after which the learning rate drops."""
    lr_factor: float = Field(0.1, gt=0, le=1)
    """steps: factor of each drop."""
    head_lr_factor: float = Field(1.0, gt=0)
    """Learning rate of the classifier relative to that of the trunk's last stage."""
    stage_lr_decay: float = Field(1.0, gt=0)
    """Learning rate of a stage relative to that of the next stage."""
    hidden: tuple[int, ...] = ()
    """Widths of fresh layers between the trunk and the output layer; 4096, 4096 are AlexNet's."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout probability of the hidden layers."""
    batch_norm: Literal["train", "frozen"] = "train"
    """BatchNorm of the trained stages; frozen: uses the running statistics the trunk came with."""
    crops: CropConfig = CropConfig(min_area=0.25)
    """Crops shown in training."""


@dataclass(frozen=True, slots=True)
class TuningPlan:
    """How one classifier is trained and tested."""

    training: FitConfig
    num_locked: int
    """Number of first stages that are not trained."""
    test_views: TestViews
    definition: Definition
    """Average precision to use where an image may show several classes."""
    early_share: float = 1.0
    """Share of the training after which the early score is taken."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """Result of one seed."""

    early: Evaluation
    final: Evaluation
    steps: int
    loss: float
    """Loss of the last step."""
    seconds: float


def train_and_test(
    trunk: Trunk,
    plan: TuningPlan,
    setting: Setting,
    *,
    seed: int,
    on_progress: Callable[[int, int], None],
) -> Tuned:
    """Train a fresh classifier with a trunk, and test it early and at the end.

    Raises:
        ConfigError: Training diverged.
    """
    started = time.monotonic()
    config, task = plan.training, setting.task
    model = make_classifier(trunk, config, setting, num_locked=plan.num_locked, seed=seed)
    early, step = None, None

    def tested() -> Evaluation:
        scores = evaluate_classifier(model, plan.test_views, config, setting, seed=seed)
        return evaluate_scores(scores, task, plan.definition)

    for step in fit(model, task.train, config, setting, seed=seed):
        on_progress(round(1000 * step.share), 1000)
        if early is None and step.share >= plan.early_share:
            early = tested()
    assert step is not None
    assert early is not None  # The last step has share 1.
    require_finite("the losses of the last step", step.loss)
    require_finite_model(model)
    final = early if plan.early_share == 1 else tested()
    return Tuned(early, final, step.number, step.loss.item(), time.monotonic() - started)


def details_of(tuned: Sequence[Tuned]) -> dict[str, Any]:
    """Return the details of a score, one value for each seed."""
    return {
        "steps": [one.steps for one in tuned],
        "last_loss": [one.loss for one in tuned],
        "by_seed": [one.final.details for one in tuned],
    }


@dataclass(frozen=True, slots=True)
class Step:
    """A finished step."""

    number: int
    """Counts from 1."""
    share: float
    """Share of the training that is done, 0 to 1."""
    loss: Tensor
    """Scalar, on the device."""


class Classifier(nn.Module):
    """A trunk with a classifier: images (B, 3, H, W) to logits (B, C)."""

    def __init__(
        self, trunk: Trunk, head: nn.Module, *, num_locked: int, frozen_norms: bool
    ) -> None:
        """Lock the first stages of a trunk: no gradient, BatchNorm in evaluation mode.

        Args:
            trunk: Trained from the stage `num_locked` on.
            head: Takes features (B, D).
            num_locked: Number of first stages that are not trained.
            frozen_norms: Whether every BatchNorm of the trunk uses the running statistics that it
                came with; its scale and shift are trained nevertheless.
        """
        super().__init__()
        self.trunk, self.head = trunk, head
        self._num_locked, self._frozen_norms = num_locked, frozen_norms
        for key, parameter in trunk.net.named_parameters():
            parameter.requires_grad_(trunk.stage_of(key) >= num_locked)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(images))
        return logits

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the trained parts; locked parts stay in evaluation mode."""
        super().train(mode)
        for name, module in self.trunk.net.named_modules():
            if mode and self._stays(name, module):
                module.training = False  # `eval` would recurse into submodules.
        return self

    def _stays(self, name: str, module: nn.Module) -> bool:
        if isinstance(module, _BatchNorm) and self._frozen_norms:
            return True
        own = any(True for _ in module.parameters(recurse=False))
        return own and self.trunk.stage_of(name) < self._num_locked

    def stage_of(self, name: str) -> int:
        """Return the stage of a parameter of this model; the classifier follows the last stage."""
        key = name.removeprefix("trunk.net.")
        return len(self.trunk.stage_names) if key == name else self.trunk.stage_of(key)


def fresh_head(
    width: int, hidden: tuple[int, ...], num_classes: int, *, dropout: float
) -> nn.Sequential:
    """Make a classifier; output weights from N(0, 0.01), hidden layers as in He et al. 2015.

    Args:
        width: Feature width, D.
        hidden: Widths of the hidden layers.
        num_classes: C.
        dropout: Dropout probability of the hidden layers.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in zip((width, *hidden), hidden, strict=False):
        layer = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU(inplace=True), nn.Dropout(dropout)]
    last = nn.Linear((width, *hidden)[-1], num_classes)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def renew_stages(trunk: Trunk, *, num_kept: int, seed: int) -> Trunk:
    """Copy the first stages of a trunk, and draw the others anew.

    Args:
        trunk: Made by `build_trunk`; it is not changed.
        num_kept: Number of stages to copy, at least one.
        seed: Seed of the fresh weights; they differ from a random trunk's of the same seed.
    """
    torch.manual_seed(seed_of("renewed", seed))
    fresh = trunk.remake()
    weights = trunk.export()
    fresh.make_room(weights)
    kept = {key: value for key, value in weights.items() if trunk.stage_of(key) < num_kept}
    fresh.net.load_state_dict(fresh.net.state_dict() | kept)
    return fresh


def seed_of(name: str, seed: int) -> int:
    """Derive a seed for torch that differs between names."""
    return xxhash.xxh3_64_intdigest(f"{name}:{seed}".encode()) >> 1


def make_classifier(
    trunk: Trunk, config: FitConfig, setting: Setting, *, num_locked: int, seed: int
) -> Classifier:
    """Put a fresh classifier on a trunk, on the device."""
    torch.manual_seed(seed_of("head", seed))  # Seeds dropout, too.
    num_classes = len(setting.task.classes)
    head = fresh_head(trunk.width, config.hidden, num_classes, dropout=config.dropout)
    model = Classifier(
        trunk, head, num_locked=num_locked, frozen_norms=config.batch_norm == "frozen"
    )
    return model.to(setting.device).to(memory_format=torch.channels_last)


def fit(
    model: Classifier, train: Labelled, config: FitConfig, setting: Setting, *, seed: int
) -> Generator[Step, None, None]:
    """Train step by step; the caller may test the model in between.

    Args:
        model: Its locked stages are not changed.
        train: Images to learn from.
        config: Schedule and optimizer.
        setting: Device and views.
        seed: Seed of order and crops.
    """
    optimizer = build_optimizer(model, config.optim, lambda name: lr_factor_of(model, config, name))
    total, limit = config.epochs * steps_of(train, config.batch), config.max_minutes
    number, share, spent = 0, 0.0, 0.0
    shown = train_batches(train, config.crops, setting, batch=config.batch, seed=seed)
    with closing(shown) as batches:
        while share < 1:
            asked = time.monotonic()
            batch = next(batches)
            set_rate(optimizer, rate_at(config, share))
            model.train()
            with autocast(cast(Precision, setting.precision), setting.device):
                logits = model(batch.images)
            loss = loss_of(logits, batch.targets)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            number += 1
            spent += time.monotonic() - asked
            share = min(1.0, max(number / total, spent / 60 / limit if limit else 0.0))
            yield Step(number, share, loss.detach())


@torch.no_grad()
def evaluate_classifier(
    model: Classifier, views: TestViews, config: FitConfig, setting: Setting, *, seed: int
) -> NDArray[np.float32]:
    """Return the scores of the test images, (N, C), averaged over the views of each image."""
    model.eval()
    found = []
    test = setting.task.test
    for shown in evaluation_batches(test, views, config.crops, setting, seed=seed):
        with autocast(cast(Precision, setting.precision), setting.device):
            logits = model(shown.images)
        found.append(merge_views(logits, shown.num_views, multi_label=test.is_multi_label))
    return joined(found)


def rate_at(config: FitConfig, share: float) -> float:
    """Return the learning rate of the trunk's last stage after a share of the training."""
    optim = config.optim
    if config.schedule == "cosine" or share < optim.warmup:
        return learning_rate(optim, share)
    return optim.lr * config.lr_factor ** sum(share >= step for step in config.lr_steps)


def lr_factor_of(model: Classifier, config: FitConfig, name: str) -> float:
    """Return the learning rate of a parameter, relative to `rate_at`."""
    num_stages = len(model.trunk.stage_names)
    stage = model.stage_of(name)
    if stage == num_stages:
        return config.head_lr_factor
    return config.stage_lr_decay ** (num_stages - 1 - stage)
