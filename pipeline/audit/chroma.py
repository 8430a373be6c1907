"""Chromatic aberration: do shifts between colors say on which side of the lens a tile lies?"""

# Shapes: N images, T tiles, M answers.

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.audit.evidence import (
    Answers,
    Evidence,
    describe_raw,
    generator,
    linear,
    nothing,
    predict,
    some,
)
from pipeline.pretext.plan import PROJECTED, RGB

_MOST_IMAGES = 2000
_FARTHEST = 2.0
"""Shifts are held to this many px: a lens leaves less, color jitter more."""
_ROUNDS = 2
_RIDGE = 1e-3


def probe_chroma(evidence: Evidence, *, seed: int) -> Answers:
    """Tell the side of the image's centre by shifts between colors; for jigsaw and context.

    A lens magnifies red, green and blue differently (Doersch, Gupta and Efros 2015, section 3.1),
    so that red and blue are shifted against green along the radius. Shifts of less than a pixel
    are measured from gradients, robustly; a linear probe turns those of other images into sides.

    Returns:
        One answer for each tile, left or right of the centre, and one, above or below, where the
        tile's centre lies off that line by half a tile or more. Tiles without color, which carry no
        shift, count as split: 0.5. `colored`: share of answers that are not. `radial_r2`: how much
        of the radial shift of red and blue a line through the radius explains, the larger of both.
    """
    if evidence.task.grid < 2:
        return nothing(0.5)
    images = some(len(evidence.views), _MOST_IMAGES, generator(seed))
    shifts = describe_raw(evidence, images, color_shifts)  # (n, T, 2, 2)
    centres = tile_centres(evidence)[images]
    shown = np.isin(evidence.plan.colors[images], (RGB, PROJECTED))
    shown &= np.abs(shifts).max(axis=(2, 3)) > 0  # Stored in gray.
    return Answers(
        *_sides(evidence, images, shifts, centres, shown),
        chance=0.5,
        detail={
            "colored": float(shown.mean()),
            "radial_r2": _explained(shifts[shown], centres[shown]),
        },
    )


def add_aberration(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Magnify red about the centre of an image, as a simple lens does.

    Args:
        image: uint8 (H, W, 3).
        factor: 1.0 to 1.004 is what lenses do; 1.002 moves red by 0.5 px at 250 px from the centre.

    Returns:
        uint8 (H, W, 3), a new array; green and blue are as they were.
    """
    height, width = image.shape[:2]
    out = image.copy()
    if factor == 1:
        return out
    inverse = (1 / factor, 0, width / 2 * (1 - 1 / factor))
    upright = (0, 1 / factor, height / 2 * (1 - 1 / factor))
    red = Image.fromarray(np.ascontiguousarray(image[..., 0]))
    moved = red.transform(
        (width, height),
        Image.Transform.AFFINE,
        (*inverse, *upright),
        Image.Resampling.BICUBIC,
    )
    out[..., 0] = np.asarray(moved)
    return out


def tile_centres(evidence: Evidence) -> NDArray[np.float64]:
    """Return how far tiles lie from the image's centre.

    Returns:
        float64 (N, T, 2): down and right, from centre to centre, in px of the stored image.
    """
    plan, tiles = evidence.plan, evidence.task.tiles
    scale = plan.crops[:, None, 2:] / tiles.crop_px
    inside = plan.crops[:, None, :2] + (plan.anchors + tiles.tile_px / 2) * scale
    middle: NDArray[np.float64] = np.stack([evidence.heights, evidence.widths], axis=1) / 2
    found: NDArray[np.float64] = inside - middle[:, None]
    return found


def color_shifts(views: NDArray[np.float32]) -> NDArray[np.float64]:
    """Measure how far red and blue lie from green.

    Args:
        views: float32 (n, T, 3, H, W).

    Returns:
        float64 (n, T, 2, 2): of red and blue, px down and right; 0 where a tile has no texture or
        its channels are equal.
    """
    green = views[:, :, 1]
    return np.stack([_shift(views[:, :, channel], green) for channel in (0, 2)], axis=2)


def _shift(moved: NDArray[np.float32], still: NDArray[np.float32]) -> NDArray[np.float64]:
    """Fit moved(y, x) = gain * still(y - down, x - right) + offset: (n, T, 2)."""
    middle = (moved + still) / 2
    down = (middle[..., 2:, 1:-1] - middle[..., :-2, 1:-1]) / 2
    right = (middle[..., 1:-1, 2:] - middle[..., 1:-1, :-2]) / 2
    inner = still[..., 1:-1, 1:-1]
    design = np.stack([down, right, inner, np.ones_like(inner)], axis=2)
    design = design.reshape(*design.shape[:3], -1)  # (n, T, 4, E)
    target = moved[..., 1:-1, 1:-1].reshape(*moved.shape[:2], 1, -1)
    weight = np.ones_like(target)
    for _ in range(_ROUNDS):
        weighted = design * weight
        squares = weighted @ design.swapaxes(2, 3)
        squares += np.eye(4, dtype=np.float32) * (1 + _RIDGE * design.shape[-1])
        found = np.linalg.solve(squares, weighted @ target.swapaxes(2, 3))
        residual = np.abs(target - found.swapaxes(2, 3) @ design)
        weight = 1 / (1 + residual / (residual.mean(axis=3, keepdims=True) + 1e-3))
    # A shift by d takes d times the gradient away.
    shifts: NDArray[np.float64] = -found[..., :2, 0].astype(np.float64)
    return np.clip(np.where(np.abs(shifts) < 1e-4, 0, shifts), -_FARTHEST, _FARTHEST)


def _sides(
    evidence: Evidence,
    images: NDArray[np.int64],
    shifts: NDArray[np.float64],
    centres: NDArray[np.float64],
    shown: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Answer above or below, then left or right: right (M,), image (M,)."""
    half = evidence.task.tiles.tile_px / evidence.task.tiles.crop_px / 2
    apart = evidence.plan.crops[images, None, 2] * half
    rows = np.broadcast_to(images[:, None], shown.shape)
    right, image = [], []
    for axis in range(2):
        asked = np.abs(centres[..., axis]) >= apart
        told = asked & shown
        side = (centres[..., axis] > 0).astype(np.int64)
        answers = np.full(shown.shape, 0.5)
        if len(np.unique(rows[told])) > 1:
            said = predict(linear, shifts[told].reshape(-1, 4), side[told], rows[told])
            answers[told] = said == side[told]
        right.append(answers[asked])
        image.append(rows[asked])
    return np.concatenate(right), np.concatenate(image)


def _explained(shifts: NDArray[np.float64], centres: NDArray[np.float64]) -> float:
    """Return R^2 of the radial shift as a multiple of the radius, the larger of red and blue's.

    Args:
        shifts: (M, 2, 2).
        centres: (M, 2).
    """
    radius = np.sqrt((centres**2).sum(axis=1))
    if not radius.any():
        return 0.0
    outward = centres / np.maximum(radius, 1)[:, None]
    found = []
    for channel in range(2):
        along = (shifts[:, channel] * outward).sum(axis=1)
        slope = (along * radius).sum() / (radius**2).sum()
        left = ((along - slope * radius) ** 2).sum()
        found.append(1 - left / max(float((along**2).sum()), 1e-9))
    return float(max(found))
