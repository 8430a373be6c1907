"""What the network sees: uint8 views as they leave the graph, turned and normalised on the device.

A graph gives one row of bytes for each image. Here the row is cut into each task's tiles.
"""

import math

import torch
from torch import Tensor

from pipeline.pretext.multitask import MultitaskConfig, Task, tasks_of
from pipeline.pretext.rotation import RotationConfig

# Shapes: B batch, T tiles of an image, V views that the network sees of it, H/W view size.


_FLOOR = 4.0
"""Least deviation that is divided by, in gray levels: sky and JPEG noise are not blown up. Were it
added instead, contrast could still be read off what is left: s / (s + 4) grows with s."""
_MEAN = (123.675, 116.28, 103.53)
_DEVIATION = (58.395, 57.12, 57.375)
"""Mean and deviation of ImageNet, in gray levels, as torchvision's models use them."""


def split_views(pretext: Task | MultitaskConfig, views: Tensor) -> tuple[Tensor, ...]:
    """Cut what a graph gave into the tiles of each task.

    Args:
        pretext: The tasks.
        views: uint8, (B, T, H, W, 3) of a single task, or (B, N), the tiles of all tasks in a row.

    Returns:
        For each task, uint8 (B, T, H, W, 3), without a copy.
    """
    if not isinstance(pretext, MultitaskConfig):
        return (views,)
    parts, start = [], 0
    for task in pretext.tasks:
        shape = task.tiles.shape
        size = math.prod(shape)
        parts.append(views[:, start : start + size].view(len(views), *shape))
        start += size
    return tuple(parts)


def split_labels(pretext: Task | MultitaskConfig, labels: Tensor) -> tuple[Tensor, ...]:
    """Cut labels (B, L) into those of each task, (B, its num_answers)."""
    return torch.split(labels, [task.num_answers for task in tasks_of(pretext)], dim=1)


def see(task: Task, views: Tensor) -> Tensor:
    """Turn and normalise the tiles of a task.

    Args:
        task: What is asked.
        views: uint8 (B, T, H, W, 3).

    Returns:
        float32 (B * V, 3, H, W) in channels_last memory. V is T, or the four turns of rotation.
    """
    if isinstance(task, RotationConfig):
        views = quarter_turns(views)
    return normalize(views) if task.normalization == "tile" else standardize(views)


def quarter_turns(views: Tensor) -> Tensor:
    """Turn squares (B, 1, H, H, 3) by 0, 90, 180 and 270 degrees counterclockwise: (B, 4, H, H, 3).

    Pixels are exchanged, none is interpolated.
    """
    return torch.cat([views.rot90(turns, dims=(2, 3)) for turns in range(4)], dim=1)


def normalize(views: Tensor) -> Tensor:
    """Give every view and channel mean 0 and standard deviation 1, less where it is flat.

    Mean and deviation are those of the single tile, so that neither its brightness nor its
    contrast tells where it comes from (Noroozi and Favaro 2016, section 4.1).

    Args:
        views: uint8 (..., H, W, 3).

    Returns:
        float32 (N, 3, H, W) in channels_last memory, N the product of the leading sizes.
    """
    pixels = views.flatten(0, -4).float()
    deviation, mean = torch.std_mean(pixels, dim=(1, 2), keepdim=True)
    return ((pixels - mean) / deviation.clamp(min=_FLOOR)).permute(0, 3, 1, 2)


def standardize(views: Tensor) -> Tensor:
    """Subtract and divide by the same constants for all views; shapes as in `normalize`."""
    pixels = views.flatten(0, -4).float()
    mean, deviation = pixels.new_tensor(_MEAN), pixels.new_tensor(_DEVIATION)
    return ((pixels - mean) / deviation).permute(0, 3, 1, 2)
