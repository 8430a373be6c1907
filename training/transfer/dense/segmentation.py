"""Segmentation: a fully convolutional head on a trunk, on a set in VOC layout with masks."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Config, ConfigError
from pipeline.loading.resized import Fitted, fitted_batches
from training.models.residual import ResidualTrunk
from training.models.trunk import Trunk
from training.optimizer import SgdConfig, build_optimizer, learning_rate, set_rate
from training.transfer.average_precision import defined_mean
from training.transfer.dense.box_ap import percent
from training.transfer.dense.box_model import each_image
from training.transfer.dense.masks import (
    VOID,
    MaskedImage,
    MaskedSet,
    count_pixels,
    fitted_mask,
    overlaps_of_classes,
    read_mask,
    read_masked,
)
from training.transfer.images.resized import (
    Files,
    graph_options,
    plain_fittings,
    seen,
    train_fittings,
)
from training.transfer.job import NamedTrunk, Progress, Score, Setting

# Shapes: B batch, K classes, H/W size of the images, h/w size of the last map.


class SegmentationModel(nn.Module):
    """The last stage's map through a 3x3 and a 1x1 convolution, enlarged to the image."""

    def __init__(self, trunk: Trunk, num_classes: int, *, head_width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Sequential(
            nn.Conv2d(trunk.width, head_width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(head_width),
            nn.ReLU(inplace=True),
            nn.Conv2d(head_width, num_classes, kernel_size=1),
        )

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return logits (B, K, H, W), bilinear between those of the map."""
        logits_BKhw = self.head(self.trunk.stages(images_B3HW)[-1])
        size = images_B3HW.shape[-2:]
        return F.interpolate(logits_BKhw.float(), size=size, mode="bilinear", align_corners=False)


def dilate_last_stage(trunk: Trunk) -> None:
    """Let the last stage of a residual trunk see its map at every place, not at every second.

    Its stride goes, and convolutions behind it get holes, so that the places that were there have
    the same values as before (Chen et al. 2015).

    Raises:
        ConfigError: The trunk is not residual.
    """
    if not isinstance(trunk, ResidualTrunk):
        raise ConfigError(
            f"dilated (=True) needs a residual trunk, not {type(trunk).__name__}; set dilated: "
            "false, or take trunk.name small, resnet18 or resnet50."
        )
    reached = False  # The strided convolution: behind it the map is as large as before it.
    for name, part in trunk.net.get_submodule(trunk.stage_names[-1]).named_modules():
        if not isinstance(part, nn.Conv2d):
            continue
        on_main_path = "downsample" not in name
        if reached and on_main_path and part.kernel_size == (3, 3):
            part.dilation, part.padding = (2, 2), (2, 2)
        if part.stride == (2, 2):
            part.stride = (1, 1)
            reached = reached or on_main_path


# Shapes: B batch, K classes with the background, H/W largest height and width of a batch.


class SegmentationConfig(Config):
    """A fully convolutional head on the trunk; masks and images of a folder in VOC layout.

    The data of the transfer section are not used here. The defaults are a short schedule for a CPU.
    The forward pass is in fp32.
    """

    name: Literal["segmentation"]
    voc: Path
    """VOCdevkit/VOC2012, with SegmentationClass and ImageSets/Segmentation."""
    train_set: str = "train"
    """Of ImageSets/Segmentation."""
    test_set: str = "val"
    """Of ImageSets/Segmentation."""
    dilated: bool = True
    """The last stage keeps the resolution of the one before it; residual trunks alone can."""
    frozen: bool = False
    """Train the head alone, on a trunk whose BatchNorm is in evaluation mode."""
    head_width: int = Field(64, gt=0)
    """Channels between the head's two convolutions."""
    image_px: int = Field(128, ge=32)
    """Short side of an image."""
    long_px: int = Field(224, ge=32)
    """Largest long side of an image; the short side of a longer one is less."""
    batch: int = Field(8, ge=2)
    """Images in one step, and in one pass of the test."""
    lr: float = Field(0.01, gt=0)
    """Peak learning rate at this batch; it falls as a half cosine."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD, as Nesterov has it."""
    weight_decay: float = Field(1e-4, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the training in which the learning rate rises from 0."""
    max_steps: int = Field(300, gt=0)
    max_minutes: float | None = Field(None, gt=0)
    """End a training after this time if the steps are not done by then; the learning rate follows
    whichever is nearer its end. A training that this ends is not repeatable to the bit, and trunks
    that it gave different numbers of steps are not compared on equal terms: a note says so."""
    num_seeds: int = Field(1, gt=0)
    """At most so many of the seeds of the transfer: every one is a training."""


@dataclass(frozen=True, slots=True)
class _Run:
    """One training of a trunk, and what it is judged on."""

    job: SegmentationConfig
    setting: Setting
    train: MaskedSet
    test: MaskedSet
    seed: int
    report: Callable[[str, int, int], None]
    """Gets the part, how much of it is done, out of how much."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """What one seed gave."""

    losses: list[float]
    """Of each step."""
    counts: NDArray[np.int64]
    """(K, K), pixels of the test by true and by guessed class."""
    seconds: float


def run_segmentation(
    job: SegmentationConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Train a fully convolutional head with a trunk and test it; the score is the mean overlap.

    Guesses are enlarged to the stored size of an image and compared there. Images are normalised
    over their own pixels, mirrored at random in training.

    Raises:
        ConfigError: The folder holds no masks, a set is missing, a mask names a class that there is
            not, the trunk can not be dilated, or the training diverged.
    """
    train, test = read_masked(job.voc, job.train_set), read_masked(job.voc, job.test_set)
    seeds, done = list(setting.seeds)[: job.num_seeds], []
    for number, seed in enumerate(seeds, start=1):
        say = f"{trunk.name}: segmentation, seed {number} of {len(seeds)}, "
        report = lambda part, n, of, say=say: on_progress(say + part, n, of)  # noqa: E731
        run = _Run(job, setting, train, test, seed, report)
        done.append(_train_and_test(run, trunk.build(seed)))
    overlaps = [overlaps_of_classes(one.counts) for one in done]
    return [
        Score(
            job=job.name,
            trunk=trunk.name,
            layer="head" if job.frozen else "",
            metric=_metric(job),
            scores=tuple(100 * defined_mean(one) for one in overlaps),
            train_images=len(train.images),
            test_images=len(test.images),
            seconds=sum(one.seconds for one in done),
            details=_details((train, test), done, overlaps),
        )
    ]


def _train_and_test(run: _Run, trunk: Trunk) -> _Trained:
    started = time.monotonic()
    if run.job.dilated:
        dilate_last_stage(trunk)
    with torch.random.fork_rng():  # Of the head's fresh weights.
        torch.manual_seed(run.seed)
        model = SegmentationModel(trunk, len(run.train.classes), head_width=run.job.head_width)
    model.to(run.setting.device).train()
    if run.job.frozen:
        trunk.requires_grad_(False).eval()
    losses = _train(run, model)
    return _Trained(losses, _count(run, model), time.monotonic() - started)


def _train(run: _Run, model: nn.Module) -> list[float]:
    """Train in place; returns the loss of each step."""
    job = run.job
    config = SgdConfig(
        name="sgd",
        lr=job.lr,
        momentum=job.momentum,
        weight_decay=job.weight_decay,
        warmup=job.warmup,
    )
    optimizer = build_optimizer(model, config)
    plans = train_fittings(_files(job, run.train), batch=job.batch, seed=run.seed)
    losses: list[float] = []
    started = time.monotonic()
    with closing(fitted_batches(plans, graph_options(run.setting, job.batch))) as batches:
        for fitted in batches:
            minutes = (time.monotonic() - started) / 60
            share = max(len(losses) / job.max_steps, minutes / (job.max_minutes or math.inf))
            if share >= 1:
                break
            set_rate(optimizer, learning_rate(config, share))
            targets_BHW = _masks(fitted, run.train).to(run.setting.device)
            logits_BKHW = model(_padded(seen(fitted, run.setting.device)))
            loss = F.cross_entropy(logits_BKHW, targets_BHW, ignore_index=VOID, reduction="sum")
            # A batch may hold no pixel of a class: the mean would be NaN.
            loss = loss / max(1, int((targets_BHW != VOID).sum()))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise ConfigError(
                    f"lr (={job.lr}) of segmentation: the loss of step {len(losses)} is not "
                    "finite; lower lr or raise warmup."
                )
            run.report("training", len(losses), job.max_steps)
    return losses


@torch.inference_mode()
def _count(run: _Run, model: nn.Module) -> NDArray[np.int64]:
    """Count the pixels of the test by true and by guessed class, at their stored size."""
    model.eval()
    num_classes, done = len(run.test.classes), 0
    counts = np.zeros((num_classes, num_classes), np.int64)
    plans = plain_fittings(_files(run.job, run.test), batch=run.job.batch)
    with closing(fitted_batches(plans, graph_options(run.setting, run.job.batch))) as batches:
        for fitted in batches:
            logits_BKHW = model(_padded(seen(fitted, run.setting.device)))
            for logits_KHW, (row, size, _) in zip(logits_BKHW, each_image(fitted), strict=True):
                image = run.test.images[row]
                ours = logits_KHW[None, :, : size[0], : size[1]]
                large = F.interpolate(ours, size=(image.height, image.width), mode="bilinear")
                guess = large[0].argmax(dim=0).cpu().numpy()
                counts += count_pixels(read_mask(image, num_classes), guess, num_classes)
            done += len(fitted.plan.rows)
            run.report("test", done, len(run.test.images))
    return counts


def _masks(fitted: Fitted, masked: MaskedSet) -> Tensor:
    """Return the masks of a batch as its images are shown: int64 (B, H, W), 255 where padded."""
    masks = torch.full(fitted.views.shape[:3], VOID, dtype=torch.int64)
    for mask, (row, (height, width), mirrored) in zip(masks, each_image(fitted), strict=True):
        indexes = read_mask(masked.images[row], len(masked.classes))
        shown = fitted_mask(indexes, (height, width), mirrored=bool(mirrored))
        mask[:height, :width] = torch.from_numpy(shown.astype(np.int64))
    return masks


def _padded(images: Sequence[Tensor]) -> Tensor:
    """Put images (3, height, width) at the top left of zeros: (B, 3, H, W)."""
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    return torch.stack(
        [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    )


def _files(job: SegmentationConfig, masked: MaskedSet) -> Files:
    images: tuple[MaskedImage, ...] = masked.images
    stored = np.array([(image.height, image.width) for image in images], np.int32)
    return Files(tuple(i.path for i in images), stored, short_px=job.image_px, long_px=job.long_px)


def _metric(job: SegmentationConfig) -> str:
    limit = f" or {job.max_minutes:g} minutes" if job.max_minutes else ""
    return (
        "mean over the classes in the truth, background included, of intersection over union of "
        "their pixels in all images together, percent, void pixels ignored; fully convolutional "
        f"head on the {'dilated ' if job.dilated else ''}last stage, "
        f"{'head' if job.frozen else 'all'} trained on {job.train_set}, tested on {job.test_set}, "
        f"{job.max_steps} steps{limit} of {job.batch} images, short side {job.image_px} px"
    )


def _details(
    sets: tuple[MaskedSet, MaskedSet], done: list[_Trained], overlaps: list[NDArray[np.float64]]
) -> dict[str, Any]:
    train, test = sets
    means = {name: percent(v) for name, v in zip(test.classes, np.mean(overlaps, 0), strict=True)}
    return {
        "classes": means,
        "undefined": [name for name, mean in means.items() if mean is None],
        "pixel_accuracy": [percent(np.trace(o.counts) / o.counts.sum()) for o in done],
        "steps": [len(one.losses) for one in done],
        "first_loss": [one.losses[0] for one in done],
        "last_loss": [one.losses[-1] for one in done],
        "problems": {"train": train.problems, "test": test.problems},
    }
