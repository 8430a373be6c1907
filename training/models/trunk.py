"""The interface of every trunk: features of an image, maps of its stages, weights to export."""

# Shapes: B batch, C channels, H/W map size, D width.

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor, nn


class Trunk(nn.Module, ABC):
    """A network without its classifier."""

    stage_names: tuple[str, ...]
    """Names of the stages that can be probed, first to last."""
    width: int
    """Features per image, D."""
    remake: Callable[[], "Trunk"]
    """Makes a trunk of the same architecture with fresh weights; set by `build_trunk`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @property
    @abstractmethod
    def first_filters(self) -> Tensor:
        """Weights of the first layer, (filters, 3, side, side)."""

    @abstractmethod
    def stages(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the output map (B, C, H, W) of every stage of `stage_names`."""

    @abstractmethod
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the features that heads work on, (B, D)."""

    @abstractmethod
    def stage_of(self, key: str) -> int:
        """Return the index in `stage_names` of the stage that a weight belongs to.

        Weights before the first probed stage belong to it; weights after the last, to the last.

        Args:
            key: A key of `export`, or the name of a module of `net` that has weights of its own.
        """

    def export(self) -> dict[str, Tensor]:
        """Return the weights, under torchvision's key names if it has the architecture."""
        return {key: value.contiguous() for key, value in self.net.state_dict().items()}

    def make_room(self, weights: Mapping[str, Tensor]) -> None:
        """Resize weights that depend on the view size to those of `weights`; only a ViT has any."""
