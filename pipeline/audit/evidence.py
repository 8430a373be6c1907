"""What probes look at, what they share, and how their answers are scored."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import GroupKFold

from pipeline.pretext.context import ContextConfig, neighbours
from pipeline.pretext.multitask import Task
from pipeline.pretext.normalize import see
from pipeline.pretext.plan import LUMA, TilePlan
from pipeline.pretext.rotation import RotationConfig

# Shapes: N images, T tiles of an image, V views that the network sees of it, M answers or examples,
# D features, R resamples.


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


GRAY_WEIGHTS = np.array(LUMA, np.float32)
_CHUNK_BYTES = 32 << 20
_FOLDS = 5
_SHRINKAGE = 0.01
Model = Callable[[], LinearDiscriminantAnalysis | GradientBoostingClassifier]


def nothing(chance: float) -> Answers:
    """Return no answers, where a task has nothing to ask of a probe."""
    return Answers(np.empty(0), np.empty(0, np.int64), chance, {})


def generator(seed: int) -> np.random.Generator:
    """Make the generator that a probe draws its subset from."""
    return np.random.Generator(np.random.Philox(seed))


def some(num: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw at most `most` of 0..num - 1, ascending."""
    return np.sort(rng.permutation(num)[:most]).astype(np.int64)


def beside(grid: int) -> NDArray[np.int64]:
    """List the tiles that share a side: int64 (2, P, 2), left and right first, then upper, lower.

    >>> beside(2).tolist()
    [[[0, 1], [2, 3]], [[0, 2], [1, 3]]]
    """
    cells = np.arange(grid * grid).reshape(grid, grid)
    right = np.stack([cells[:, :-1].ravel(), cells[:, 1:].ravel()], axis=1)
    below = np.stack([cells[:-1].ravel(), cells[1:].ravel()], axis=1)
    return np.stack([right, below])


def asked_pairs(
    evidence: Evidence, images: NDArray[np.int64], features: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Compare the patches of the pairs that context prediction asks; directions are drawn evenly.

    Args:
        evidence: Of a task of context prediction.
        images: int64 (n,), which of its images.
        features: float64 (n, T, D), of their patches.

    Returns:
        float64 (n, P, D): the first patch's features less the second's; int64 (n, P): direction.
    """
    assert isinstance(evidence.task, ContextConfig)
    asked = neighbours(evidence.task.grid)[evidence.plan.labels[images]]
    row = np.arange(len(images))[:, None]
    return features[row, asked[..., 0]] - features[row, asked[..., 1]], asked[..., 2]


def describe(
    evidence: Evidence,
    images: NDArray[np.int64],
    descriptor: Callable[[NDArray[np.float32]], NDArray[np.generic]],
) -> NDArray[np.float64]:
    """Describe every view that the network sees of some images, normalized as for the network.

    Args:
        evidence: The views.
        images: int64 (n,), which of them.
        descriptor: Maps float32 (m, V, 3, H, W) to (m, ...).

    Returns:
        float64 (n, ...), m images at a time.
    """
    found = []
    with torch.inference_mode():
        for rows in _chunks(evidence, images):
            chunk = np.ascontiguousarray(evidence.views[rows])
            views = see(evidence.task, torch.from_numpy(chunk))
            views = views.contiguous().view(len(rows), -1, *views.shape[1:])
            found.append(descriptor(views.numpy()))
    return np.concatenate(found).astype(np.float64)


def describe_raw(
    evidence: Evidence,
    images: NDArray[np.int64],
    descriptor: Callable[[NDArray[np.float32]], NDArray[np.generic]],
) -> NDArray[np.float64]:
    """Describe every view of some images as it left the graph, 0..255; else as `describe`."""
    found = []
    for rows in _chunks(evidence, images):
        chunk = evidence.views[rows].astype(np.float32)
        found.append(descriptor(np.ascontiguousarray(np.moveaxis(chunk, -1, 2))))
    return np.concatenate(found).astype(np.float64)


def pooled(planes: NDArray[np.float32], px: int) -> NDArray[np.float32]:
    """Average planes (..., H, W) down to (..., px, px)."""
    flat = torch.from_numpy(np.ascontiguousarray(planes)).flatten(0, -3)[:, None]
    small = torch.nn.functional.adaptive_avg_pool2d(flat, px)
    found: NDArray[np.float32] = small.view(*planes.shape[:-2], px, px).numpy()
    return found


def linear() -> LinearDiscriminantAnalysis:
    """Make a linear probe with a closed form: no steps to tune, no seed, no middle class masked."""
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=_SHRINKAGE)


def predict(
    model: Model,
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    image: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Predict each example by a model that has seen other images only.

    Args:
        model: Makes an untrained model.
        features: float64 (M, D).
        labels: int64 (M,).
        image: int64 (M,), at least two different ones.

    Returns:
        int64 (M,): predicted labels.
    """
    deviation = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1)
    found = np.empty(len(labels), np.int64)
    folds = GroupKFold(min(_FOLDS, len(np.unique(image))))
    for train, test in folds.split(scaled, labels, image):
        found[test] = model().fit(scaled[train], labels[train]).predict(scaled[test])
    return found


def _chunks(evidence: Evidence, images: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    views = 4 if isinstance(evidence.task, RotationConfig) else 1
    floats = 4 * views * int(np.prod(evidence.views.shape[1:]))
    size = max(1, _CHUNK_BYTES // floats)
    return (images[start : start + size] for start in range(0, len(images), size))
