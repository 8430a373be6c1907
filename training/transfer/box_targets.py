"""Boxes of images that are resized and mirrored, and as torchvision's detectors learn them."""

# Shapes: n boxes of an image.

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.fitted import Fitted
from training.transfer.voc import VocImage


def each_image(fitted: Fitted) -> list[tuple[int, tuple[int, int], int]]:
    """Return row, size (height, width) and mirror of every image of a batch."""
    plan = fitted.plan
    sizes = [(height, width) for height, width in plan.sizes.tolist()]
    return list(zip(plan.rows.tolist(), sizes, plan.mirrored.tolist(), strict=True))


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
    """Move the boxes of an image to where they are once it is resized, then mirrored.

    Args:
        image: With its boxes.
        size: Height and width of the resized image.
        mirrored: Whether left and right are exchanged.

    Returns:
        float32 (n, 4).
    """
    boxes = (image.boxes * scale_of((image.height, image.width), size)).astype(np.float32)
    if mirrored:
        boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
    return boxes


def scale_of(stored: tuple[int, int], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return what boxes of an image are multiplied with when it is resized, float32 (4,)."""
    down, across = size[0] / stored[0], size[1] / stored[1]
    return np.array([across, down, across, down], np.float32)
