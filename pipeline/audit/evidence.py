"""What a probe looks at, and what it finds."""

# Shapes: N images, T tiles of an image, M answers of a probe.

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.pretext.multitask import Task
from pipeline.pretext.plan import TilePlan


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the graph emitted for one task over the images of an audit."""

    task: Task
    views: NDArray[np.uint8]
    """(N, T, H, W, 3), tiles in reading order, as they leave the graph."""
    plan: TilePlan
    """What was drawn for them, N images in its first axis."""
    sample_ids: NDArray[np.int64]
    """(N,)."""
    heights: NDArray[np.int32]
    """(N,), of the stored images."""
    widths: NDArray[np.int32]
    """(N,), of the stored images."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a probe said, answer by answer."""

    right: NDArray[np.float64]
    """(M,): 1 where an answer is right, 0 where it is wrong; 0.5 and the like where it is split."""
    image: NDArray[np.int64]
    """(M,): the image that each answer is about, 0..N - 1; the bootstrap draws whole images."""
    chance: float
    """What a blind guess gets."""
    detail: dict[str, float]
    """Further figures for the table, by name, in plain units."""
