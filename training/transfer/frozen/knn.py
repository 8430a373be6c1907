"""k-nearest-neighbour classification on frozen features."""

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pipeline.config import Config, ConfigError
from training.transfer.average_precision import average_precisions, defined_mean
from training.transfer.frozen.features import GAP, Pooling, Rows, frozen_features
from training.transfer.job import (
    NamedTrunk,
    Progress,
    Score,
    Setting,
    TransferTask,
    require_finite,
    seeds_of,
)

# Shapes: N training images, M test images, D features, k neighbours, C classes.


_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The k nearest training images of each test image, the nearest first."""

    rows: NDArray[np.int64]
    """(M, k), rows of the training images."""
    cosines: NDArray[np.float32]
    """(M, k)."""


def nearest(train: Rows, test: Rows, num: int, device: torch.device) -> Neighbours:
    """Find the `num` training rows with the largest cosine similarity to each test row.

    Among ties, the earlier training row is nearer.
    """
    known = _unit(torch.from_numpy(train).to(device))
    rows, cosines = [], []
    for part in torch.split(torch.from_numpy(test), _AT_ONCE):
        similar = _unit(part.to(device)) @ known.T
        found, order = similar.sort(dim=1, descending=True, stable=True)
        rows.append(order[:, :num].cpu())
        cosines.append(found[:, :num].cpu())
    return Neighbours(torch.cat(rows).numpy(), torch.cat(cosines).numpy())


def _unit(rows: Tensor) -> Tensor:
    """Scale rows to length 1.

    Raises:
        NotFiniteError: A row has no length, as that of an overflow: all would be its neighbours.
    """
    require_finite("the lengths of the features", rows.norm(dim=1))
    return F.normalize(rows)


class KnnConfig(Config):
    """Weighted vote of the k nearest training images, by frozen features.

    Features are globally averaged and compared by cosine similarity; a neighbour's vote weighs
    exp(cosine / temperature) (Wu et al. 2018, section 3.4).
    """

    name: Literal["knn"]
    neighbours: tuple[Annotated[int, Field(gt=0)], ...] = Field((1, 5, 20, 200), min_length=1)
    """Values of k. Those above the number of training images are skipped and reported."""
    temperature: float = Field(0.1, gt=0)
    """Temperature of the votes' weights."""

    def poolings(self, *, multi_label: bool) -> tuple[Pooling, ...]:
        """Return the features the job reads."""
        return (GAP,)


def run_knn(
    job: KnnConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Score every stage for every k.

    Raises:
        ConfigError: There are fewer training images than the smallest k.
    """
    started = time.monotonic()
    task = setting.task
    num = len(task.train.sample_ids)
    counts = [k for k in job.neighbours if k <= num]
    if not counts:
        raise ConfigError(
            f"knn.neighbours (={list(job.neighbours)}) must have a k of at most {num}, the number "
            "of training images; add a smaller one."
        )
    seeds = seeds_of(trunk, setting.seeds)
    found: dict[tuple[str, int], list[float]] = {}
    for number, seed in enumerate(seeds):
        poolings = job.poolings(multi_label=task.train.is_multi_label)
        frozen = frozen_features(setting, trunk, seed, poolings, on_progress)
        for layer in frozen.layers:
            near = nearest(*frozen.rows(layer), max(counts), setting.device)
            for k in counts:
                score = vote_score(near, task, k, job.temperature)
                found.setdefault((layer, k), []).append(score)
        on_progress(f"{trunk.name}: neighbours", number + 1, len(seeds))
    seconds = time.monotonic() - started
    details: dict[str, Any] = {"left_out": [k for k in job.neighbours if k > num]}
    return [
        Score(
            job=job.name,
            trunk=trunk.name,
            layer=layer,
            metric=metric_of(task, k),
            scores=tuple(scores),
            train_images=num,
            test_images=len(task.test.sample_ids),
            seconds=seconds / len(found),
            details={"neighbours": k, **details},
        )
        for (layer, k), scores in found.items()
    ]


def metric_of(task: TransferTask, k: int) -> str:
    """Describe the score in words."""
    voters = "the nearest neighbour" if k == 1 else f"the {k} nearest neighbours"
    if task.train.is_multi_label:
        return (
            f"mean average precision of the weighted vote of {voters}, percent (area under the "
            "interpolated precision-recall curve; difficult objects are left out of the test)"
        )
    return f"mean per-class accuracy of the weighted vote of {voters}, percent"


def vote_score(near: Neighbours, task: TransferTask, k: int, temperature: float) -> float:
    """Score the votes of k neighbours, percent."""
    votes = votes_of(near, task, k, temperature)
    targets = task.test.targets
    if targets.ndim == 2:
        return 100 * defined_mean(average_precisions(votes, targets, definition="area"))
    right = votes.argmax(axis=1) == targets
    return 100 * float(np.mean([right[targets == c].mean() for c in np.unique(targets)]))


def votes_of(
    near: Neighbours, task: TransferTask, k: int, temperature: float
) -> NDArray[np.float64]:
    """Sum the weights of the neighbours that show each class, float64 (M, C)."""
    # Relative to the nearest, so that no weight overflows.
    cosines = near.cosines[:, :k].astype(np.float64)
    weights = np.exp((cosines - cosines[:, :1]) / temperature)
    shown = task.train.targets[near.rows[:, :k]]
    if shown.ndim == 3:
        summed: NDArray[np.float64] = np.einsum("mk,mkc->mc", weights, (shown == 1) * 1.0)
        return summed
    votes = np.zeros((len(weights), len(task.classes)))
    np.add.at(votes, (np.arange(len(weights))[:, None], shown), weights)
    return votes
