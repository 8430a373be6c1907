"""Absolute position: does a single tile say which cell it comes from?"""

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.evidence import Answers, Evidence
from pipeline.audit.probing import (
    describe,
    generator,
    grid_of,
    linear,
    nothing,
    pooled,
    predict,
    some,
)

# Shapes: N images, T tiles.


_MOST_IMAGES = 2000


def probe_places(evidence: Evidence, *, seed: int) -> Answers:
    """Name the cell of single tiles by a small picture of them; for jigsaw and context.

    Photographs have the sky above: content makes it right more often than a blind guess. Images
    without content must not.

    Returns:
        One answer for each tile, of images that the linear probe was not fitted to; `row` and
        `column`: how often those are right.
    """
    grid = grid_of(evidence.task)
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
