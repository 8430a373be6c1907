"""Segmentation: a fully convolutional head on a trunk, on a set in VOC layout with masks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import ConfigError
from pipeline.loading.resized import Fitted
from training.models.residual import ResidualTrunk
from training.models.trunk import Trunk
from training.transfer.average_precision import defined_mean, percent
from training.transfer.dense.masks import (
    VOID,
    MaskedSet,
    count_pixels,
    fitted_mask,
    overlaps_of_classes,
    read_mask,
    read_masked,
)
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
from training.transfer.job import NamedTrunk, Progress, Score, Setting, require_finite

# Shapes: B batch, K classes with the background, H/W largest height and width of a batch, h/w size
# of the last map.


class SegmentationModel(nn.Module):
    """The last stage's map through a 3x3 and a 1x1 convolution, upsampled to the image."""

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
        """Return logits (B, K, H, W), interpolated bilinearly."""
        logits_BKhw = self.head(self.trunk.stages(images_B3HW)[-1])
        size = images_B3HW.shape[-2:]
        return F.interpolate(logits_BKhw.float(), size=size, mode="bilinear", align_corners=False)


def dilate_last_stage(trunk: Trunk) -> None:
    """Replace the stride of a residual trunk's last stage by dilation.

    The map has twice the resolution, and the positions it had before keep their values (Chen et al.
    2015).

    Raises:
        ConfigError: The trunk is not residual.
    """
    if not isinstance(trunk, ResidualTrunk):
        raise ConfigError(
            f"dilated (=True) needs a residual trunk, not {type(trunk).__name__}; set dilated: "
            "false, or take trunk.name small, resnet18 or resnet50."
        )
    reached = False  # The strided convolution: from here on, kernels are dilated.
    for name, part in trunk.net.get_submodule(trunk.stage_names[-1]).named_modules():
        if not isinstance(part, nn.Conv2d):
            continue
        on_main_path = "downsample" not in name
        if reached and on_main_path and part.kernel_size == (3, 3):
            part.dilation, part.padding = (2, 2), (2, 2)
        if part.stride == (2, 2):
            part.stride = (1, 1)
            reached = reached or on_main_path


class SegmentationConfig(DenseConfig):
    """A fully convolutional head on the trunk; masks and images of a folder in VOC layout.

    The data of the transfer section are not used. The defaults are a short schedule for a CPU. The
    forward pass is in fp32.
    """

    name: Literal["segmentation"]
    voc: Path
    """VOCdevkit/VOC2012, with SegmentationClass and ImageSets/Segmentation."""
    train_set: str = "train"
    """Image set of ImageSets/Segmentation to train on."""
    test_set: str = "val"
    """Image set of ImageSets/Segmentation to test on."""
    dilated: bool = True
    """Let the last stage keep the resolution of the one before it; residual trunks only."""
    frozen: bool = False
    """Train the head alone, on a trunk whose BatchNorm is in evaluation mode."""
    head_width: int = Field(64, gt=0)
    """Channels between the head's two convolutions."""
    image_px: int = Field(128, ge=32)
    """Short side of an image."""
    long_px: int = Field(224, ge=32)
    """Largest long side of an image; a longer image gets a smaller short side."""
    batch: int = Field(8, ge=2)
    """Images in one step, and in one pass of the test."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the training in which the learning rate rises from 0."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """Result of one seed."""

    losses: list[float]
    """One for each step."""
    counts: NDArray[np.int64]
    """(K, K), test pixels by true and by predicted class."""
    seconds: float


def run_segmentation(
    job: SegmentationConfig, setting: Setting, trunk: NamedTrunk, on_progress: Progress
) -> list[Score]:
    """Train a fully convolutional head with a trunk and test it; the score is the mean IoU.

    Predictions are upsampled to the stored size of an image and compared there. Images are
    normalized over their own pixels, and mirrored at random in training.

    Raises:
        ConfigError: The folder holds no masks, a set is missing, a mask names an unknown class, the
            trunk cannot be dilated, or the training diverged.
    """
    train, test = (_upright_set(job.voc, s, setting) for s in (job.train_set, job.test_set))
    done = [
        _train_and_test(job, training, built, (train, test))
        for training, built in each_training(job, setting, trunk, on_progress)
    ]
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


def _upright_set(folder: Path, image_set: str, setting: Setting) -> MaskedSet:
    found = read_masked(folder, image_set)
    return replace(found, images=upright_files(found.images, setting.folder / UPRIGHT))


def _train_and_test(
    job: SegmentationConfig, training: Training, trunk: Trunk, sets: tuple[MaskedSet, MaskedSet]
) -> _Trained:
    started = time.monotonic()
    train, test = sets
    device = training.setting.device
    if job.dilated:
        dilate_last_stage(trunk)
    with torch.random.fork_rng():  # For the head's fresh weights.
        torch.manual_seed(training.seed)
        model = SegmentationModel(trunk, len(train.classes), head_width=job.head_width)
    model.to(device).train()
    if job.frozen:
        trunk.requires_grad_(False).eval()

    def loss_of(fitted: Fitted) -> Tensor:
        targets_BHW = _masks(fitted, train).to(device)
        logits_BKHW = model(_padded(normalized(fitted, device)))
        loss = F.cross_entropy(logits_BKHW, targets_BHW, ignore_index=VOID, reduction="sum")
        # A batch may hold no pixel of a class: the mean would be NaN.
        return loss / max(1, int((targets_BHW != VOID).sum()))

    losses = training.train(model, train.images, loss_of)
    return _Trained(losses, _count(training, model, test), time.monotonic() - started)


@torch.inference_mode()
def _count(training: Training, model: nn.Module, test: MaskedSet) -> NDArray[np.int64]:
    """Count the test pixels by true and by predicted class, at their stored size."""
    model.eval()
    num_classes = len(test.classes)
    counts = np.zeros((num_classes, num_classes), np.int64)
    for fitted in training.test_batches(test.images):
        logits_BKHW = model(_padded(normalized(fitted, training.setting.device)))
        require_finite("the scores of the pixels", logits_BKHW)
        for logits_KHW, (row, size, _) in zip(logits_BKHW, each_image(fitted), strict=True):
            image = test.images[row]
            ours = logits_KHW[None, :, : size[0], : size[1]]
            large = F.interpolate(ours, size=(image.height, image.width), mode="bilinear")
            guess = large[0].argmax(dim=0).cpu().numpy()
            counts += count_pixels(read_mask(image, num_classes), guess, num_classes)
    return counts


def _masks(fitted: Fitted, masked: MaskedSet) -> Tensor:
    """Return the masks of a batch, resized and mirrored like its images: int64 (B, H, W).

    Padding is 255.
    """
    masks = torch.full(fitted.views.shape[:3], VOID, dtype=torch.int64)
    for mask, (row, (height, width), mirrored) in zip(masks, each_image(fitted), strict=True):
        indexes = read_mask(masked.images[row], len(masked.classes))
        shown = fitted_mask(indexes, (height, width), mirrored=mirrored)
        mask[:height, :width] = torch.from_numpy(shown.astype(np.int64))
    return masks


def _padded(images: Sequence[Tensor]) -> Tensor:
    """Pad images (3, height, width) with zeros at the right and bottom: (B, 3, H, W)."""
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    return torch.stack(
        [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    )


def _metric(job: SegmentationConfig) -> str:
    return (
        "mean over the classes in the truth, background included, of intersection over union of "
        "their pixels in all images together, percent, void pixels ignored; fully convolutional "
        f"head on the {'dilated ' if job.dilated else ''}last stage, "
        f"{'head' if job.frozen else 'all'} trained on {job.train_set}, tested on {job.test_set}, "
        f"{protocol_of(job)}"
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
