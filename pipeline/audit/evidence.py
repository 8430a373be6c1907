"""What a probe looks at, and what it finds."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.pretext.multitask import Task
from pipeline.pretext.plan import TilePlan

# Shapes: N images, T tiles of an image, M answers of a probe.


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the graph emitted for one task over the images of an audit."""

    task: Task
    views: NDArray[np.uint8]
    """(N, T, H, W, 3), tiles in reading order, as they leave the graph."""
    plan: TilePlan
    """What was drawn for them, N images in its first axis."""
    sample_ids: NDArray[np.int64]
    """(N,)."""
    heights: NDArray[np.int32]
    """(N,), of the stored images."""
    widths: NDArray[np.int32]
    """(N,), of the stored images."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a probe said, answer by answer."""

    right: NDArray[np.float64]
    """(M,): 1 where an answer is right, 0 where it is wrong; 0.5 and the like where it is split."""
    image: NDArray[np.int64]
    """(M,): the image that each answer is about, 0..N - 1; the bootstrap draws whole images."""
    chance: float
    """What a blind guess gets."""
    detail: dict[str, float]
    """Further figures for the table, by name, in plain units."""


# Shapes: N images, M answers, R resamples.


RESAMPLES = 1000
_TAIL = 2.5
"""Percent cut off at either end: the interval holds 95 %."""


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """What a probe found, on the scale that all shortcuts share."""

    value: float
    """(accuracy - chance) / (1 - chance)."""
    low: float
    """Lower end of the 95 % interval over images; the value itself where nothing was sampled."""
    high: float
    answers: int
    """Answers, or draws or permutations, that it stands on; 0: there was nothing to ask."""
    detail: dict[str, float]
    """Further figures, by name, in plain units."""


def score_of(answers: Answers, *, seed: int) -> ProbeScore:
    """Score answers, and say how sure the score is.

    The bootstrap draws whole images, because the tiles of an image are not independent, `RESAMPLES`
    times as many as there are. The same arguments give the same interval.
    """
    if not answers.right.size:
        return ProbeScore(0.0, 0.0, 0.0, 0, answers.detail)
    names, rows = np.unique(answers.image, return_inverse=True)
    right = np.bincount(rows, weights=answers.right, minlength=len(names))
    asked = np.bincount(rows, minlength=len(names))
    rng = np.random.Generator(np.random.Philox(seed))
    # How often each image is drawn, (R, N): sums over a resample are products of matrices.
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    accuracies = (drawn @ right) / (drawn @ asked)
    low, high = np.percentile(accuracies, [_TAIL, 100 - _TAIL])
    value, low, high = (
        (float(accuracy) - answers.chance) / (1 - answers.chance)
        for accuracy in (answers.right.mean(), low, high)
    )
    return ProbeScore(value, low, high, len(answers.right), answers.detail)


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """Whether counts differ from what is expected, and by how much."""

    p: float
    """Probability of counts at least so far off, if nothing but chance were at work."""
    effect: float
    """0 as expected, 1 as far off as can be: Cramer's V, less what chance contributes."""


def chi_square_even(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> ChiSquare:
    """Compare counts (K,) with shares (K,) that add up to 1, each above 0."""
    total = counts.sum()
    expected = total * shares
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return _judge(statistic, len(counts) - 1, float(total), len(counts) - 1)


def chi_square_together(first: NDArray[np.int64], second: NDArray[np.int64]) -> ChiSquare:
    """Test whether two codes, int64 (M,) each, are independent."""
    _, rows = np.unique(first, return_inverse=True)
    _, columns = np.unique(second, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    if min(table.shape) < 2:
        return ChiSquare(1.0, 0.0)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    free = (table.shape[0] - 1) * (table.shape[1] - 1)
    return _judge(statistic, free, float(table.sum()), min(table.shape) - 1)


def _judge(statistic: float, free: int, total: float, most: int) -> ChiSquare:
    half = torch.tensor([free / 2, statistic / 2], dtype=torch.float64)
    p = float(torch.special.gammaincc(half[0], half[1]))
    # Chance alone gives a statistic of `free`.
    return ChiSquare(p, float(np.sqrt(max(0.0, statistic - free) / (total * most))))
