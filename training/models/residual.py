"""Residual networks: torchvision's (He et al. 2016), and a small one for CPUs."""

# Shapes: B batch, C channels, H/W map size, D width of the last stage.

from torch import Tensor, nn

from training.models.trunk import Trunk


class ResidualTrunk(Trunk):
    """A residual network; its features are the spatial average of the last map."""

    stage_names = ("conv1", "layer1", "layer2", "layer3", "layer4")

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__(net)
        net.fc = nn.Identity()  # Holds no weights, so fc is not in the export.
        self.width = width

    @property
    def first_filters(self) -> Tensor:
        return self.net.get_parameter("conv1.weight")

    def stage_of(self, key: str) -> int:
        name = key.split(".")[0]
        return 0 if name == "bn1" else self.stage_names.index(name)

    def stages(self, images_BCHW: Tensor) -> list[Tensor]:
        x, maps = images_BCHW, []
        for name in ("conv1", "bn1", "relu", "maxpool", *self.stage_names[1:]):
            x = self.net.get_submodule(name)(x)
            if name == "relu" or name in self.stage_names[1:]:
                maps.append(x)
        return maps

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.stages(images_BCHW)[-1].mean(dim=(2, 3))


class SmallNet(nn.Module):
    """One basic block per stage, stride-2 stem without pooling: 1.2 M weights, for 32 px tiles."""

    def __init__(self) -> None:
        from torchvision.models.resnet import BasicBlock

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


def _down_block(inputs: int, outputs: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock

    shortcut = nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(outputs)
    )
    block: nn.Module = BasicBlock(inputs, outputs, stride=2, downsample=shortcut)
    return block
