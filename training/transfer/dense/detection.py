"""Detection: Faster R-CNN on a trunk, trained and tested on a set in VOC layout."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import ConfigError
from pipeline.loading.resized import Fitted
from training.models.trunk import Trunk
from training.transfer.average_precision import DEFINITIONS, defined_mean
from training.transfer.dense.box_ap import BoxScores, Detections, Truth, score_boxes, scores_in_json
from training.transfer.dense.box_options import BatchNorm, BoxModelOptions, Neck
from training.transfer.dense.train import (
    UPRIGHT,
    DenseConfig,
    Training,
    each_image,
    each_training,
    normalized,
    protocol_of,
    upright_files,
)
from training.transfer.images.voc import VocImage, VocSet, read_voc
from training.transfer.job import NamedTrunk, Progress, Score, Setting, require_finite

# Shapes: n boxes of an image.


class DetectionConfig(DenseConfig):
    """Faster R-CNN on the trunk, trained end to end; boxes and images of a folder in VOC layout.

    The data of the transfer section are not used. The defaults are a short schedule for a CPU and
    are not comparable with published figures: those come from 24,000 steps of 16 images of up to
    800 px at several scales and a step schedule, where this has one scale and a half cosine. The
    forward pass is in fp32.
    """

    name: Literal["detection"]
    voc: Path
    """VOCdevkit/VOC2007; or a VOCdevkit, for sets such as 07+12."""
    train_set: str = "trainval"
    """Image set, as in `read_voc`. Difficult boxes are not learned."""
    test_set: str = "test"
    """Image set, as in `read_voc`."""
    neck: Neck = "c4"
    batch_norm: BatchNorm = "train"
    frozen_stages: int = Field(0, ge=0, le=5)
    """Number of first stages that are not trained, counted from conv1."""
    image_px: int = Field(160, ge=32)
    """Short side of an image."""
    long_px: int = Field(256, ge=32)
    """Largest long side of an image; a longer image gets a smaller short side."""
    batch: int = Field(4, gt=0)
    """Images in one step, and in one pass of the test."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the training in which the learning rate rises from 0."""
    max_norm: float = Field(10, gt=0)
    """Gradients are clipped to this norm."""
    roi_px: int = Field(8, ge=2)
    """Side of the map of a region; halved by the last stage in c4."""
    fpn_width: int = Field(128, gt=0)
    """Channels of the pyramid, and a quarter of the width of its linear layers."""
    rois_per_image: int = Field(64, gt=0)
    """Regions of an image that are learned from."""
    proposals: int = Field(100, gt=0)
    """Regions of an image that are classified in the test."""
    score_threshold: float = Field(0.05, ge=0, lt=1)
    """Lowest score of a detected box."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """Result of one seed."""

    losses: list[float]
    """One for each step."""
    train_s: float
    test_s: float
    scores: BoxScores


def run_detection(
    job: DetectionConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Train a detector on a trunk and test it; the score is VOC 2007's mean average precision.

    Images are normalized over their own pixels, and mirrored at random in training. The regions
    that are learned from are drawn by torch, from the seed.

    Raises:
        ConfigError: The folder is no VOC layout, its sets hold no boxes to learn or to find, the
            trunk is not residual, or the training diverged.
    """
    train, test = (_upright_set(job.voc, s, setting) for s in (job.train_set, job.test_set))
    for role, voc in (("train", train), ("test", test)):
        if not any((~image.difficult).any() for image in voc.images):
            raise ConfigError(
                f"{role}_set (={getattr(job, f'{role}_set')}) of voc (={job.voc}) has no box that "
                "is not difficult: there is nothing to learn or to find. Name another set."
            )
    done, layer = [], ""
    for training, built in each_training(job, setting, trunk, on_progress):
        layer = _first_trained(job, built)
        done.append(_train_and_test(job, training, built, (train, test)))
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


def _upright_set(folder: Path, image_set: str, setting: Setting) -> VocSet:
    found = read_voc(folder, image_set)
    return replace(found, images=upright_files(found.images, setting.folder / UPRIGHT))


def _first_trained(job: DetectionConfig, trunk: Trunk) -> str:
    """Return the name of the first trained stage, "" where all are trained."""
    return ("", *trunk.stage_names[1:], "")[job.frozen_stages]


def _train_and_test(
    job: DetectionConfig, training: Training, trunk: Trunk, sets: tuple[VocSet, VocSet]
) -> _Trained:
    # Imported here: torchvision's detectors take a second to load, and reading a config must not.
    from training.transfer.dense.box_model import build_box_model, train_mode

    train, test = sets
    device = training.setting.device
    options = _options(job, len(train.classes))
    # torchvision draws fresh weights and the regions to learn from by torch's global generator.
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = build_box_model(trunk, options).to(device)
        train_mode(model, trunk, options)

        def loss_of(fitted: Fitted) -> Tensor:
            targets = [
                target_of(train.images[row], size, mirrored=mirrored, device=device)
                for row, size, mirrored in each_image(fitted)
            ]
            return torch.stack(list(model(normalized(fitted, device), targets).values())).sum()

        started = time.monotonic()
        losses = training.train(model, train.images, loss_of, max_norm=job.max_norm)
    trained = time.monotonic()
    found = _detect(training, model, test)
    truths = [Truth(image.boxes, image.labels, image.difficult) for image in test.images]
    return _Trained(
        losses=losses,
        train_s=trained - started,
        test_s=time.monotonic() - trained,
        scores=score_boxes(truths, found, len(test.classes)),
    )


@torch.inference_mode()
def _detect(training: Training, model: nn.Module, test: VocSet) -> list[Detections]:
    """Detect the boxes of every test image, in pixels of the stored image."""
    model.eval()
    found: list[Detections] = []
    for fitted in training.test_batches(test.images):
        given = model(normalized(fitted, training.setting.device))
        for (row, size, _), one in zip(each_image(fitted), given, strict=True):
            image = test.images[row]
            require_finite("the boxes of the detector", one["boxes"])
            require_finite("the scores of the detector", one["scores"])
            scale = _scale_of((image.height, image.width), size)
            found.append(
                Detections(
                    one["boxes"].cpu().numpy() / scale,
                    one["labels"].cpu().numpy() - 1,
                    one["scores"].cpu().numpy(),
                )
            )
    return found


def target_of(
    image: VocImage, size: tuple[int, int], *, mirrored: bool, device: torch.device
) -> dict[str, Tensor]:
    """Return boxes and labels as torchvision's detectors learn them, without difficult ones."""
    boxes = fitted_boxes(image, size, mirrored=mirrored)[~image.difficult]
    labels = image.labels[~image.difficult] + 1
    return {
        "boxes": torch.from_numpy(boxes).to(device),
        "labels": torch.from_numpy(labels).to(device),
    }


def fitted_boxes(image: VocImage, size: tuple[int, int], *, mirrored: bool) -> NDArray[np.float32]:
    """Return the boxes of an image after it is resized, then mirrored: float32 (n, 4).

    Args:
        image: With its boxes.
        size: Height and width of the resized image.
        mirrored: Whether left and right are exchanged.
    """
    boxes = (image.boxes * _scale_of((image.height, image.width), size)).astype(np.float32)
    if mirrored:
        boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
    return boxes


def _scale_of(stored: tuple[int, int], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the factors by which a resize multiplies box corners, float32 (4,)."""
    down, across = size[0] / stored[0], size[1] / stored[1]
    return np.array([across, down, across, down], np.float32)


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
    return (
        "mean average precision of boxes at an overlap of 0.5, percent: "
        f"{DEFINITIONS['11_point']}, difficult ones ignored; Faster R-CNN {job.neck} on "
        f"{job.train_set}, tested on {job.test_set}, {trained}, BatchNorm {job.batch_norm}, "
        f"{protocol_of(job)}"
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
