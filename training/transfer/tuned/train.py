"""How classifiers on trunks are trained and tested; fine-tuning and layer locking share it."""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pipeline.config import Config
from pipeline.loading.crops import CropConfig
from training.models.trunks import Trunk
from training.optimizer import OptimConfig, SgdConfig, build_optimizer, learning_rate, set_rate
from training.precision import Precision, autocast
from training.transfer.images.augmented import (
    TestViews,
    evaluation_batches,
    steps_of,
    train_batches,
)
from training.transfer.job import Labelled, Setting
from training.transfer.tuned.classification import joined, loss_of, merge_views
from training.transfer.tuned.classifier import Classifier, fresh_head, seed_of

# Shapes: N images, C classes.


class FitConfig(Config):
    """Training of a classifier and of the trunk below it."""

    epochs: int = Field(10, gt=0)
    max_minutes: float | None = Field(None, gt=0)
    """End after this training time if the epochs are not done by then; the learning rate follows
    whichever is nearer its end. A score that this ends is not repeatable to the bit."""
    batch: int = Field(32, ge=4)
    """Images in one step at most."""
    optim: OptimConfig = SgdConfig(name="sgd", lr=0.02, weight_decay=1e-4, warmup=0.05)
    """Its learning rate is that at this batch, and it is never rescaled."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """How the learning rate falls behind the warm-up."""
    lr_steps: tuple[float, ...] = (1 / 3, 2 / 3)
    """steps: shares of the training behind which the learning rate falls."""
    lr_factor: float = Field(0.1, gt=0, le=1)
    """steps: what it is multiplied with then."""
    head_lr_factor: float = Field(1.0, gt=0)
    """Learning rate of the classifier, as a multiple of that of the trunk's last stage."""
    stage_lr_decay: float = Field(1.0, gt=0)
    """Learning rate of a stage, as a multiple of that of the stage behind it."""
    hidden: tuple[int, ...] = ()
    """Widths of fresh layers between the trunk and the output layer; 4096, 4096 are AlexNet's."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of every hidden layer that is left out of a step."""
    batch_norm: Literal["train", "frozen"] = "train"
    """Of the stages that are trained; frozen: with the running statistics that the trunk came
    with."""
    crops: CropConfig = CropConfig(min_area=0.25)
    """What is shown in training."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is done."""

    number: int
    """From 1."""
    share: float
    """Of the training, 0 to 1."""
    loss: Tensor
    """A scalar, on the device."""


def make_classifier(
    trunk: Trunk, config: FitConfig, setting: Setting, *, num_locked: int, seed: int
) -> Classifier:
    """Put a fresh classifier on a trunk, on the device."""
    torch.manual_seed(seed_of("head", seed))  # Also of dropout, later.
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
        model: Its locked stages stay as they are.
        train: What is learned.
        config: How.
        setting: Device and views.
        seed: Of the order and the crops.
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
    """Return the scores of the test images, (N, C): mean over the views of an image."""
    model.eval()
    found = []
    test = setting.task.test
    for shown in evaluation_batches(test, views, config.crops, setting, seed=seed):
        with autocast(cast(Precision, setting.precision), setting.device):
            logits = model(shown.images)
        found.append(merge_views(logits, shown.num_views, multi_label=test.is_multi_label))
    return joined(found)


def rate_at(config: FitConfig, share: float) -> float:
    """Return the learning rate of the trunk's last stage behind a share of the training."""
    optim = config.optim
    if config.schedule == "cosine" or share < optim.warmup:
        return learning_rate(optim, share)
    return optim.lr * config.lr_factor ** sum(share >= step for step in config.lr_steps)


def lr_factor_of(model: Classifier, config: FitConfig, name: str) -> float:
    """Return the learning rate of a parameter, as a multiple of `rate_at`."""
    num_stages = len(model.trunk.stage_names)
    stage = model.stage_of(name)
    if stage == num_stages:
        return config.head_lr_factor
    return config.stage_lr_decay ** (num_stages - 1 - stage)
