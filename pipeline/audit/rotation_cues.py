"""Cues of rotation: do gradients, colors or brightness say how a view is turned?"""

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.chroma import color_shifts
from pipeline.audit.evidence import (
    GRAY_WEIGHTS,
    Answers,
    Evidence,
    describe,
    generator,
    linear,
    nothing,
    pooled,
    predict,
    some,
)
from pipeline.pretext.rotation import QUARTER_TURNS, RotationConfig

# Shapes: N images, V = 4 turns, D features of a view.


_MOST_IMAGES = 800
_PATCH_PX = 128
"""Side of the central square that gradients are measured in."""
_CHROMA = np.array([[-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]], np.float32)  # JFIF.
_GROUPS = {
    "gradients": slice(0, 6),
    "layout": slice(6, 20),
    "shifts": slice(20, 24),
}


def probe_turns(evidence: Evidence, *, seed: int) -> Answers:
    """Name the quarter turn of a view by simple cues; for rotation.

    Cues are how much stronger gradients run across than down, in luma, whose standard table of
    quantisation in JPEG (annex K.1 of T.81) is not symmetric, and in chroma, whose resolution JPEG
    halves in one direction (4:2:2); the layout of brightness and color at 2 x 2; and shifts between
    colors. Photographs have the sky above: content makes it right more often than a blind guess.
    Images without content, and without JPEG's tables, must not.

    Returns:
        Four answers for each image, by a linear probe of all cues that was fitted to other images;
        `gradients`, `layout`, `shifts`: how often the probe of these cues alone is right.
    """
    if not isinstance(evidence.task, RotationConfig):
        return nothing(1 / len(QUARTER_TURNS))
    images = some(len(evidence.views), _MOST_IMAGES, generator(seed))
    cues = describe(evidence, images, _cues)  # (n, 4, D)
    turns = len(QUARTER_TURNS)
    labels, image = np.tile(np.arange(turns), len(images)), np.repeat(images, turns)
    flat = cues.reshape(len(labels), -1)
    detail = {
        name: float((predict(linear, flat[:, part], labels, image) == labels).mean())
        for name, part in _GROUPS.items()
    }
    return Answers(
        right=(predict(linear, flat, labels, image) == labels).astype(np.float64),
        image=image,
        chance=evidence.task.chance,
        detail=detail,
    )


def _cues(views: NDArray[np.float32]) -> NDArray[np.float64]:
    """Describe views (n, 4, 3, H, H): (n, 4, 24), see `_GROUPS`."""
    luma = np.einsum("nvchw,c->nvhw", views, GRAY_WEIGHTS)
    chroma = np.einsum("nvchw,dc->nvdhw", views, _CHROMA)
    planes = np.concatenate([luma[:, :, None], chroma], axis=2)
    start = max(0, (views.shape[-1] - _PATCH_PX) // 2)
    middle = (..., slice(start, start + _PATCH_PX), slice(start, start + _PATCH_PX))
    gradients = [_balance(planes[middle], order) for order in (1, 2)]
    thirds = pooled(luma, 3)
    layout = [
        pooled(planes[:, :, 1:], 2).reshape(*planes.shape[:2], 8),
        thirds.mean(axis=2),
        thirds.mean(axis=3),
    ]
    shifts = color_shifts(np.ascontiguousarray(views[middle]))
    return np.concatenate([*gradients, *layout, shifts.reshape(*shifts.shape[:2], 4)], axis=2)


def _balance(planes: NDArray[np.float32], order: int) -> NDArray[np.float32]:
    """Compare differences down and across, of planes (..., H, W): log ratio of energies (...)."""
    down = (np.diff(planes, n=order, axis=-2) ** 2).mean(axis=(-2, -1))
    across = (np.diff(planes, n=order, axis=-1) ** 2).mean(axis=(-2, -1))
    ratio: NDArray[np.float32] = np.log((down + 1e-6) / (across + 1e-6))
    return ratio
