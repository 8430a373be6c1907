"""What a detector is made of: read from a config before torchvision is loaded."""

from dataclasses import dataclass
from typing import Literal

Neck = Literal["c4", "fpn"]
"""c4: the trunk up to its last stage but one finds regions, the last stage looks into them (He et
al. 2016). fpn: a pyramid of its stages finds them, two linear layers look (Lin et al. 2017)."""
BatchNorm = Literal["frozen", "train", "sync"]
"""frozen: statistics, scale and shift of the trunk stay what they are. train: statistics are those
of the batch. sync: those of the batch over all ranks; without ranks, the same as train."""


@dataclass(frozen=True, slots=True)
class BoxModelOptions:
    """What a detector is made of, and how it is trained."""

    neck: Neck
    num_classes: int
    """Of objects, without the background."""
    image_px: int
    """Short side of the images; anchors have a twelfth to four thirds of it."""
    roi_px: int
    """Side of the map of a region."""
    fpn_width: int
    """Channels of the pyramid, and a quarter of the width of its linear layers."""
    proposals: int
    """Regions of an image that are looked into in the test."""
    rois_per_image: int
    """Regions of an image that are learned from."""
    score_threshold: float
    """Least score of a box that is found."""
    batch_norm: BatchNorm
    frozen_stages: int
    """First stages of the trunk that are not trained, 0 to 5."""
