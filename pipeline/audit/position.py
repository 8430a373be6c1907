"""Position: do looks, JPEG blocks or flat borders say which cell a tile comes from?"""

import math

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from pipeline.audit.evidence import (
    GRAY_WEIGHTS,
    Answers,
    Evidence,
    chi_square_together,
    describe,
    describe_raw,
    generator,
    linear,
    nothing,
    pooled,
    predict,
    some,
)
from pipeline.pretext.rotation import QUARTER_TURNS, RotationConfig

# Shapes: N images, T tiles, M answers, H side of a tile.

_MOST_IMAGES = 2000


def probe_places(evidence: Evidence, *, seed: int) -> Answers:
    """Name the cell of single tiles by a small picture of them; for jigsaw and context.

    Photographs have the sky above: content makes it right more often than a blind guess. Images
    without content must not.

    Returns:
        One answer for each tile, of images that the linear probe was not fitted to; `row` and
        `column`: how often those are right.
    """
    grid = evidence.task.grid
    if grid < 2:
        return nothing(1.0)
    images = some(len(evidence.views), _MOST_IMAGES, generator(seed))
    features = describe(evidence, images, _small_pictures)
    tiles = grid * grid
    cells, image = np.tile(np.arange(tiles), len(images)), np.repeat(images, tiles)
    said = predict(linear, features.reshape(len(cells), -1), cells, image)
    return Answers(
        right=(said == cells).astype(np.float64),
        image=image,
        chance=1 / tiles,
        detail={
            "row": float((said // grid == cells // grid).mean()),
            "column": float((said % grid == cells % grid).mean()),
        },
    )


def _small_pictures(views: NDArray[np.float32]) -> NDArray[np.float32]:
    """Describe tiles (n, T, 3, H, W): (n, T, 80), gray at 8 x 8, colors and edges at 2 x 2."""
    gray = views.mean(axis=2)
    down, right = np.abs(np.diff(gray, axis=-2)), np.abs(np.diff(gray, axis=-1))
    colors = views[:, :, [0, 2]] - views[:, :, [1]]
    parts = [
        pooled(gray, 8),
        pooled(colors[:, :, 0], 2),
        pooled(colors[:, :, 1], 2),
        pooled(down, 2),
        pooled(right, 2),
    ]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)


BLOCK = 8


def probe_blocks(evidence: Evidence, *, seed: int) -> Answers:
    """Read each tile's column and row off the phase of JPEG's blocks; for jigsaw and context.

    The phase is where steps between neighbouring pixels exceed those around them most. A phase is
    read as the column that it comes with most often in other images. Images that are stored at
    the size at which they are cut have their blocks at the same places: with cells of 85 px and no
    jitter, the phase is the column.

    Returns:
        Two answers for each tile: its column, its row. `column`, `row`: how often those are right;
        `bits`: mutual information of phase and place, less what a finite sample pretends, in bits,
        the mean of both axes; at most log2 of the grid's side.
    """
    grid = evidence.task.grid
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


_FOLDS = 5
_SIDES = np.array([1, 2, 4, 8])  # Top, right, bottom, left.


def probe_borders(evidence: Evidence, *, seed: int) -> Answers:
    """Name the cell of a tile, or the turn of a view, by which of its four sides are flat.

    A side is flat where its outermost pixels are all equal in one channel, as zeros or another fill
    value are. Which sides are flat predicts what it comes with most often in other images.
    Photographs with a white ground have flat sides, too: images without content must not tell.

    Args:
        evidence: The views; of rotation, one for each image, or its four turns.
        seed: Not used: nothing is drawn.

    Returns:
        One answer for each tile, or turn. `flat`: share of them with a flat side; `p`: probability
        that flat sides are spread like this where they have nothing to do with the answer.
    """
    del seed
    flat = np.concatenate([_flat_sides(views) for views in _chunks(evidence.views)])  # (N, T, 4)
    if isinstance(evidence.task, RotationConfig) and evidence.task.num_tiles == flat.shape[1]:
        # A quarter turn brings the right side to the top.
        flat = np.concatenate([np.roll(flat, -turn, axis=2) for turn in range(4)], axis=1)
    asked = len(QUARTER_TURNS) if isinstance(evidence.task, RotationConfig) else flat.shape[1]
    code = (flat @ _SIDES).ravel()
    true = np.tile(np.arange(asked), len(flat))
    image = np.repeat(np.arange(len(flat)), asked)
    return Answers(
        right=(_most_often(code, true, image) == true).astype(np.float64),
        image=image,
        chance=1 / asked,
        detail={
            "flat": float((code > 0).mean()),
            "p": chi_square_together(code, true).p,
        },
    )


def _most_often(
    code: NDArray[np.int64], true: NDArray[np.int64], image: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Predict what a code comes with most often in other images; all int64 (M,)."""
    found = np.zeros_like(true)
    folds = min(_FOLDS, len(np.unique(image)))
    for train, test in GroupKFold(folds).split(code, true, image):
        table = np.zeros((int(code.max()) + 1, int(true.max()) + 1), np.int64)
        np.add.at(table, (code[train], true[train]), 1)
        found[test] = table.argmax(axis=1)[code[test]]
    return found


def _chunks(views: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return np.array_split(views, max(1, len(views) // 100))


def _flat_sides(views: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Say which sides are flat: (n, T, H, H, 3) to (n, T, 4)."""
    rims = (views[..., 0, :, :], views[..., :, -1, :], views[..., -1, :, :], views[..., :, 0, :])
    flat = [(rim == rim[..., :1, :]).all(axis=-2).any(axis=-1) for rim in rims]
    return np.stack(flat, axis=-1)
