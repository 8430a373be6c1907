"""Detection: Faster R-CNN on a trunk, trained and tested on a set in VOC layout."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from pipeline.config import Config, ConfigError
from pipeline.loading.resized import fitted_batches
from training.models.trunk import Trunk
from training.optimizer import SgdConfig, build_optimizer, learning_rate, set_rate
from training.transfer.average_precision import DEFINITIONS, defined_mean
from training.transfer.dense.box_ap import BoxScores, Detections, Truth, score_boxes, scores_in_json
from training.transfer.dense.box_model import each_image, scale_of, target_of
from training.transfer.dense.box_options import BatchNorm, BoxModelOptions, Neck
from training.transfer.images.resized import (
    Files,
    graph_options,
    plain_fittings,
    seen,
    train_fittings,
)
from training.transfer.images.voc import VocSet, read_voc
from training.transfer.job import NamedTrunk, Progress, Score, Setting


class DetectionConfig(Config):
    """Faster R-CNN on the trunk, all of it trained; boxes and images of a folder in VOC layout.

    The data of the transfer section are not used here. The defaults are a short schedule for a CPU,
    and published figures cannot be compared with: those come from 24,000 steps of 16 images of up
    to 800 px at several scales, with steps of the learning rate, where this has one scale and a
    half cosine. The forward pass is in fp32.
    """

    name: Literal["detection"]
    voc: Path
    """VOCdevkit/VOC2007; or a VOCdevkit, for sets such as 07+12."""
    train_set: str = "trainval"
    """As `read_voc` takes it. Difficult boxes are not learned."""
    test_set: str = "test"
    """As `read_voc` takes it."""
    neck: Neck = "c4"
    batch_norm: BatchNorm = "train"
    frozen_stages: int = Field(0, ge=0, le=5)
    """First stages of the trunk that are not trained, conv1 the first."""
    image_px: int = Field(160, ge=32)
    """Short side of an image."""
    long_px: int = Field(256, ge=32)
    """Largest long side of an image; the short side of a longer one is less."""
    batch: int = Field(4, gt=0)
    """Images in one step, and in one pass of the test."""
    lr: float = Field(0.01, gt=0)
    """Peak learning rate at this batch; it falls as a half cosine."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD, as Nesterov has it."""
    weight_decay: float = Field(1e-4, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the training in which the learning rate rises from 0."""
    max_norm: float = Field(10, gt=0)
    """Longer gradients are cut to this norm."""
    max_steps: int = Field(300, gt=0)
    max_minutes: float | None = Field(None, gt=0)
    """End a training after this time if the steps are not done by then; the learning rate follows
    whichever is nearer its end. A training that this ends is not repeatable to the bit, and trunks
    that it gave different numbers of steps are not compared on equal terms: a note says so."""
    num_seeds: int = Field(1, gt=0)
    """At most so many of the seeds of the transfer: every one is a training."""
    roi_px: int = Field(8, ge=2)
    """Side of the map of a region; halved by the last stage in c4."""
    fpn_width: int = Field(128, gt=0)
    """Channels of the pyramid, and a quarter of the width of its linear layers."""
    rois_per_image: int = Field(64, gt=0)
    """Regions of an image that are learned from."""
    proposals: int = Field(100, gt=0)
    """Regions of an image that are looked into in the test."""
    score_threshold: float = Field(0.05, ge=0, lt=1)
    """Least score of a box that is found."""


@dataclass(frozen=True, slots=True)
class _Run:
    """One training of a trunk, and what it is judged on."""

    job: DetectionConfig
    setting: Setting
    train: VocSet
    test: VocSet
    seed: int
    report: Callable[[str, int, int], None]
    """Gets the part, how much of it is done, out of how much."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """What one seed gave."""

    losses: list[float]
    """Of each step."""
    train_s: float
    test_s: float
    scores: BoxScores


def run_detection(
    job: DetectionConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Train a detector on a trunk and test it; the score is VOC 2007's mean average precision.

    Images are normalised over their own pixels, mirrored at random in training. The regions that
    are learned from are drawn by torch, from the seed.

    Raises:
        ConfigError: The folder is no VOC layout, its sets hold no boxes to learn or to find, the
            trunk is not residual, or the training diverged.
    """
    train, test = read_voc(job.voc, job.train_set), read_voc(job.voc, job.test_set)
    for role, voc in (("train", train), ("test", test)):
        if not any((~image.difficult).any() for image in voc.images):
            raise ConfigError(
                f"{role}_set (={getattr(job, f'{role}_set')}) of voc (={job.voc}) has no box that "
                "is not difficult: there is nothing to learn or to find. Name another set."
            )
    seeds = list(setting.seeds)[: job.num_seeds]
    done, layer = [], ""
    for number, seed in enumerate(seeds, start=1):
        say = f"{trunk.name}: detection, seed {number} of {len(seeds)}, "
        report = lambda part, n, of, say=say: on_progress(say + part, n, of)  # noqa: E731
        built = trunk.build(seed)
        layer = _first_trained(job, built)
        done.append(_train_and_test(_Run(job, setting, train, test, seed, report), built))
    return [
        Score(
            job=job.name,
            trunk=trunk.name,
            layer=layer,
            metric=_metric(job),
            scores=tuple(100 * defined_mean(one.scores.eleven_point) for one in done),
            train_images=len(train.images),
            test_images=len(test.images),
            seconds=sum(one.train_s + one.test_s for one in done),
            details=_details(job, (train, test), done),
        )
    ]


def _first_trained(job: DetectionConfig, trunk: Trunk) -> str:
    """Name the first stage that is trained, nothing where all are."""
    behind = ("", *trunk.stage_names[1:], "")
    return behind[job.frozen_stages]


def _train_and_test(run: _Run, trunk: Trunk) -> _Trained:
    from training.transfer.dense.box_model import build_box_model, train_mode

    options = _options(run.job, len(run.train.classes))
    # torchvision draws fresh weights and the regions to learn from by torch's global generator.
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        model = build_box_model(trunk, options).to(run.setting.device)
        train_mode(model, trunk, options)
        started = time.monotonic()
        losses = _train(run, model)
    trained = time.monotonic()
    found = _detect(run, model)
    truths = [Truth(image.boxes, image.labels, image.difficult) for image in run.test.images]
    return _Trained(
        losses=losses,
        train_s=trained - started,
        test_s=time.monotonic() - trained,
        scores=score_boxes(truths, found, len(run.test.classes)),
    )


def _train(run: _Run, model: nn.Module) -> list[float]:
    """Train in place; returns the loss of each step."""
    job, device = run.job, run.setting.device
    config = SgdConfig(
        name="sgd",
        lr=job.lr,
        momentum=job.momentum,
        weight_decay=job.weight_decay,
        warmup=job.warmup,
    )
    optimizer = build_optimizer(model, config)
    weights = [p for p in model.parameters() if p.requires_grad]
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
            targets = [
                target_of(run.train.images[row], size, mirrored=bool(mirrored), device=device)
                for row, size, mirrored in each_image(fitted)
            ]
            loss = torch.stack(list(model(seen(fitted, device), targets).values())).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, job.max_norm)
            optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise ConfigError(
                    f"lr (={job.lr}) of detection: the loss of step {len(losses)} is not finite; "
                    "lower lr or raise warmup."
                )
            run.report("training", len(losses), job.max_steps)
    return losses


@torch.inference_mode()
def _detect(run: _Run, model: nn.Module) -> list[Detections]:
    """Find the boxes of every test image, in pixels of the stored image."""
    model.eval()
    found: list[Detections] = []
    plans = plain_fittings(_files(run.job, run.test), batch=run.job.batch)
    with closing(fitted_batches(plans, graph_options(run.setting, run.job.batch))) as batches:
        for fitted in batches:
            given = model(seen(fitted, run.setting.device))
            for (row, size, _), one in zip(each_image(fitted), given, strict=True):
                image = run.test.images[row]
                scale = scale_of((image.height, image.width), size)
                found.append(
                    Detections(
                        one["boxes"].cpu().numpy() / scale,
                        one["labels"].cpu().numpy() - 1,
                        one["scores"].cpu().numpy(),
                    )
                )
            run.report("test", len(found), len(run.test.images))
    return found


def _files(job: DetectionConfig, voc: VocSet) -> Files:
    stored = np.array([(image.height, image.width) for image in voc.images], np.int32)
    paths = tuple(image.path for image in voc.images)
    return Files(paths, stored, short_px=job.image_px, long_px=job.long_px)


def _options(job: DetectionConfig, num_classes: int) -> BoxModelOptions:
    return BoxModelOptions(
        neck=job.neck,
        num_classes=num_classes,
        image_px=job.image_px,
        roi_px=job.roi_px,
        fpn_width=job.fpn_width,
        proposals=job.proposals,
        rois_per_image=job.rois_per_image,
        score_threshold=job.score_threshold,
        batch_norm=job.batch_norm,
        frozen_stages=job.frozen_stages,
    )


def _metric(job: DetectionConfig) -> str:
    trained = f"first {job.frozen_stages} stages fixed" if job.frozen_stages else "all trained"
    limit = f" or {job.max_minutes:g} minutes" if job.max_minutes else ""
    return (
        "mean average precision of boxes at an overlap of 0.5, percent: "
        f"{DEFINITIONS['11_point']}, difficult ones ignored; Faster R-CNN {job.neck} on "
        f"{job.train_set}, tested on {job.test_set}, {trained}, BatchNorm {job.batch_norm}, "
        f"{job.max_steps} steps{limit} of {job.batch} images, short side {job.image_px} px"
    )


def _details(
    job: DetectionConfig, sets: tuple[VocSet, VocSet], done: list[_Trained]
) -> dict[str, Any]:
    train, test = sets
    tenth = [max(1, len(one.losses) // 10) for one in done]
    return {
        **scores_in_json([one.scores for one in done], test.classes),
        "steps": [len(one.losses) for one in done],
        "ended_by": ["steps" if len(o.losses) == job.max_steps else "minutes" for o in done],
        "first_loss": [float(np.mean(o.losses[:n])) for o, n in zip(done, tenth, strict=True)],
        "last_loss": [float(np.mean(o.losses[-n:])) for o, n in zip(done, tenth, strict=True)],
        "train_s": [one.train_s for one in done],
        "test_s": [one.test_s for one in done],
        "problems": {"train": train.problems, "test": test.problems},
        "notes": {"train": list(train.notes), "test": list(test.notes)},
    }
