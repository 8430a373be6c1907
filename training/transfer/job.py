"""Inputs and outputs that all jobs of a transfer share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.shards.store import Store
from training.models.trunks import Trunk

Progress = Callable[[str, int, int], None]
"""Called with the current activity, the number done, and the total."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled images of one side of a split. Shapes: N images, C classes."""

    store: Store
    sample_ids: NDArray[np.int64]
    """(N,), sample ids in the store."""
    targets: NDArray[np.int64]
    """(N,), class numbers; for multi-label sets (N, C): 1 shown, 0 not shown, -1 shown but
    difficult."""

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may show several classes."""
        return self.targets.ndim == 2


@dataclass(frozen=True, slots=True)
class TransferTask:
    """Images to learn from and images to test on."""

    train: Labelled
    test: Labelled
    classes: tuple[str, ...]
    """Names of the C classes."""
    overlap: dict[str, int]
    """Number of images shared by "train/test", "pretrain/train" and "pretrain/test"."""
    notes: tuple[str, ...] = ()
    """Exclusions and oddities, one line each."""


@dataclass(frozen=True, slots=True)
class NamedTrunk:
    """A trunk under comparison."""

    name: str
    """pretrained, random, supervised, or the config's name for a weights file."""
    digest: str
    """SHA-256 of the weights file; for random weights, what they are drawn by."""
    build: Callable[[int], Trunk]
    """Builds the trunk on the CPU; the seed is that of randomly drawn weights."""
    draws_weights: bool
    """Whether the weights depend on the seed."""
    weights: str = ""
    """Path of the weights file; empty for random weights."""
    notes: tuple[str, ...] = ()
    """How the file's names were read, one line each."""


def seeds_of(trunk: NamedTrunk, seeds: Sequence[int]) -> Sequence[int]:
    """Return the seeds that a job without randomness of its own must run: one for fixed weights."""
    return seeds if trunk.draws_weights else seeds[:1]


def each_seed(what: str, seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield each seed and a line that says which of them is running."""
    for number, seed in enumerate(seeds, start=1):
        yield seed, f"{what}, seed {number} of {len(seeds)}"


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings that all jobs of a transfer share."""

    task: TransferTask
    device: torch.device
    view_px: int
    seeds: Sequence[int]
    """Seeds of weights, draws and orders; a deterministic job runs once."""
    batch: int
    """Images in one forward pass where nothing is trained."""
    threads: int
    precision: str
    folder: Path
    """Folder of the run's transfer; a job's pictures and other files go below it."""


@dataclass(frozen=True, slots=True)
class Score:
    """One result of one job on one trunk."""

    job: str
    trunk: str
    layer: str
    """Name of the features or of the first trained layer; "" where the whole trunk is trained."""
    metric: str
    """Definition of the metric in words, with its unit."""
    scores: tuple[float, ...]
    """One for each seed or draw."""
    train_images: int
    test_images: int
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    """Further findings in plain JSON: early scores, scores by class, chosen costs, ..."""

    @property
    def score(self) -> float:
        """Mean of `scores`."""
        return float(np.mean(self.scores))


class NotFiniteError(ConfigError):
    """Numbers of a trunk that are NaN or infinite: no score comes of them."""


def count_odd(values: Tensor) -> int:
    """Count the values that are NaN or infinite."""
    if not (values.is_floating_point() or values.is_complex()):
        return 0
    return int(values.numel() - int(values.isfinite().sum()))


def require_finite(what: str, values: Tensor | NDArray[np.floating[Any]]) -> None:
    """Refuse numbers that no score may come of.

    Args:
        what: What they are, in the plural, with their layer.
        values: Any shape.

    Raises:
        NotFiniteError: A value is NaN or infinite.
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    odd = count_odd(tensor)
    if odd:
        raise NotFiniteError(f"{what} are not finite ({odd} of {tensor.numel()} values)")


def require_finite_model(model: torch.nn.Module) -> None:
    """Refuse a trained model with a weight or a statistic that is not finite.

    Raises:
        NotFiniteError: A value is NaN or infinite.
    """
    for name, values in model.state_dict().items():
        require_finite(f"the trained weights {name}", values)
