"""Loss and evaluation of classifiers, single-label or multi-label with difficult classes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import ConfigError
from training.transfer.average_precision import (
    DEFINITIONS,
    Definition,
    average_precisions,
    defined_mean,
)
from training.transfer.job import TransferTask, require_finite

# Shapes: B batch, V views of an image, N images, C classes.


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well the test images were classified."""

    score: float
    """Percent, defined by `metric_of`."""
    details: dict[str, Any] = field(default_factory=dict)
    """Plain JSON."""


def metric_of(task: TransferTask, definition: Definition) -> str:
    """Describe the score of `evaluate_scores` in words."""
    if not task.test.is_multi_label:
        return "top-1 accuracy, percent"
    return f"mean average precision, percent: {DEFINITIONS[definition]}, difficult ones ignored"


def loss_of(logits_BC: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of a batch, a scalar.

    Single-label: cross-entropy. Multi-label: binary cross-entropy, summed over the classes that are
    not difficult and averaged over the images.

    Args:
        logits_BC: Output of the classifier.
        targets: int64 (B,) or (B, C), as `Labelled.targets`.
    """
    logits_BC = logits_BC.float()
    if targets.ndim == 1:
        return F.cross_entropy(logits_BC, targets)
    counts = (targets >= 0).float()
    shown = (targets == 1).float()
    total = F.binary_cross_entropy_with_logits(logits_BC, shown, counts, reduction="sum")
    return total / len(targets)


def merge_views(logits: Tensor, num_views: int, *, multi_label: bool) -> Tensor:
    """Average over the views of an image: probabilities, or logits where multi-label.

    Args:
        logits: (B * V, C), views of an image adjacent.
        num_views: V.
        multi_label: Whether an image may have several classes.

    Returns:
        float32 (B, C).
    """
    scores = logits.float() if multi_label else logits.float().softmax(dim=1)
    return scores.view(-1, num_views, scores.shape[1]).mean(dim=1)


def evaluate_scores(
    scores: NDArray[np.float32], task: TransferTask, definition: Definition
) -> Evaluation:
    """Evaluate the scores (N, C) of the test images.

    Raises:
        NotFiniteError: Scores are not finite.
        ConfigError: No class is shown in the test.
    """
    require_finite("the classifier's scores", scores)
    targets = task.test.targets
    if not task.test.is_multi_label:
        right = scores.argmax(axis=1) == targets
        found = np.unique(targets)
        by_class = {task.classes[k]: _percent(right[targets == k].mean()) for k in found.tolist()}
        mean = float(np.mean(list(by_class.values())))
        details = {"mean_class_accuracy": mean, "accuracy_of": by_class}
        return Evaluation(_percent(right.mean()), details)
    precisions = average_precisions(scores, targets, definition=definition)
    if np.isnan(precisions).all():
        raise ConfigError("no test image shows any class: there is nothing to evaluate.")
    named = zip(task.classes, precisions.tolist(), strict=True)
    by_class = {name: _percent(value) for name, value in named if not np.isnan(value)}
    return Evaluation(_percent(defined_mean(precisions)), {"average_precision_of": by_class})


def joined(scores: list[Tensor]) -> NDArray[np.float32]:
    """Concatenate the scores of batches."""
    return torch.cat(scores).cpu().numpy()


def _percent(share: float) -> float:
    return 100 * float(share)
