"""Low-shot SVMs: how useful a trunk is with few labelled images of each class."""

import time
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pipeline.config import Config, ConfigError
from training.transfer.frozen.features import GAP, LARGE, Frozen, Pooling, frozen_features
from training.transfer.frozen.linear_svm import fit_svms
from training.transfer.frozen.svm import LayerFeatures, metric_of, scaled, score_test, signs_of
from training.transfer.job import NamedTrunk, Progress, Score, Setting, seeds_of

# Shapes: N training images, K classes.


_NEGATIVES = 19
"""Negatives per positive in multi-label sets."""


class LowShotConfig(Config):
    """Linear SVMs on frozen features, fitted on k images of each class and tested on all.

    The k images are drawn independently several times, the same for every trunk; mean, minimum and
    maximum are reported. In multi-label sets each class gets k images that show it and 19 k that do
    not (Goyal et al. 2019, section 6.2). C is fixed: k images are too few to choose it, and test
    images must not.
    """

    name: Literal["low_shot"]
    shots: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (1, 2, 4, 8, 16, 32, 64, 96), min_length=1
    )
    """Values of k. Those above the images of the smallest class are skipped and reported."""
    draws: int = Field(5, gt=0)
    """Draws of the images for each k."""
    cost: float | None = Field(None, gt=0)
    """C of the SVM. Default: 0.01 for single-label, 1 for multi-label sets."""
    last_stages: int = Field(2, gt=0)
    """Number of last stages to score."""

    def poolings(self, *, multi_label: bool) -> tuple[Pooling, ...]:
        """Return the features the job reads."""
        return (LARGE,) if multi_label else (GAP,)


def run_low_shot(
    job: LowShotConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Score the last stages for every k.

    Raises:
        ConfigError: A class has fewer training images than the smallest k.
    """
    started = time.monotonic()
    multi_label = setting.task.train.is_multi_label
    signs, _ = signs_of(setting.task.train.targets, setting.device)
    shots = _possible(job, signs)
    seeds = seeds_of(trunk, setting.seeds)
    found: dict[tuple[str, int], list[float]] = {}
    for number, seed in enumerate(seeds):
        poolings = job.poolings(multi_label=multi_label)
        frozen = frozen_features(setting, trunk, seed, poolings, on_progress)
        layers = frozen.layers[-job.last_stages :]
        for done, layer in enumerate(layers):
            what = f"{trunk.name}: low-shot SVMs"
            on_progress(what, number * len(layers) + done, len(seeds) * len(layers))
            for k in shots:
                found.setdefault((layer, k), []).extend(_scores(job, setting, frozen, layer, k))
    on_progress(f"{trunk.name}: low-shot SVMs", len(seeds) * len(layers), len(seeds) * len(layers))
    seconds = time.monotonic() - started
    skipped = [k for k in job.shots if k not in shots]
    return [
        Score(
            job=job.name,
            trunk=trunk.name,
            layer=layer,
            metric=f"{metric_of(multi_label=multi_label)}, of {k} images of each class",
            scores=tuple(scores),
            train_images=_images(signs, k, multi_label=multi_label),
            test_images=len(setting.task.test.sample_ids),
            seconds=seconds / len(found),
            details={
                "shots": k,
                "min": min(scores),
                "max": max(scores),
                "shots_left_out": skipped,
                "cost": _cost(job, multi_label=multi_label),
            },
        )
        for (layer, k), scores in found.items()
    ]


def draw_costs(
    signs_NK: Tensor, shots: int, *, multi_label: bool, seed: tuple[int, int]
) -> NDArray[np.float32]:
    """Draw the images each class is fitted on: 1 for those, 0 for the others, (N, K).

    Draws of a seed are nested: the images of a smaller k are among those of a larger one.
    """
    signs = signs_NK.cpu().numpy()
    order = np.random.default_rng(seed).permutation(len(signs))
    taken = np.zeros(signs.shape, np.float32)
    for k in range(signs.shape[1]):
        shown = order[signs[order, k] > 0][:shots]
        if multi_label:
            taken[shown, k] = 1
            taken[order[signs[order, k] < 0][: _NEGATIVES * shots], k] = 1
        else:
            taken[shown] = 1
    return taken


def _scores(
    job: LowShotConfig, setting: Setting, frozen: Frozen, layer: str, shots: int
) -> list[float]:
    """Score each draw of k images."""
    task = setting.task
    multi_label = task.train.is_multi_label
    train, test = frozen.rows(layer)
    signs, classes = signs_of(task.train.targets, torch.device("cpu"))
    found = []
    for draw in range(job.draws):
        taken = draw_costs(signs, shots, multi_label=multi_label, seed=(setting.seeds[0], draw))
        rows = np.flatnonzero(taken.any(axis=1))
        some = scaled(train[rows], test, setting.device, multi_label=multi_label)
        costs = _cost(job, multi_label=multi_label) * torch.from_numpy(taken[rows])
        weights = fit_svms(some[0], signs[rows].to(setting.device), costs.to(setting.device))
        features = LayerFeatures(*some, task.train.targets[rows], task.test.targets)
        found.append(score_test(features, weights, classes)[0])
    return found


def _possible(job: LowShotConfig, signs: Tensor) -> list[int]:
    least = int((signs > 0).sum(dim=0).min())
    shots = [k for k in job.shots if k <= least]
    if not shots:
        raise ConfigError(
            f"low_shot.shots (={list(job.shots)}) must have a k of at most {least}, the training "
            "images of the smallest class; add a smaller one."
        )
    return shots


def _images(signs: Tensor, shots: int, *, multi_label: bool) -> int:
    """Return the number of images of a draw; in multi-label sets, that of each class."""
    return shots * (1 + _NEGATIVES) if multi_label else shots * signs.shape[1]


def _cost(job: LowShotConfig, *, multi_label: bool) -> float:
    return job.cost or (1.0 if multi_label else 0.01)
