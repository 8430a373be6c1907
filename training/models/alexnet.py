"""AlexNet's convolutions as in the context-free network of Noroozi and Favaro 2016."""

# Shapes: B batch, C channels, H/W map size, D = 2304 = 256 * 3 * 3.

import torch.nn.functional as F
from torch import Tensor, nn

from training.models.trunk import Trunk

PRETEXT_STRIDE, TRANSFER_STRIDE = 2, 4
"""Stride of conv1, with the same weights: tiles of 64 px are too small for 4 (section 3.1)."""

_SIDE = 3
"""Side of the last map for a tile of 64 px."""


class AlexNetTrunk(Trunk):
    """Five convolutions (some grouped), overlapping pools, local response normalisation.

    Pools round up, as in Caffe; rounding down would leave a 2 x 2 last map for a 64 px tile. The
    features are the 3 x 3 map, flattened, so heads see where things are in the tile; maps of other
    sizes are averaged to 3 x 3.

    The paper has no BatchNorm. By default it follows each convolution here, because without it
    plain SGD often fails to start: Doersch et al. 2015 (section 3) report that activations
    collapsed to 0 until they added it, and Goyal et al. 2019 train their AlexNet with it.

    torchvision's AlexNet has no groups and other widths and strides, so the keys are our own:
    conv1 to conv5, and bn1 to bn5.
    """

    stage_names = ("conv1", "conv2", "conv3", "conv4", "conv5")
    width = 256 * _SIDE * _SIDE

    def __init__(self, *, stride: int, batch_norm: bool) -> None:
        super().__init__(_AlexNet(stride=stride, batch_norm=batch_norm))

    @property
    def first_filters(self) -> Tensor:
        return self.net.get_parameter("conv1.weight")

    def stage_of(self, key: str) -> int:
        return int(key.split(".")[0].removeprefix("conv").removeprefix("bn")) - 1

    def stages(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the maps after each convolution's ReLU, before its pool."""
        maps: list[Tensor] = self.net(images_BCHW)
        return maps

    def forward(self, images_BCHW: Tensor) -> Tensor:
        last = _pool(self.stages(images_BCHW)[-1])
        return F.adaptive_avg_pool2d(last, _SIDE).flatten(1)


class _AlexNet(nn.Module):
    """Returns the maps of all stages."""

    def __init__(self, *, stride: int, batch_norm: bool) -> None:
        super().__init__()
        bias = not batch_norm  # BatchNorm has its own.
        self.conv1 = nn.Conv2d(3, 96, 11, stride=stride, bias=bias)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2, bias=bias)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1, bias=bias)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2, bias=bias)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2, bias=bias)
        self.normalize = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        convolutions = (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5)
        for number, conv in enumerate(convolutions, start=1):
            norm = nn.BatchNorm2d(conv.out_channels) if batch_norm else nn.Identity()
            self.add_module(f"bn{number}", norm)
            _fill(conv)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        x, maps = images_BCHW, []
        for number in range(1, 6):
            x = self.get_submodule(f"conv{number}")(x)
            x = F.relu(self.get_submodule(f"bn{number}")(x))
            maps.append(x)
            if number <= 2:
                x = self.normalize(_pool(x))
        return maps


def _pool(x_BCHW: Tensor) -> Tensor:
    return F.max_pool2d(x_BCHW, kernel_size=3, stride=2, ceil_mode=True)


def _fill(conv: nn.Conv2d) -> None:
    """Initialise as the authors' released network; with BatchNorm as He et al. 2015."""
    if conv.bias is None:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        return
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, 0.0 if conv.groups == 1 else 1.0)


def least_px(stride: int) -> int:
    """Return the side of the smallest view that leaves a 2 x 2 map for the pool after conv5.

    >>> least_px(2), least_px(4)
    (25, 39)
    """
    # Backwards: conv5 has side 2, the pool before it 4, the one before that 8; conv1 spans 11 px.
    return 11 + 7 * stride
