"""Linear SVMs on frozen features of every stage, with C chosen by cross-validation."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pipeline.config import Config
from training.transfer.average_precision import average_precisions, defined_mean
from training.transfer.frozen.features import GAP, LARGE, Pooling, Rows, frozen_features
from training.transfer.frozen.linear_svm import fit_svms, main_axes, with_constant
from training.transfer.job import (
    NamedTrunk,
    Progress,
    Score,
    Setting,
    require_finite,
    seeds_of,
)

# Shapes: N training images, M test images, D features, K classes.


METRIC = "mean per-class accuracy of a linear SVM, percent"
MULTI_LABEL_METRIC = (
    "mean average precision of linear SVMs, percent (area under the interpolated precision-recall "
    "curve; difficult objects are negative in training and left out of the test)"
)
_COSTS = (0.0001, 0.001, 0.01)
_MULTI_LABEL_COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
_POSITIVE_WEIGHT = 2.0


class SvmConfig(Config):
    """One-vs-rest linear SVMs with squared hinge loss, on frozen features of every stage.

    Single-label: features are pooled globally and over a grid, and standardized by the training
    images; one C for all classes is chosen by mean per-class accuracy in cross-validation.
    Multi-label: the protocol of Goyal et al. 2019 for VOC07: maps are pooled over a grid that gives
    about 9,000 numbers, rows have length 1, positives weigh 2, and C is chosen for each class by
    average precision.
    """

    name: Literal["svm"]
    costs: tuple[float, ...] | None = Field(None, min_length=1)
    """Values of C to choose from. Default: 0.0001, 0.001, 0.01 for single-label, 0.01 to 1000 for
    multi-label sets."""
    folds: int = Field(3, ge=2)
    """Folds of the cross-validation."""
    map_side: int = Field(2, gt=1)
    """Cells per side of the grid, in single-label sets."""

    def poolings(self, *, multi_label: bool) -> tuple[Pooling, ...]:
        """Return the features the job reads."""
        return (LARGE,) if multi_label else (GAP, Pooling("map", self.map_side))

    def costs_for(self, *, multi_label: bool) -> tuple[float, ...]:
        """Return the values of C to choose from, ascending."""
        return tuple(sorted(self.costs or (_MULTI_LABEL_COSTS if multi_label else _COSTS)))


@dataclass(frozen=True, slots=True)
class LayerFeatures:
    """Features of a layer and targets of both features."""

    train: Tensor
    """float32 (N, D), scaled, the constant column last."""
    test: Tensor
    """float32 (M, D)."""
    targets: NDArray[np.int64]
    """Targets of the training images, as `Labelled.targets`."""
    test_targets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LayerScore:
    """Result of one layer."""

    score: float
    """Test score, percent."""
    cost: float
    """C chosen by cross-validation; the median where every class has its own."""
    dimension: int
    details: dict[str, Any] = field(default_factory=dict)


def run_svm(
    job: SvmConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Score every layer; for each seed where the trunk's weights are drawn."""
    task = setting.task
    poolings = job.poolings(multi_label=task.train.is_multi_label)
    started = time.monotonic()
    seeds = seeds_of(trunk, setting.seeds)
    found: dict[str, list[LayerScore]] = {}
    for number, seed in enumerate(seeds):
        frozen = frozen_features(setting, trunk, seed, poolings, on_progress)
        for done, layer in enumerate(frozen.layers):
            before = number * len(frozen.layers) + done
            on_progress(f"{trunk.name}: SVMs", before, len(seeds) * len(frozen.layers))
            multi_label = task.train.is_multi_label
            rows = scaled(*frozen.rows(layer), setting.device, multi_label=multi_label)
            features = LayerFeatures(*rows, task.train.targets, task.test.targets)
            found.setdefault(layer, []).append(score_layer(features, job))
    on_progress(f"{trunk.name}: SVMs", len(seeds) * len(found), len(seeds) * len(found))
    seconds = time.monotonic() - started
    return [
        Score(
            job=job.name,
            trunk=trunk.name,
            layer=layer,
            metric=metric_of(multi_label=task.train.is_multi_label),
            scores=tuple(one.score for one in scores),
            train_images=len(task.train.sample_ids),
            test_images=len(task.test.sample_ids),
            seconds=seconds / len(found),
            details={
                "cost": scores[0].cost,
                "dimension": scores[0].dimension,
                "images_per_s": frozen.images_per_s,
                **scores[0].details,
            },
        )
        for layer, scores in found.items()
    ]


def metric_of(*, multi_label: bool) -> str:
    """Describe the score in words."""
    return MULTI_LABEL_METRIC if multi_label else METRIC


def score_layer(features: LayerFeatures, job: SvmConfig) -> LayerScore:
    """Choose C by cross-validation, fit on all training images, and test."""
    multi_label = features.targets.ndim == 2
    costs = job.costs_for(multi_label=multi_label)
    signs, classes = signs_of(features.targets, features.train.device)
    weights = (
        torch.where(signs > 0, _POSITIVE_WEIGHT, 1.0) if multi_label else torch.ones_like(signs)
    )
    chosen = _choose_costs(features, signs, weights, costs, job.folds)
    fitted = fit_svms(features.train, signs, weights * torch.from_numpy(chosen).to(signs))
    score, details = score_test(features, fitted, classes)
    dimension = features.train.shape[1] - 1
    if multi_label:
        details |= {"costs": list(costs), "costs_of": chosen.tolist()}
    return LayerScore(score, float(np.median(chosen)), dimension, details)


def scaled(
    train: Rows, test: Rows, device: torch.device, *, multi_label: bool
) -> tuple[Tensor, Tensor]:
    """Scale a layer's features by statistics of the training images, and move them to the device.

    Single-label: mean 0 and deviation 1. Multi-label: rows of length 1. Where it is cheap, rows are
    rotated to their principal axes: the SVMs are the same, and found sooner.
    """
    if multi_label:
        both = [r / (np.linalg.norm(r, axis=1, keepdims=True) + 1e-5) for r in (train, test)]
    else:
        center = train.mean(axis=0, dtype=np.float64)
        deviation = train.std(axis=0, dtype=np.float64) + 1e-6
        both = [((r - center) / deviation).astype(np.float32) for r in (train, test)]
    for side, scaled_rows in zip(("training", "test"), both, strict=True):
        require_finite(f"the scaled features of the {side} images", scaled_rows)
    rows, test_rows = (with_constant(torch.from_numpy(r).to(device)) for r in both)
    axes = main_axes(rows)
    return (rows, test_rows) if axes is None else (rows @ axes, test_rows @ axes)


def signs_of(targets: NDArray[np.int64], device: torch.device) -> tuple[Tensor, NDArray[np.int64]]:
    """Return +1 where an image shows a class and -1 elsewhere, (N, K), and the K class numbers.

    The K classes are those that some image shows. Difficult ones count as not shown.
    """
    if targets.ndim == 1:
        classes = np.unique(targets)
        shown = targets[:, None] == classes
    else:
        classes = np.flatnonzero((targets == 1).any(axis=0))
        shown = targets[:, classes] == 1
    return torch.from_numpy(np.where(shown, 1, -1).astype(np.float32)).to(device), classes


def score_test(
    features: LayerFeatures, weights_DK: Tensor, classes: NDArray[np.int64]
) -> tuple[float, dict[str, Any]]:
    """Score the test images, percent, with details of the score of each class."""
    scores = (features.test @ weights_DK).cpu().numpy()
    require_finite("the SVM's scores of the test images", scores)
    targets = features.test_targets
    if targets.ndim == 1:
        by_class = _class_accuracies(targets, classes[scores.argmax(axis=1)])
        return float(np.mean(list(by_class.values()))), {"score_of": by_class}
    found = 100 * average_precisions(scores, targets[:, classes], definition="area")
    by_class = {int(k): float(ap) for k, ap in zip(classes, found, strict=True) if ap == ap}
    return defined_mean(found), {"score_of": by_class}


def mean_class_accuracy(labels: NDArray[np.int64], guesses: NDArray[np.int64]) -> float:
    """Average the accuracy over the classes in `labels`, so that large classes do not dominate."""
    return float(np.mean([(guesses[labels == k] == k).mean() for k in np.unique(labels)]))


def _class_accuracies(labels: NDArray[np.int64], guesses: NDArray[np.int64]) -> dict[int, float]:
    return {int(k): 100 * float((guesses[labels == k] == k).mean()) for k in np.unique(labels)}


def _choose_costs(
    features: LayerFeatures, signs: Tensor, weights: Tensor, costs: tuple[float, ...], folds: int
) -> NDArray[np.float32]:
    """Return C of every class, (K,): the best over the folds, the smallest among ties."""
    if len(costs) == 1:
        return np.full(signs.shape[1], costs[0], np.float32)
    totals = np.zeros((len(costs), signs.shape[1]))
    for fit_on, check_on in _folds(features.targets, folds):
        rows, fold_signs = features.train[fit_on], signs[fit_on]
        fitted = None
        for number, cost in enumerate(costs):
            fitted = fit_svms(rows, fold_signs, cost * weights[fit_on], start_DK=fitted)
            scores = (features.train[check_on] @ fitted).cpu().numpy()
            totals[number] += _fold_scores(
                scores, signs[check_on].cpu().numpy(), features.targets.ndim
            )
    best: NDArray[np.float32] = np.array(costs, np.float32)[totals.argmax(axis=0)]
    return best


def _fold_scores(scores: NDArray[Any], signs: NDArray[Any], ndim: int) -> NDArray[np.float64]:
    """Score a fold for each class; in single-label sets all get the mean accuracy."""
    if ndim == 1:
        accuracy = mean_class_accuracy(signs.argmax(axis=1), scores.argmax(axis=1))
        return np.full(signs.shape[1], accuracy)
    shown = (signs > 0).astype(np.int64)
    return np.nan_to_num(average_precisions(scores, shown, definition="area"))


def _folds(
    targets: NDArray[np.int64], num: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    from sklearn.model_selection import KFold, StratifiedKFold

    kind = StratifiedKFold if targets.ndim == 1 else KFold
    parts = kind(num, shuffle=True, random_state=0).split(np.zeros(len(targets)), targets)
    return [(fit_on, check_on) for fit_on, check_on in parts]
