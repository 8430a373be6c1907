"""What every job of a transfer is given, and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.shards.store import Store
from training.models.trunks import Trunk

Progress = Callable[[str, int, int], None]
"""Gets what is done now, how much of it, out of how much."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled images of one side of a split; N images, C classes."""

    store: Store
    sample_ids: NDArray[np.int64]
    """(N,), in the store."""
    targets: NDArray[np.int64]
    """(N,), class numbers; or, where an image may show several classes, (N, C): 1 shown, 0 not
    shown, -1 shown but difficult."""

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may show several classes."""
        return self.targets.ndim == 2


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned on which images, and tested on which."""

    train: Labelled
    test: Labelled
    classes: tuple[str, ...]
    """Names of the C classes."""
    overlap: dict[str, int]
    """Images whose bytes are in both: "train/test", "pretrain/train", "pretrain/test"."""
    notes: tuple[str, ...] = ()
    """What was left out or odd, a line each."""


@dataclass(frozen=True, slots=True)
class NamedTrunk:
    """A trunk to compare."""

    name: str
    """pretrained, random, supervised, or the name the config gives to a file of weights."""
    digest: str
    """Names its weights; "random" and the seed where they are drawn."""
    build: Callable[[int], Trunk]
    """Makes the trunk with its weights on the CPU; the seed is that of weights that are drawn, for
    a random trunk all of them."""
    draws_weights: bool
    """Whether another seed gives other weights."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all jobs of a transfer share."""

    task: Task
    device: torch.device
    view_px: int
    seeds: Sequence[int]
    """Of weights, draws and orders; a job that draws nothing runs once."""
    batch: int
    """Images in one pass where nothing is trained."""
    threads: int
    precision: str
    folder: Path
    """Of the run's transfer: pictures and other files of a job go below it."""


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one trunk: what the user asked for."""

    job: str
    trunk: str
    layer: str
    """Name of the features, of the first trained layer, or "" where the whole trunk is trained."""
    metric: str
    """Definition in words, with its unit."""
    scores: tuple[float, ...]
    """One for each seed or draw."""
    train_images: int
    test_images: int
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    """Whatever else the job found: early and final scores, scores by class, costs that were chosen;
    plain JSON."""

    @property
    def score(self) -> float:
        """Mean of `scores`."""
        return float(np.mean(self.scores))
