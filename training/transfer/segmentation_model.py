"""A fully convolutional head (Long et al. 2015) on a trunk."""

# Shapes: B batch, K classes, H/W size of the images, h/w size of the last map.

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import ConfigError
from training.models.residual import ResidualTrunk
from training.models.trunk import Trunk


class SegmentationModel(nn.Module):
    """The last stage's map through a 3x3 and a 1x1 convolution, enlarged to the image."""

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
        """Return logits (B, K, H, W), bilinear between those of the map."""
        logits_BKhw = self.head(self.trunk.stages(images_B3HW)[-1])
        size = images_B3HW.shape[-2:]
        return F.interpolate(logits_BKhw.float(), size=size, mode="bilinear", align_corners=False)


def dilate_last_stage(trunk: Trunk) -> None:
    """Let the last stage of a residual trunk see its map at every place, not at every second.

    Its stride goes, and convolutions behind it get holes, so that the places that were there have
    the same values as before (Chen et al. 2015).

    Raises:
        ConfigError: The trunk is not residual.
    """
    if not isinstance(trunk, ResidualTrunk):
        raise ConfigError(
            f"dilated (=True) needs a residual trunk, not {type(trunk).__name__}; set dilated: "
            "false, or take trunk.name small, resnet18 or resnet50."
        )
    reached = False  # The strided convolution: behind it the map is as large as before it.
    for name, part in trunk.net.get_submodule(trunk.stage_names[-1]).named_modules():
        if not isinstance(part, nn.Conv2d):
            continue
        on_main_path = "downsample" not in name
        if reached and on_main_path and part.kernel_size == (3, 3):
            part.dilation, part.padding = (2, 2), (2, 2)
        if part.stride == (2, 2):
            part.stride = (1, 1)
            reached = reached or on_main_path
