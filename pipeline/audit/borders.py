"""Borders: do flat or filled rims say where a tile comes from, or how a view was turned?"""

# Shapes: N images, T tiles, M examples, H side of a tile.

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from pipeline.audit.evidence import Answers, Evidence, chi_square_together
from pipeline.pretext.rotation import QUARTER_TURNS, RotationConfig

_FOLDS = 5
_SIDES = np.array([1, 2, 4, 8])  # Top, right, bottom, left.


def probe_borders(evidence: Evidence, *, seed: int) -> Answers:
    """Name the cell of a tile, or the turn of a view, by which of its four sides are flat.

    A side is flat where its outermost pixels are all equal in one channel, as zeros or another fill
    value are. Which sides are flat is taken for what that comes with most often in other images.
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
        right=(most_often(code, true, image) == true).astype(np.float64),
        image=image,
        chance=1 / asked,
        detail={
            "flat": float((code > 0).mean()),
            "p": chi_square_together(code, true).p,
        },
    )


def most_often(
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
