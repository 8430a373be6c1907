"""Retrieval: the training images that a trunk finds nearest to a test image."""

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field

from pipeline.atomic import write_atomic
from pipeline.config import Config, ConfigError
from pipeline.dali.graph import GraphOptions
from pipeline.explain.pictures.lettering import INK, PAPER, QUIET, fit, font
from pipeline.loading.crops import whole_batches
from training.transfer.frozen.features import GAP, Pooling, frozen_features
from training.transfer.frozen.knn import nearest
from training.transfer.job import (
    Labelled,
    NamedTrunk,
    Progress,
    Score,
    Setting,
    TransferTask,
    seeds_of,
)

# Shapes: M test images, k neighbours.


PICTURE_FILE = "retrieval.png"
_PX = 96
_GAP = 6
_HEAD = 28


class RetrievalConfig(Config):
    """The nearest training images of each test image, by the cosine similarity of frozen features.

    The score is the share of them that show the same class. A picture shows some test images, each
    beside the nearest neighbours that every trunk finds.
    """

    name: Literal["retrieval"]
    neighbours: int = Field(5, gt=0)
    """Number of images to retrieve, k."""
    queries: int = Field(8, gt=0)
    """Number of test images in the picture, evenly spaced."""
    stage: str | None = None
    """Stage whose features the picture compares. Default: the last."""

    def poolings(self, *, multi_label: bool) -> tuple[Pooling, ...]:
        """Return the features the job reads."""
        return (GAP,)


def run_retrieval(
    job: RetrievalConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Score every stage; the pictured stage's details hold the rows of queries and neighbours.

    Raises:
        ConfigError: The trunk has no such stage, or there are too few training images.
    """
    started, task = time.monotonic(), setting.task
    if job.neighbours > len(task.train.sample_ids):
        raise ConfigError(
            f"retrieval.neighbours (={job.neighbours}) must be at most "
            f"{len(task.train.sample_ids)}, the number of training images; lower it."
        )
    seeds = seeds_of(trunk, setting.seeds)
    queries = np.linspace(0, len(task.test.sample_ids) - 1, job.queries).round().astype(np.int64)
    found: dict[str, list[float]] = {}
    shown: dict[str, NDArray[np.int64]] = {}
    for number, seed in enumerate(seeds):
        poolings = job.poolings(multi_label=task.train.is_multi_label)
        frozen = frozen_features(setting, trunk, seed, poolings, on_progress)
        for layer in frozen.layers:
            near = nearest(*frozen.rows(layer), job.neighbours, setting.device)
            found.setdefault(layer, []).append(100 * precision(task, near.rows))
            shown.setdefault(layer, near.rows[queries])
        on_progress(f"{trunk.name}: retrieval", number + 1, len(seeds))
    pictured = _pictured(job, tuple(found))
    seconds = time.monotonic() - started
    return [
        Score(
            job=job.name,
            trunk=trunk.name,
            layer=layer,
            metric=metric_of(task, job.neighbours),
            scores=tuple(scores),
            train_images=len(task.train.sample_ids),
            test_images=len(task.test.sample_ids),
            seconds=seconds / len(found),
            details=_rows(queries, shown[layer]) if layer == pictured else {},
        )
        for layer, scores in found.items()
    ]


def metric_of(task: TransferTask, k: int) -> str:
    """Describe the score in words."""
    same = "a class that the query shows" if task.train.is_multi_label else "the query's class"
    return f"precision at {k}: share of the {k} nearest training images that show {same}, percent"


def precision(task: TransferTask, rows: NDArray[np.int64]) -> float:
    """Return the mean share of neighbours (M, k) that share a class with the query, 0 to 1."""
    near, asked = task.train.targets[rows], task.test.targets
    if asked.ndim == 1:
        return float((near == asked[:, None]).mean())
    return float(((near == 1) & (asked == 1)[:, None]).any(axis=2).mean())


def draw_neighbours(task: TransferTask, details: dict[str, dict[str, Any]], path: Path) -> None:
    """Write a picture with one row per query: the neighbours that each trunk finds.

    Args:
        task: Holds the images.
        details: Details of the pictured stage from `run_retrieval`, by trunk.
        path: Path of the PNG.
    """
    queries = np.array(next(iter(details.values()))["queries"])
    asked = _images(task.test, queries)
    groups = [_images(task.train, np.array(d["neighbours"])) for d in details.values()]
    width = groups[0].shape[1] * (_PX + _GAP) + 2 * _GAP
    sheet = Image.new(
        "RGB",
        (_PX + 3 * _GAP + len(groups) * width, _HEAD + len(queries) * (_PX + _GAP) + _GAP),
        PAPER,
    )
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 6), "query", INK, font(14))
    for number, name in enumerate(details):
        pen.text((_start(number, width), 6), fit(name, 14, width - _GAP), QUIET, font(14))
    for row in range(len(queries)):
        top = _HEAD + row * (_PX + _GAP)
        sheet.paste(Image.fromarray(asked[row]), (_GAP, top))
        for number, images in enumerate(groups):
            for column, image in enumerate(images[row]):
                left = _start(number, width) + column * (_PX + _GAP)
                sheet.paste(Image.fromarray(image), (left, top))
    sink = io.BytesIO()
    sheet.save(sink, "PNG")
    write_atomic(path, sink.getvalue())


def _start(number: int, width: int) -> int:
    return _PX + 4 * _GAP + number * width


def _images(images: Labelled, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Decode images by their rows, (...): uint8 (..., px, px, 3)."""
    ids = images.sample_ids[rows.ravel()]
    options = GraphOptions(max_batch=64, num_threads=1, device_id=None, prefetch=1)
    batches = whole_batches(images.store, ids, options, px=_PX)
    views = np.concatenate([batch.views.cpu().numpy() for batch in batches])
    return views.reshape(*rows.shape, _PX, _PX, 3)


def _pictured(job: RetrievalConfig, layers: Sequence[str]) -> str:
    if job.stage is None:
        return layers[-1]
    layer = f"{job.stage}.gap"
    if layer not in layers:
        stages = ", ".join(name.removesuffix(".gap") for name in layers)
        raise ConfigError(f"retrieval.stage (={job.stage}) must be one of {stages}.")
    return layer


def _rows(queries: NDArray[np.int64], neighbours: NDArray[np.int64]) -> dict[str, Any]:
    return {"queries": queries.tolist(), "neighbours": neighbours.tolist()}
