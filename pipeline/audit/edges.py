"""Edge continuity: do the borders of tiles say which of them belong together?"""

# Shapes: N images, T tiles, K permutations, P pairs of neighbours, E pixels along a border.

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.evidence import (
    Answers,
    Evidence,
    beside,
    describe,
    generator,
    nothing,
    some,
)
from pipeline.pretext.jigsaw import JigsawConfig, permutations_of

_MOST_IMAGES = 2000
_MOST_PUZZLES = 200
_REACH = 2
"""How far, in px, borders are moved along each other in search of the best match."""


def probe_edges(evidence: Evidence, *, seed: int) -> Answers:
    """Find the right and the lower neighbour of each tile by its border; for jigsaw and context.

    A border is extrapolated by half a pixel, and compared by what the gradient along it does
    (Gallagher 2012, section 3): correlation undoes the contrast and brightness that normalisation
    gave to each tile, and its best value over a few px of shift undoes small jitter.

    Returns:
        One answer for each pair of tiles that share a side: is the true neighbour the best of the
        other T - 1 tiles? `solved`: of a sample of jigsaw puzzles, how many the borders alone
        answer, by the best sum over all permutations of the set.
    """
    grid = evidence.task.grid
    if grid < 2:
        return nothing(1.0)
    tiles = grid * grid
    rng = generator(seed)
    images = some(len(evidence.views), _MOST_IMAGES, rng)
    matches = describe(evidence, images, _matches)  # (N, 2, T, T)
    pairs = beside(grid)
    right = []
    for axis in range(2):
        rows = matches[:, axis, pairs[axis, :, 0]]  # (N, P, T)
        true = rows[:, np.arange(len(pairs[axis])), pairs[axis, :, 1]][..., None]
        ties = (rows == rows.max(axis=2, keepdims=True)).sum(axis=2)
        right.append((true[..., 0] == rows.max(axis=2)) / ties)
    answers = np.concatenate(right, axis=1)
    detail = {"right": float(right[0].mean()), "lower": float(right[1].mean())}
    if isinstance(evidence.task, JigsawConfig):
        sample = some(len(images), _MOST_PUZZLES, rng)
        detail["solved"] = _solved(
            evidence.task, matches[sample], evidence.plan.labels[images[sample], 0]
        )
    return Answers(
        right=answers.ravel(),
        image=np.repeat(images, answers.shape[1]),
        chance=1 / (tiles - 1),
        detail=detail,
    )


def _matches(views: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rate every tile as the right (0) and the lower (1) neighbour of every other.

    Args:
        views: (N, T, 3, H, H).

    Returns:
        (N, 2, T, T): how well the second tile continues the first, -1..1; a tile is none of its
        own neighbours, -2.
    """
    # A channel that noise stands in for is faint: the sum is the channel that was kept.
    gray = views.sum(axis=2)
    found = np.stack([_continued(gray), _continued(gray.swapaxes(2, 3))], axis=1)
    tiles = np.arange(views.shape[1])
    found[:, :, tiles, tiles] = -2
    return found


def _continued(gray: NDArray[np.float32]) -> NDArray[np.float32]:
    """Correlate right borders with left ones: (N, T, H, W) to (N, T, T)."""
    ends = _profile(gray[..., -1], gray[..., -2])
    starts = _profile(gray[..., 0], gray[..., 1]).swapaxes(1, 2)
    length = ends.shape[2]
    best = np.full((len(gray), gray.shape[1], gray.shape[1]), -1, np.float32)
    for lag in range(-min(_REACH, length - 1), min(_REACH, length - 1) + 1):
        first = slice(max(0, -lag), length - max(0, lag))
        second = slice(max(0, lag), length - max(0, -lag))
        np.maximum(best, ends[:, :, first] @ starts[:, second], out=best)
    return best


def _profile(outer: NDArray[np.float32], inner: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take the gradient along an extrapolated border (..., E), at unit length: (..., E - 1)."""
    along = np.diff(1.5 * outer - 0.5 * inner, axis=-1)
    along -= along.mean(axis=-1, keepdims=True)
    length = np.sqrt((along**2).sum(axis=-1, keepdims=True))
    unit: NDArray[np.float32] = along / np.maximum(length, 1e-3)
    return unit


def _solved(config: JigsawConfig, matches: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Answer puzzles by borders alone; return the share of right answers.

    Args:
        config: The permutation set.
        matches: (N, 2, T, T), tiles in reading order.
        labels: (N,), the permutation by which each image is shown.
    """
    perms = permutations_of(config)
    cells = np.argsort(perms, axis=1)  # (K, T): which place in the row shows a cell's tile.
    pairs = beside(config.grid)
    right = 0
    for match, label in zip(matches, labels.tolist(), strict=True):
        # Under hypothesis k, cell c holds the tile at place cells[k, c], in truth perms[label].
        laid = perms[label][cells]  # (K, T)
        score = sum(
            match[axis][laid[:, pairs[axis, :, 0]], laid[:, pairs[axis, :, 1]]].sum(axis=1)
            for axis in range(2)
        )
        right += int(np.argmax(score) == label)
    return right / max(1, len(labels))
