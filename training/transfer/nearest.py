"""Nearest neighbours of test images among training images, by the cosine of their features."""

# Shapes: N training images, M test images, D features, k neighbours.

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from training.transfer.features import Rows

_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The k nearest training images of each test image, the nearest first."""

    rows: NDArray[np.int64]
    """(M, k), of the training images."""
    cosines: NDArray[np.float32]
    """(M, k)."""


def nearest(train: Rows, test: Rows, num: int, device: torch.device) -> Neighbours:
    """Find the `num` training rows that have the largest cosine with each test row.

    Among equals, the earlier training row is nearer.
    """
    known = F.normalize(torch.from_numpy(train).to(device))
    rows, cosines = [], []
    for part in torch.split(torch.from_numpy(test), _AT_ONCE):
        similar = F.normalize(part.to(device)) @ known.T
        found, order = similar.sort(dim=1, descending=True, stable=True)
        rows.append(order[:, :num].cpu())
        cosines.append(found[:, :num].cpu())
    return Neighbours(torch.cat(rows).numpy(), torch.cat(cosines).numpy())
