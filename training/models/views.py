"""Views as they leave the graph into what a trunk takes."""

import torch
from torch import Tensor

_FLOOR = 4.0
"""Added to the standard deviation, in gray levels: sky and JPEG noise are not blown up."""


def normalize(views: Tensor) -> Tensor:
    """Give every view and channel mean 0 and standard deviation about 1.

    Mean and deviation are those of the single tile, so that neither its brightness nor its
    contrast tells where it comes from (Noroozi and Favaro 2016, section 4.1).

    Args:
        views: uint8 (..., H, W, 3).

    Returns:
        float32 (N, 3, H, W) in channels_last memory, N the product of the leading sizes.
    """
    pixels = views.flatten(0, -4).float()
    deviation, mean = torch.std_mean(pixels, dim=(1, 2), keepdim=True)
    return ((pixels - mean) / (deviation + _FLOOR)).permute(0, 3, 1, 2)
