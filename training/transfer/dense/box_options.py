"""Options of a detector; a file of its own so that reading a config does not load torchvision."""

from dataclasses import dataclass
from typing import Literal

Neck = Literal["c4", "fpn"]
"""c4: the trunk up to its last stage but one proposes regions, the last stage classifies them (He
et al. 2016). fpn: a pyramid of its stages proposes them, two linear layers classify (Lin et al.
2017)."""
BatchNorm = Literal["frozen", "train", "sync"]
"""frozen: statistics, scale and shift of the trunk stay fixed. train: batch statistics. sync: batch
statistics over all ranks; without ranks, the same as train."""


@dataclass(frozen=True, slots=True)
class BoxModelOptions:
    """Architecture of a detector, and what of it is trained."""

    neck: Neck
    num_classes: int
    """Number of object classes, without the background."""
    image_px: int
    """Short side of the images; anchors have a twelfth to four thirds of it."""
    roi_px: int
    """Side of the map of a region."""
    fpn_width: int
    """Channels of the pyramid, and a quarter of the width of its linear layers."""
    proposals: int
    """Regions of an image that are classified in the test."""
    rois_per_image: int
    """Regions of an image that are learned from."""
    score_threshold: float
    """Lowest score of a detected box."""
    batch_norm: BatchNorm
    frozen_stages: int
    """Number of first stages that are not trained, 0 to 5."""
