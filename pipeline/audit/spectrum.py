"""Traces of resampling: does the sharpness of tiles say where they come from?"""

# Shapes: N images, T tiles, D features of a tile.

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.evidence import Answers, Evidence
from pipeline.audit.probing import (
    asked_pairs,
    describe,
    generator,
    grid_of,
    linear,
    nothing,
    predict,
    some,
)
from pipeline.pretext.context import ContextConfig

_MOST_IMAGES = 2000
_RINGS = 10
_SECTORS = 2
"""Waves that run down, and waves that run to the right."""
_LOWEST = 0.08
"""Cycles per px; below lies what the picture shows, not how it was resampled."""


def probe_spectrum(evidence: Evidence, *, seed: int) -> Answers:
    """Ask the high frequencies of tiles for the pretext's label; for jigsaw and context.

    How fast power falls with frequency tells by what kernel and scale a tile was resampled. All
    tiles of an image must be treated alike, or differently without regard to their place.

    Returns:
        Context: one answer for each pair of neighbours, which of 8 directions, from the difference
        of their spectra. Jigsaw: one for each tile, which cell. `scale_r2`: how much of the scale
        of the crop, the same for all tiles of an image, the spectra tell in other images.
    """
    grid = grid_of(evidence.task)
    if grid < 2:
        return nothing(1.0)
    images = some(len(evidence.views), _MOST_IMAGES, generator(seed))
    spectra = describe(evidence, images, _log_power)  # (n, T, D)
    if isinstance(evidence.task, ContextConfig):
        features, labels = asked_pairs(evidence, images, spectra)
        chance = evidence.task.chance
    else:
        features, chance = spectra, 1 / (grid * grid)
        labels = np.tile(np.arange(grid * grid), (len(images), 1))
    image = np.repeat(images, labels.shape[1])
    said = predict(linear, features.reshape(len(image), -1), labels.ravel(), image)
    scale = evidence.plan.crops[images, 2] / evidence.task.tiles.crop_px
    return Answers(
        right=(said == labels.ravel()).astype(np.float64),
        image=image,
        chance=chance,
        detail={"scale_r2": _explained(spectra.mean(axis=1), np.log(scale))},
    )


def _log_power(views: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum the power of tiles (n, T, 3, H, H) over rings and sectors: log, (n, T, 20)."""
    gray = views.mean(axis=2)
    side = gray.shape[-1]
    window = np.hanning(side + 2)[1:-1].astype(np.float32)
    waves = np.fft.rfft2((gray - gray.mean(axis=(2, 3), keepdims=True)) * np.outer(window, window))
    power = waves.real**2 + waves.imag**2
    down, right = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
    radius = np.hypot(down, right)
    edges = np.linspace(_LOWEST, 0.5, _RINGS + 1)
    ring = np.digitize(radius, edges) - 1  # -1 below; _RINGS in the corners.
    part = np.where((ring >= 0) & (ring < _RINGS), ring * _SECTORS + (np.abs(down) < right), -1)
    found = [power[..., part == k].mean(axis=-1) for k in range(_RINGS * _SECTORS)]
    return np.log(np.stack(found, axis=-1) + 1e-3).astype(np.float32)


def _explained(features: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Return R^2 of a linear fit to half of the examples, asked of the other half."""
    centred = np.column_stack([features - features.mean(axis=0), np.ones(len(features))])
    fitted, asked = centred[::2], centred[1::2]
    squares = fitted.T @ fitted + 1e-3 * len(fitted) * np.eye(fitted.shape[1])
    weights = np.linalg.solve(squares, fitted.T @ target[::2])
    spread = float(((target[1::2] - target[::2].mean()) ** 2).sum())
    left = float(((target[1::2] - asked @ weights) ** 2).sum())
    return 1 - left / spread if spread > 0 else 0.0
