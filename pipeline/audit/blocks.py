"""JPEG's grid of 8 x 8 blocks: does its phase in a tile say which cell the tile comes from?"""

# Shapes: N images, T tiles, M answers.

import math

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from pipeline.audit.evidence import Answers, Evidence
from pipeline.audit.probing import GRAY_WEIGHTS, describe_raw, generator, grid_of, nothing, some

BLOCK = 8
_MOST_IMAGES = 2000
_FOLDS = 5


def probe_blocks(evidence: Evidence, *, seed: int) -> Answers:
    """Read each tile's column and row off the phase of JPEG's blocks; for jigsaw and context.

    The phase is where steps between neighbouring pixels exceed those around them most. A phase is
    taken for the column that it comes with most often in other images. Images that are stored at
    the size at which they are cut have their blocks at the same places: with cells of 85 px and no
    jitter, the phase is the column.

    Returns:
        Two answers for each tile: its column, its row. `column`, `row`: how often those are right;
        `bits`: mutual information of phase and place, less what a finite sample pretends, in bits,
        the mean of both axes; at most log2 of the grid's side.
    """
    grid = grid_of(evidence.task)
    if grid < 2:
        return nothing(1.0)
    images = some(len(evidence.views), _MOST_IMAGES, generator(seed))
    phases = describe_raw(evidence, images, _phases).astype(np.int64)  # (n, T, 2)
    row, column = np.divmod(np.arange(grid * grid), grid)
    image = np.repeat(images, grid * grid)
    answers, bits = [], []
    for axis, place in enumerate((column, row)):
        code, true = phases[..., axis].ravel(), np.tile(place, len(images))
        answers.append((_most_often(code, true, image) == true).astype(np.float64))
        bits.append(_shared_bits(code, true))
    return Answers(
        right=np.concatenate(answers),
        image=np.tile(image, 2),
        chance=1 / grid,
        detail={
            "column": float(answers[0].mean()),
            "row": float(answers[1].mean()),
            "bits": sum(bits) / 2,
        },
    )


def _phases(views: NDArray[np.float32]) -> NDArray[np.int64]:
    """Find where blocks begin: (n, T, 3, H, W) to (n, T, 2), along x and y, 0..7."""
    luma = np.einsum("ntchw,c->nthw", views, GRAY_WEIGHTS)
    return np.stack([_phase(luma), _phase(luma.swapaxes(2, 3))], axis=2)


def _phase(luma: NDArray[np.float32]) -> NDArray[np.int64]:
    step = np.abs(np.diff(luma, axis=-1))  # From pixel x to x + 1.
    excess = step[..., 1:-1] - (step[..., :-2] + step[..., 2:]) / 2
    # A single sharp edge must not outweigh the faint steps of many blocks.
    profile = np.clip(excess, -4, 4).mean(axis=-2)
    size = profile.shape[-1] // BLOCK * BLOCK
    folded = profile[..., :size].reshape(*profile.shape[:-1], -1, BLOCK).mean(axis=-2)
    # profile[0] is the step from pixel 1 to 2: a block that begins at 2 has phase 2.
    found: NDArray[np.int64] = (folded.argmax(axis=-1) + 2) % BLOCK
    return found


def _most_often(
    code: NDArray[np.int64], true: NDArray[np.int64], image: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Predict what a code comes with most often in other images; all int64 (M,)."""
    found = np.empty_like(true)
    for train, test in GroupKFold(min(_FOLDS, len(np.unique(image)))).split(code, true, image):
        found[test] = _table(code[train], true[train]).argmax(axis=1)[code[test]]
    return found


def _table(code: NDArray[np.int64], true: NDArray[np.int64]) -> NDArray[np.int64]:
    table = np.zeros((BLOCK, int(true.max()) + 1), np.int64)
    np.add.at(table, (code, true), 1)
    return table


def _shared_bits(code: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Estimate the mutual information of two codes, in bits, with Miller's correction (1955)."""
    counts = _table(code, true)
    joint = counts / counts.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    seen = joint > 0
    plain = float((joint[seen] * np.log2(joint[seen] / apart[seen])).sum())
    free = ((counts.sum(axis=1) > 0).sum() - 1) * ((counts.sum(axis=0) > 0).sum() - 1)
    return plain - float(free) / (2 * len(code) * math.log(2))
