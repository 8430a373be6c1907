"""The training loop of detection and segmentation: whole images in their own shape, fresh heads."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from pipeline.atomic import write_atomic
from pipeline.config import Config, ConfigError
from pipeline.dali.graph import GraphOptions
from pipeline.ingest.labelled import content_key, upright_png
from pipeline.loading.crops import even_parts, shuffled
from pipeline.loading.resized import Fitted, Fitting, fit, fitted_batches
from pipeline.pretext.draws import Draws
from pipeline.pretext.normalize import normalize
from training.models.trunk import Trunk
from training.optimizer import SgdConfig, build_optimizer, learning_rate, set_rate
from training.transfer.dense.masks import MaskedImage
from training.transfer.images.voc import VocImage
from training.transfer.job import NamedTrunk, Progress, Setting, each_seed, require_finite_model

# Shapes: N images of a set, B batch.


class DenseConfig(Config):
    """What detection and segmentation share; those without a default here differ in it."""

    name: str
    voc: Path
    train_set: str
    test_set: str
    image_px: int
    long_px: int
    batch: int
    lr: float = Field(0.01, gt=0)
    """Peak learning rate at this batch size; decays along a half cosine."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Nesterov momentum of SGD."""
    weight_decay: float = Field(1e-4, ge=0)
    warmup: float
    max_steps: int = Field(300, gt=0)
    max_minutes: float | None = Field(None, gt=0)
    """Stop training after this time if the steps are not done by then; the learning rate follows
    whichever is nearer its end. A run stopped by this is not bit-reproducible, and trunks that it
    gave different numbers of steps are not compared on equal terms: a note says so."""
    num_seeds: int = Field(1, gt=0)
    """Use at most this many of the transfer's seeds: each is one training run."""


class SizedFile(Protocol):
    """An upright image file whose size, in px, is known."""

    @property
    def path(self) -> Path: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


UPRIGHT = "upright"
"""Folder of upright copies below the transfer's."""
FileT = TypeVar("FileT", VocImage, MaskedImage)


def upright_files(images: Sequence[FileT], folder: Path) -> tuple[FileT, ...]:
    """Copy images that EXIF turns or mirrors upright, as PNG; the decoder takes pixels as stored.

    Args:
        images: Their sizes, boxes and masks are those of the upright image already.
        folder: Where the copies go, under the hash of their content.

    Raises:
        ConfigError: Such an image does not decode.
    """
    return tuple(_upright(image, folder) if image.orientation != 1 else image for image in images)


def _upright(image: FileT, folder: Path) -> FileT:
    data = image.path.read_bytes()
    copy = folder / f"{content_key(data)}.png"
    if not copy.exists():
        shown = upright_png(data)
        if shown is None:
            raise ConfigError(
                f"image (={image.path}) has the EXIF orientation {image.orientation} and does not "
                "decode, so it cannot be turned upright; mend or unlist it."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(copy, shown)
    return replace(image, path=copy)


@dataclass(frozen=True, slots=True)
class Training:
    """One training run of a job, from one seed."""

    job: DenseConfig
    setting: Setting
    seed: int
    on_progress: Progress
    """Gets the phase, the number done, and the total."""

    def train(
        self,
        model: nn.Module,
        images: Sequence[SizedFile],
        loss_of: Callable[[Fitted], Tensor],
        *,
        max_norm: float | None = None,
    ) -> list[float]:
        """Train in place; returns the loss of each step.

        Order and mirroring are drawn by (seed, epoch, row); half of the images are mirrored.

        Args:
            model: In training mode.
            images: The training set.
            loss_of: Runs the model on a batch; returns a scalar.
            max_norm: Clip gradients to this norm.

        Raises:
            ConfigError: The loss, or a weight at the end, is not finite.
        """
        job = self.job
        config = SgdConfig(
            name="sgd",
            lr=job.lr,
            momentum=job.momentum,
            weight_decay=job.weight_decay,
            warmup=job.warmup,
        )
        optimizer = build_optimizer(model, config)
        weights = [p for p in model.parameters() if p.requires_grad]
        losses: list[float] = []
        started = time.monotonic()
        with closing(self._batches(self._train_plans(images))) as batches:
            for fitted in batches:
                minutes = (time.monotonic() - started) / 60
                share = max(len(losses) / job.max_steps, minutes / (job.max_minutes or math.inf))
                if share >= 1:
                    break
                set_rate(optimizer, learning_rate(config, share))
                loss = loss_of(fitted)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                if max_norm is not None:
                    nn.utils.clip_grad_norm_(weights, max_norm)
                optimizer.step()
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise ConfigError(
                        f"lr (={job.lr}) of {job.name}: the loss of step {len(losses)} is not "
                        "finite; lower lr or raise warmup."
                    )
                self.on_progress("training", len(losses), job.max_steps)
        require_finite_model(model)
        return losses

    def test_batches(self, images: Sequence[SizedFile]) -> Iterator[Fitted]:
        """Yield every image once, not mirrored, in the given order."""
        done = 0
        with closing(self._batches(self._test_plans(images))) as batches:
            for fitted in batches:
                yield fitted
                done += len(fitted.plan.rows)
                self.on_progress("test", done, len(images))

    def _batches(self, plans: Iterator[Fitting]) -> Generator[Fitted, None, None]:
        options = GraphOptions(
            max_batch=self.job.batch,
            num_threads=self.setting.threads,
            device_id=self.setting.device.index,
            prefetch=2,
        )
        return fitted_batches(plans, options)

    def _train_plans(self, images: Sequence[SizedFile]) -> Iterator[Fitting]:
        """Plan every image once in each epoch, endlessly; batches differ by at most one image."""
        everyone, epoch = np.arange(len(images)), 0
        while True:
            order = shuffled(everyone, seed=self.seed, epoch=epoch)
            for part in even_parts(len(order), self.job.batch):
                rows = order[part]
                drawn = Draws(self.seed, epoch, rows).uniform("fitted.mirror", 1)[:, 0]
                yield self._plan(images, rows, (drawn < 0.5).astype(np.int32))
            epoch += 1

    def _test_plans(self, images: Sequence[SizedFile]) -> Iterator[Fitting]:
        batch = self.job.batch
        for start in range(0, len(images), batch):
            rows = np.arange(start, min(start + batch, len(images)))
            yield self._plan(images, rows, np.zeros(len(rows), np.int32))

    def _plan(
        self, images: Sequence[SizedFile], rows: NDArray[np.int64], mirrored: NDArray[np.int32]
    ) -> Fitting:
        shown = [images[row] for row in rows.tolist()]
        stored = np.array([(image.height, image.width) for image in shown], np.int32)
        sizes = fit(stored, short_px=self.job.image_px, long_px=self.job.long_px)
        return Fitting(rows, tuple(image.path for image in shown), stored, sizes, mirrored)


def each_training(
    job: DenseConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> Iterator[tuple[Training, Trunk]]:
    """Yield the training run of each seed, and the trunk to train."""
    seeds = list(setting.seeds)[: job.num_seeds]
    for seed, say in each_seed(f"{trunk.name}: {job.name}", seeds):
        report = partial(_report, on_progress, say)
        yield Training(job, setting, seed, report), trunk.build(seed)


def _report(on_progress: Progress, say: str, phase: str, done: int, total: int) -> None:
    on_progress(f"{say}, {phase}", done, total)


def normalized(fitted: Fitted, device: torch.device) -> list[Tensor]:
    """Normalize each image over its own pixels: B of float32 (3, height, width) on the device."""
    views, sizes = fitted.views.to(device, non_blocking=True), fitted.plan.sizes.tolist()
    return [
        normalize(view[None, :height, :width])[0]
        for view, (height, width) in zip(views, sizes, strict=True)
    ]


def each_image(fitted: Fitted) -> list[tuple[int, tuple[int, int], bool]]:
    """Return (row, (height, width), mirrored) of every image of a batch."""
    plan = fitted.plan
    sizes = [(height, width) for height, width in plan.sizes.tolist()]
    mirrored = (plan.mirrored == 1).tolist()
    return list(zip(plan.rows.tolist(), sizes, mirrored, strict=True))


def protocol_of(job: DenseConfig) -> str:
    """Say how long the training was and what it was shown, for the metric of a result."""
    limit = f" or {job.max_minutes:g} minutes" if job.max_minutes else ""
    return f"{job.max_steps} steps{limit} of {job.batch} images, short side {job.image_px} px"
