"""What the pixel probes share: views in chunks, the grid of tiles, prediction across images."""

# Shapes: N images, T tiles, V views that the network sees of an image, M examples, D features.

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import GroupKFold

from pipeline.audit.evidence import Answers, Evidence
from pipeline.pretext.context import ContextConfig, neighbours
from pipeline.pretext.multitask import Task
from pipeline.pretext.normalize import see
from pipeline.pretext.plan import LUMA
from pipeline.pretext.rotation import RotationConfig
from pipeline.pretext.supervised import SupervisedConfig

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


def grid_of(task: Task) -> int:
    """Return the tiles on a side; 1 where a task cuts none."""
    return 1 if isinstance(task, RotationConfig | SupervisedConfig) else task.grid


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
    """Describe every view that the network sees of some images, normalised as it is there.

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
