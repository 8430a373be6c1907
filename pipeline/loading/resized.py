"""Image files into batches that keep the shape of every image, for detection and segmentation."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dali.graph import GraphOptions
from pipeline.dali.tiles import fitted_graph
from pipeline.dali.webp import decodable
from pipeline.loading.graph_runner import (
    Failure,
    LoaderCounters,
    PlannedBatch,
    run_plans,
)
from pipeline.shards.damage import DamageError
from pipeline.shards.store import Samples

# Shapes: B batch, H/W largest height and width of a batch.


@dataclass(frozen=True, slots=True)
class Fitting:
    """Files that are shown together, and how."""

    rows: NDArray[np.int64]
    """(B,), numbers of the images, passed through."""
    paths: tuple[Path, ...]
    """B files: JPEG, PNG or WebP."""
    stored: NDArray[np.int32]
    """(B, 2), height and width of each file in px."""
    sizes: NDArray[np.int32]
    """(B, 2), height and width in px that each is resized to."""
    mirrored: NDArray[np.int32]
    """(B,), 1 where left and right are exchanged, after the resize."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A batch of images in their own shapes."""

    plan: Fitting
    views: Tensor
    """uint8 (B, H, W, 3), on the graph's device; image b fills the first `plan.sizes[b]` rows and
    columns, and the rest is 0."""


def fit(stored: NDArray[np.int32], *, short_px: int, long_px: int) -> NDArray[np.int32]:
    """Return sizes of the same shape, the short side `short_px`, less where the long is too long.

    Args:
        stored: (B, 2), height and width.
        short_px: Of the short side.
        long_px: Largest long side.

    Returns:
        int32 (B, 2), at least 1, rounded to the nearest.
    """
    short, long = stored.min(axis=1), stored.max(axis=1)
    scale = np.minimum(short_px / short, long_px / long)
    sizes: NDArray[np.int32] = np.maximum(1, np.rint(stored * scale[:, None])).astype(np.int32)
    return sizes


def fitted_batches(
    plans: Iterable[Fitting], options: GraphOptions
) -> Generator[Fitted, None, None]:
    """Yield the images of every plan, in order; nothing is replaced.

    Raises:
        DamageError: A file is missing, does not decode, or has another size than its plan says.
    """
    asked: deque[Fitting] = deque()

    def planned() -> Iterator[PlannedBatch]:
        for step, plan in enumerate(plans):
            payloads = [_read(path) for path in plan.paths]
            labels = np.full(len(plan.rows), -1, np.int64)
            samples = Samples(payloads, plan.stored[:, 0], plan.stored[:, 1], labels, {})
            arrays = (payloads, plan.sizes.astype(np.float32), plan.mirrored[:, None])
            asked.append(plan)
            yield PlannedBatch(0, step, plan.rows, 0, samples, labels, (), arrays)

    def stop(failure: Failure) -> PlannedBatch:
        # What ran before it is taken: the failed batch is the first that has the same rows.
        plan = next(p for p in asked if p.rows is failure.planned.sample_ids)
        names = ", ".join(str(plan.paths[position]) for position in failure.positions)
        raise DamageError(f"{names}: the image does not decode, or not to its size when listed.")

    build = lambda feed: fitted_graph(feed, options)  # noqa: E731
    for _, views in run_plans(planned(), build, stop, LoaderCounters()):
        yield Fitted(asked.popleft(), views)


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return decodable(np.frombuffer(path.read_bytes(), np.uint8))
    except OSError as error:
        raise DamageError(f"{path} cannot be read: {error.strerror}.") from None
