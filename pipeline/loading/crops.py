"""Crops of labelled images, planned in NumPy: random ones to train on, and those of tests."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from pipeline.config import Config
from pipeline.dali.graph import GraphOptions
from pipeline.dali.tiles import crop_graph
from pipeline.loading.graph_runner import Batch, Failure, LoaderCounters, PlannedBatch, run_plans
from pipeline.pretext.draws import Draws
from pipeline.shards.damage import DamageError
from pipeline.shards.store import Store

# Shapes: B batch, V views of an image.


_TRIES = 10
"""Rectangles drawn for a view; the first that fits into the image is used."""


class CropConfig(Config):
    """Random resized crops (Szegedy et al. 2015, section 6), half of them mirrored."""

    min_area: float = Field(0.08, gt=0, le=1)
    """Smallest share of the image's area that is seen."""
    max_area: float = Field(1.0, gt=0, le=1)
    """Largest share of the image's area that is seen."""
    max_ratio: float = Field(4 / 3, ge=1)
    """Largest ratio of the crop's long side to its short one, before it is resized to a square."""
    mirror_probability: float = Field(0.5, ge=0, le=1)
    """Share of views whose left and right are exchanged."""

    @model_validator(mode="after")
    def _areas_are_in_order(self) -> Self:
        if self.min_area > self.max_area:
            raise ValueError(
                f"min_area (={self.min_area}) exceeds max_area (={self.max_area}); lower it."
            )
        return self


@dataclass(frozen=True, slots=True)
class CropPlan:
    """What to show of each image of a batch."""

    crops: NDArray[np.int32]
    """(B, V, 4): top, left, height, width, in pixels of the stored image."""
    mirrored: NDArray[np.int32]
    """(B, V): 1 where left and right are exchanged."""


@dataclass(frozen=True, slots=True)
class Cropping:
    """How views are made of an image."""

    num_views: int
    """Views of an image, V."""
    plan: Callable[[NDArray[np.int32], NDArray[np.int32], Draws], CropPlan]
    """Gets heights (B,), widths (B,) and the draws of the batch."""


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """Samples that are shown together."""

    epoch: int
    """Epoch that keys the draws."""
    step: int
    sample_ids: NDArray[np.int64]
    """(B,), at most as many as the graph takes."""
    labels: NDArray[np.int64] | None
    """(B, ...), passed through; None takes the class numbers of the store."""


def random_cropping(config: CropConfig, *, num_views: int, name: str) -> Cropping:
    """Show random resized crops; other names of the draws give other crops of the same sample."""

    def plan(heights: NDArray[np.int32], widths: NDArray[np.int32], draws: Draws) -> CropPlan:
        views = len(heights), num_views
        tried = draws.uniform(f"{name}.crop", num_views * _TRIES * 4).reshape(*views, _TRIES, 4)
        flips = draws.uniform(f"{name}.mirror", num_views)
        crops = random_rectangles(config, heights[:, None], widths[:, None], tried)
        return CropPlan(crops, (flips < config.mirror_probability).astype(np.int32))

    return Cropping(num_views, plan)


def ten_cropping(share: float) -> Cropping:
    """Show squares in the four corners and in the middle, and their mirror images.

    Args:
        share: Of a square's side in the image's short one, 0 to 1 (Krizhevsky et al. 2012 take 224
            of 256 px).
    """

    def plan(heights: NDArray[np.int32], widths: NDArray[np.int32], _: Draws) -> CropPlan:
        side = np.maximum(1, np.rint(share * np.minimum(heights, widths))).astype(np.int32)
        down, right = heights - side, widths - side
        corners = [(0 * down, 0 * right), (0 * down, right), (down, 0 * right), (down, right)]
        places = [*corners, (down // 2, right // 2)]
        five = np.stack([np.stack([*place, side, side], axis=1) for place in places], axis=1)
        flips = np.repeat(np.array([0, 1], np.int32), len(places))
        crops = np.concatenate([five, five], axis=1).astype(np.int32)
        return CropPlan(crops, np.broadcast_to(flips, crops.shape[:2]))

    return Cropping(10, plan)


def central_cropping() -> Cropping:
    """Show the largest central square, as `whole_batches` does."""

    def plan(heights: NDArray[np.int32], widths: NDArray[np.int32], _: Draws) -> CropPlan:
        crops = central_squares(heights, widths)[:, None].astype(np.int32)
        return CropPlan(crops, np.zeros(crops.shape[:2], np.int32))

    return Cropping(1, plan)


def central_squares(heights: NDArray[np.int32], widths: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the largest central square of each image, int32 (B, 4): top, left, height, width."""
    side = np.minimum(heights, widths)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)


def random_rectangles(
    config: CropConfig,
    heights: NDArray[np.int32],
    widths: NDArray[np.int32],
    drawn: NDArray[np.float64],
) -> NDArray[np.int32]:
    """Place rectangles of random area and shape inside images.

    Where none of the tries fits, as in a panorama, the largest central one of an allowed shape is
    taken.

    Args:
        config: Areas and shapes.
        heights: (B, 1).
        widths: (B, 1).
        drawn: (B, V, tries, 4) in [0, 1): area, logarithm of width / height, top, left.

    Returns:
        int32 (B, V, 4): top, left, height, width.
    """
    pixels = (heights * widths.astype(np.float64))[..., None]
    area = pixels * (config.min_area + (config.max_area - config.min_area) * drawn[..., 0])
    ratio = config.max_ratio ** (2 * drawn[..., 1] - 1)
    across, down = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    most_across, most_down = widths[..., None], heights[..., None]
    fits = (across >= 1) & (across <= most_across) & (down >= 1) & (down <= most_down)
    top, left = drawn[..., 2] * (most_down - down + 1), drawn[..., 3] * (most_across - across + 1)
    tried = np.floor(np.stack([top, left, down, across], axis=-1))
    first = fits.argmax(axis=-1)[..., None]  # The first try where none fits.
    taken = np.take_along_axis(tried, first[..., None], axis=-2)[..., 0, :]
    spare = _central_rectangles(heights, widths, config.max_ratio)[:, None]
    found = np.take_along_axis(fits, first, axis=-1)
    return np.where(found, taken, spare).astype(np.int32)


def _central_rectangles(
    heights: NDArray[np.int32], widths: NDArray[np.int32], max_ratio: float
) -> NDArray[np.int32]:
    """Return the largest central rectangle of an allowed shape, int32 (B, 4)."""
    tall, wide = heights[:, 0], widths[:, 0]
    down = np.minimum(tall, np.maximum(1, np.rint(wide * max_ratio))).astype(np.int32)
    across = np.minimum(wide, np.maximum(1, np.rint(tall * max_ratio))).astype(np.int32)
    return np.stack([(tall - down) // 2, (wide - across) // 2, down, across], axis=1)


def crop_batches(
    store: Store,
    parts: Iterable[SampleGroup],
    cropping: Cropping,
    options: GraphOptions,
    *,
    px: int,
    seed: int,
) -> Iterator[Batch]:
    """Yield the views of each part, in order; nothing is replaced.

    Args:
        store: Shards that hold the samples.
        parts: What is shown together.
        cropping: What is shown of it.
        options: Device, threads, largest part.
        px: Side of a view.
        seed: Of the draws.

    Yields:
        Batches whose views are uint8 (B, V, px, px, 3), with the labels of their parts.

    Raises:
        DamageError: A sample is damaged or does not decode.
    """

    def plans() -> Iterator[PlannedBatch]:
        for part in parts:
            ids = part.sample_ids
            samples = store.read(ids).require_whole()
            plan = cropping.plan(samples.heights, samples.widths, Draws(seed, part.epoch, ids))
            arrays = (samples.payloads, plan.crops, plan.mirrored)
            labels = samples.labels if part.labels is None else part.labels
            yield PlannedBatch(part.epoch, part.step, ids, 0, samples, labels, (), arrays)

    def stop(failure: Failure) -> PlannedBatch:
        detail = "the image does not decode, though its bytes are those that were written."
        ids = failure.planned.sample_ids[list(failure.positions)].tolist()
        raise DamageError("; ".join(str(store.damage(n, "decode", detail)) for n in ids))

    build = lambda feed: crop_graph(feed, options, px=px, num_views=cropping.num_views)  # noqa: E731
    for done, views in run_plans(plans(), build, stop, LoaderCounters()):
        yield Batch(done.epoch, done.step, done.sample_ids, views, done.labels)


def whole_batches(
    store: Store, sample_ids: NDArray[np.int64], options: GraphOptions, *, px: int
) -> Iterator[Batch]:
    """Yield the given samples in the given order, each once, the last batch short.

    A view is the central square of the image, resized to `px`: uint8 (B, px, px, 3). Nothing is
    replaced.

    Raises:
        DamageError: A sample is damaged or does not decode.
    """
    starts = range(0, len(sample_ids), options.max_batch)
    groups = (
        SampleGroup(0, step, sample_ids[start : start + options.max_batch], None)
        for step, start in enumerate(starts)
    )
    for batch in crop_batches(store, groups, central_cropping(), options, px=px, seed=0):
        yield replace(batch, views=batch.views[:, 0])


def shuffled(sample_ids: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the rows of samples in the order of an epoch, whatever order they are given in."""
    keys = Draws(seed, epoch, sample_ids).bits("transfer.order", 2)
    return np.argsort(keys[:, 0] << np.uint64(32) | keys[:, 1], kind="stable")


def even_parts(num: int, most: int) -> list[slice]:
    """Cut 0..num - 1 into the fewest parts of at most `most`, whose sizes differ by at most one.

    >>> even_parts(7, 3)
    [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
    """
    parts = math.ceil(num / most)
    size, longer = divmod(num, parts) if parts else (0, 0)
    ends = [size * (n + 1) + min(n + 1, longer) for n in range(parts)]
    return [slice(end - size - (n < longer), end) for n, end in enumerate(ends)]
