"""Views of labelled images for classifiers: random crops to train on, fixed crops to test on."""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import assert_never

from pipeline.dali.graph import GraphOptions
from pipeline.loading.crops import (
    CropConfig,
    Cropping,
    SampleGroup,
    central_cropping,
    crop_batches,
    even_parts,
    random_cropping,
    shuffled,
    ten_cropping,
)
from pipeline.loading.graph_runner import Batch
from pipeline.pretext.normalize import normalize
from training.transfer.job import Labelled, Setting

# Shapes: B batch, V views of an image, C classes, H/W view size.


TestViews = Literal["central", "ten_crops", "ten_random"]
"""central: the largest central square. ten_crops: squares in the corners and the middle, and their
mirror images. ten_random: crops as in training, but always the same."""

VIEWS_IN_WORDS: dict[TestViews, str] = {
    "central": "central view",
    "ten_crops": "mean over 10 crops (corners and middle, mirrored too)",
    "ten_random": "mean over 10 random crops",
}

_TEN_CROPS_SHARE = 224 / 256
"""Side of the ten crops relative to the image's short side."""


@dataclass(frozen=True, slots=True)
class ViewBatch:
    """A batch on the device."""

    images: Tensor
    """float32 (B * V, 3, H, W), normalized, views of an image adjacent."""
    targets: Tensor
    """int64 (B,) or (B, C), as `Labelled.targets`."""
    num_views: int
    """Views per image, V."""


def steps_of(labelled: Labelled, batch: int) -> int:
    """Return the number of steps in an epoch of `train_batches`."""
    return math.ceil(len(labelled.sample_ids) / batch)


def train_batches(
    labelled: Labelled, crops: CropConfig | None, setting: Setting, *, batch: int, seed: int
) -> Generator[ViewBatch, None, None]:
    """Yield every image once in each epoch, endlessly, in an order that (seed, epoch) decides.

    Batches of an epoch differ by at most one image, and none is dropped.

    Args:
        labelled: Images to show.
        crops: How crops are drawn, by (seed, epoch, sample id); None shows central squares.
        setting: Device and size of the views.
        batch: At most this many images per step.
        seed: Seed of order and crops.
    """

    def parts() -> Iterator[SampleGroup]:
        epoch = 0
        while True:
            rows = shuffled(labelled.sample_ids, seed=seed, epoch=epoch)
            for step, part in enumerate(even_parts(len(rows), batch)):
                ours = rows[part]
                yield SampleGroup(epoch, step, labelled.sample_ids[ours], labelled.targets[ours])
            epoch += 1

    cropping = random_cropping(crops, num_views=1, name="transfer") if crops else central_cropping()
    yield from _show(labelled, parts(), cropping, setting, batch=batch, seed=seed)


def evaluation_batches(
    labelled: Labelled, views: TestViews, crops: CropConfig, setting: Setting, *, seed: int
) -> Generator[ViewBatch, None, None]:
    """Yield every image once, in the given order; the last batch is short.

    Args:
        labelled: Images to show.
        views: Which views of them.
        crops: How random crops are drawn.
        setting: Device, size of the views, and how many of them form a batch.
        seed: Seed of random crops.
    """
    cropping = _test_cropping(views, crops)
    batch = max(1, setting.batch // cropping.num_views)
    ids, targets = labelled.sample_ids, labelled.targets
    starts = range(0, len(ids), batch)
    parts = (
        SampleGroup(0, k, ids[n : n + batch], targets[n : n + batch]) for k, n in enumerate(starts)
    )
    yield from _show(labelled, parts, cropping, setting, batch=batch, seed=seed)


def _test_cropping(views: TestViews, crops: CropConfig) -> Cropping:
    match views:
        case "central":
            return central_cropping()
        case "ten_crops":
            return ten_cropping(_TEN_CROPS_SHARE)
        case "ten_random":
            return random_cropping(crops, num_views=10, name="transfer.test")
        case _:
            assert_never(views)


def _show(
    labelled: Labelled,
    parts: Iterator[SampleGroup],
    cropping: Cropping,
    setting: Setting,
    *,
    batch: int,
    seed: int,
) -> Generator[ViewBatch, None, None]:
    options = GraphOptions(
        max_batch=batch,
        num_threads=setting.threads,
        device_id=setting.device.index,
        prefetch=2,
    )
    px = setting.view_px
    for made in crop_batches(labelled.store, parts, cropping, options, px=px, seed=seed):
        yield _on_device(made, setting.device, cropping.num_views)


def _on_device(made: Batch, device: torch.device, num_views: int) -> ViewBatch:
    targets = torch.from_numpy(made.labels).to(device, non_blocking=True)
    return ViewBatch(normalize(made.views.to(device, non_blocking=True)), targets, num_views)
