"""Low-shot SVMs: what a trunk is worth where few images of each class have labels."""

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
from training.transfer.job import NamedTrunk, Progress, Score, Setting

# Shapes: N training images, K classes.


_NEGATIVES = 19
"""For each positive, where an image may show several classes."""


class LowShotConfig(Config):
    """Linear SVMs on frozen features, fitted on k images of each class and tested on all.

    Independent draws of the k images, the same for every trunk; their mean, least and most are
    told. Where an image may show several classes, each class gets k images that show it and 19 k
    that do not, and the others are left out (Goyal et al. 2019, section 6.2). C is given, not
    chosen: k images cannot choose it, and test images must not.
    """

    name: Literal["low_shot"]
    shots: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (1, 2, 4, 8, 16, 32, 64, 96), min_length=1
    )
    """Values of k. Those that a class has too few images for are left out, and said to be."""
    draws: int = Field(5, gt=0)
    """Draws of the images for each k."""
    cost: float | None = Field(None, gt=0)
    """C of the SVM: 0.01 for one class and 1 for several, where this is left out."""
    last_stages: int = Field(2, gt=0)
    """How many of the last stages are scored."""

    def poolings(self, *, multi_label: bool) -> tuple[Pooling, ...]:
        """Return which features are needed."""
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
    seeds = setting.seeds if trunk.draws_weights else setting.seeds[:1]
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
    left_out = [k for k in job.shots if k not in shots]
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
                "shots_left_out": left_out,
                "cost": _cost(job, multi_label=multi_label),
            },
        )
        for (layer, k), scores in found.items()
    ]


def draw_costs(
    signs_NK: Tensor, shots: int, *, multi_label: bool, seed: tuple[int, int]
) -> NDArray[np.float32]:
    """Draw which images each class is fitted on: 1 for those, 0 for the others, (N, K).

    Draws of the same seed are nested: the images of a smaller k are among those of a larger one.
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
        sides = LayerFeatures(*some, task.train.targets[rows], task.test.targets)
        found.append(score_test(sides, weights, classes)[0])
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
    """Return how many images a draw takes; of each class, where it has its own."""
    return shots * (1 + _NEGATIVES) if multi_label else shots * signs.shape[1]


def _cost(job: LowShotConfig, *, multi_label: bool) -> float:
    return job.cost or (1.0 if multi_label else 0.01)
