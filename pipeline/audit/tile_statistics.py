"""Statistics of tiles: do color, contrast or sharpness answer the pretext?"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier

from pipeline.audit.evidence import (
    Answers,
    Evidence,
    asked_pairs,
    beside,
    describe,
    generator,
    linear,
    nothing,
    predict,
    some,
)
from pipeline.pretext.context import ContextConfig

# Shapes: N images, T tiles, M pairs, D features of a tile.


_MOST_FOR_MOMENTS = 1000
_PAIRS_OF_A_KIND = 4
_BINS = np.linspace(-2.5, 2.5, 15)
_DECIMALS = 3
"""Features are rounded: what lies below is the arithmetic's, and no network reads it."""
_FIRST, _HIGHER, _HISTOGRAM = slice(0, 6), slice(6, 12), slice(12, 28)


@dataclass(frozen=True, slots=True)
class _Pairs:
    first: NDArray[np.int64]
    """(M,), tile."""
    second: NDArray[np.int64]
    """(M,), tile."""
    beside: NDArray[np.int64]
    """(M,): 1 where they share a side."""
    row: NDArray[np.int64]
    """(M,): which of the images drawn."""


def probe_moments(evidence: Evidence, *, seed: int) -> Answers:
    """Tell neighbours from other pairs by mean and deviation alone; for jigsaw and context.

    Two probes see, of a pair of tiles, how mean and deviation of each channel differ, alone and
    beside those of the image's other tiles, as the network sees them (Noroozi and Favaro 2016,
    section 4.1): a linear one and boosted trees, each asked of images that it was not fitted to.

    Returns:
        One answer for each pair, as many neighbours as others, by the better of the two.
        `linear`, `boosted`: their accuracies; `direction` or `cell`: the same statistics asked for
        what the pretext asks, with its chance; `higher`, `histogram`: neighbours again, by skewness
        and kurtosis, and by a histogram of 16 bins, which normalisation leaves.
    """
    grid = evidence.task.grid
    if grid < 2:
        return nothing(0.5)
    rng = generator(seed)
    images = some(len(evidence.views), _MOST_FOR_MOMENTS, rng)
    moments = describe(evidence, images, _statistics).round(_DECIMALS)
    pairs = _draw_pairs(len(images), grid, rng)
    boosted = functools.partial(
        GradientBoostingClassifier, n_estimators=40, subsample=0.5, random_state=seed
    )
    answers, detail = [], {}
    for name, model in (("linear", linear), ("boosted", boosted)):
        said = predict(model, _together(moments[..., _FIRST], pairs), pairs.beside, pairs.row)
        answers.append((said == pairs.beside).astype(np.float64))
        detail[name] = float(answers[-1].mean())
    for name, part in (("higher", _HIGHER), ("histogram", _HISTOGRAM)):
        said = predict(linear, _together(moments[..., part], pairs), pairs.beside, pairs.row)
        detail[name] = float((said == pairs.beside).mean())
    detail |= _ask_the_label(evidence, images, moments[..., _FIRST])
    return Answers(
        right=max(answers, key=lambda right: right.mean()),
        image=images[pairs.row],
        chance=0.5,
        detail=detail,
    )


def _statistics(views: NDArray[np.float32]) -> NDArray[np.float32]:
    """Describe tiles (n, T, 3, H, W) by 28 figures: (n, T, 28), see the slices above."""
    pixels = views.reshape(*views.shape[:3], -1)
    mean, deviation = pixels.mean(axis=-1), pixels.std(axis=-1)
    units = (pixels - mean[..., None]) / np.maximum(deviation, 1e-3)[..., None]
    square = units * units
    skewness, kurtosis = (square * units).mean(axis=-1), (square * square).mean(axis=-1)
    gray = units.mean(axis=2)
    places = np.searchsorted(_BINS, gray / np.maximum(gray.std(axis=-1, keepdims=True), 1e-3))
    histogram = np.stack([(places == k).mean(axis=-1) for k in range(len(_BINS) + 1)], axis=-1)
    return np.concatenate(
        [mean, deviation, skewness, np.log(np.maximum(kurtosis, 1e-3)), histogram], axis=-1
    ).astype(np.float32)


def _draw_pairs(num: int, grid: int, rng: np.random.Generator) -> _Pairs:
    """Draw as many neighbours as others from each image."""
    touching = beside(grid).reshape(-1, 2)
    every = np.stack(np.triu_indices(grid * grid, k=1), axis=1)
    taken = (every[:, None] == touching).all(axis=2).any(axis=1)
    chosen = []
    for kind in (every[~taken], every[taken]):
        size = min(_PAIRS_OF_A_KIND, len(kind), int((~taken).sum()))
        order = rng.permuted(np.tile(np.arange(len(kind)), (num, 1)), axis=1)[:, :size]
        chosen.append(kind[order])
    both = np.concatenate(chosen, axis=1)  # (N, 2 * size, 2)
    both = np.where(rng.random(both.shape[:2])[..., None] < 0.5, both, both[..., ::-1])
    size = both.shape[1] // 2
    return _Pairs(
        first=both[..., 0].ravel(),
        second=both[..., 1].ravel(),
        beside=np.tile(np.repeat([0, 1], size), num).astype(np.int64),
        row=np.repeat(np.arange(num), 2 * size),
    )


def _together(features: NDArray[np.float64], pairs: _Pairs) -> NDArray[np.float64]:
    """Describe pairs by what does not depend on their order: (N, T, D) to (M, 3 D + 2).

    A difference counts by itself, and beside those between all tiles of the image; and so does the
    distance of the pair, as its rank among all distances of either tile.
    """
    first, second = features[pairs.row, pairs.first], features[pairs.row, pairs.second]
    apart, usual = np.abs(first - second), features.std(axis=1) + 10**-_DECIMALS
    units = features / usual[:, None]
    distances = np.square(units[:, :, None] - units[:, None]).sum(axis=3)
    own = distances[pairs.row, pairs.first, pairs.second][:, None]
    ranks = np.stack(
        [
            (distances[pairs.row, tile] < own - 1e-9).mean(axis=1)
            for tile in (pairs.first, pairs.second)
        ],
        axis=1,
    )
    parts = [apart, apart / usual[pairs.row], (first + second) / 2, np.sort(ranks, axis=1)]
    return np.concatenate(parts, axis=1)


def _ask_the_label(
    evidence: Evidence, images: NDArray[np.int64], moments: NDArray[np.float64]
) -> dict[str, float]:
    """Ask the moments (N, T, D) for the direction of pairs, or for the cell of tiles."""
    if isinstance(evidence.task, ContextConfig):
        features, labels = asked_pairs(evidence, images, moments)
        name, chance = "direction", evidence.task.chance
    else:
        tiles = moments.shape[1]
        features, labels = moments, np.tile(np.arange(tiles), (len(images), 1))
        name, chance = "cell", 1 / tiles
    image = np.repeat(images, labels.shape[1])
    said = predict(linear, features.reshape(len(image), -1), labels.ravel(), image)
    return {name: float((said == labels.ravel()).mean()), f"{name}_chance": chance}


_MOST_FOR_SPECTRA = 2000
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
    grid = evidence.task.grid
    if grid < 2:
        return nothing(1.0)
    images = some(len(evidence.views), _MOST_FOR_SPECTRA, generator(seed))
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
