"""Trunks: networks whose stages are probed; exported under torchvision's key names."""

# Shapes: B batch, C channels, H/W map size, D width of the last stage.

from typing import Literal

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from pipeline.config import Config

STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")
"""Names of the stages of every trunk, first to last."""


class TrunkConfig(Config):
    """Which architecture is trained."""

    name: Literal["small", "resnet18", "resnet50"]
    """small: four basic blocks of 32 to 256 channels, for CPUs; the others are torchvision's."""


class Trunk(nn.Module):
    """A residual network without its classifier."""

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__()
        self.net = net
        self.width = width
        """Channels of the last stage, D."""

    def stages(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the map behind every stage of STAGES."""
        x, maps = images_BCHW, []
        for name in ("conv1", "bn1", "relu", "maxpool", *STAGES[1:]):
            x = self.net.get_submodule(name)(x)
            if name == "relu" or name in STAGES[1:]:
                maps.append(x)
        return maps

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the last map, averaged over its places, (B, D)."""
        return self.stages(images_BCHW)[-1].mean(dim=(2, 3))

    def export(self) -> dict[str, Tensor]:
        """Return the weights under torchvision's key names, without fc."""
        return {key: value.contiguous() for key, value in self.net.state_dict().items()}


def build_trunk(config: TrunkConfig) -> Trunk:
    """Make a trunk with fresh weights (He et al. 2015, fan-out), from torch's global generator."""
    match config.name:
        case "small":
            return Trunk(SmallNet(), width=256)
        case "resnet18":
            return Trunk(_headless(torchvision.models.resnet18(weights=None)), width=512)
        case "resnet50":
            return Trunk(_headless(torchvision.models.resnet50(weights=None)), width=2048)


class SmallNet(nn.Module):
    """One basic block a stage, a stride-2 stem without pooling: 1.2 M weights, for 32 px tiles."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, kernel_size=5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
        self.layer1 = nn.Sequential(BasicBlock(32, 32))
        self.layer2 = nn.Sequential(_down_block(32, 64))
        self.layer3 = nn.Sequential(_down_block(64, 128))
        self.layer4 = nn.Sequential(_down_block(128, 256))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _down_block(inputs: int, outputs: int) -> BasicBlock:
    shortcut = nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(outputs)
    )
    return BasicBlock(inputs, outputs, stride=2, downsample=shortcut)


def _headless(net: nn.Module) -> nn.Module:
    net.fc = nn.Identity()  # Holds no weights, so fc is not in the export.
    return net
