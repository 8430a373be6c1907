"""What every trunk offers: features of an image, a map of each stage, weights to export."""

# Shapes: B batch, C channels, H/W map size, D width.

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor, nn


class Trunk(nn.Module, ABC):
    """A network without its classifier."""

    stage_names: tuple[str, ...]
    """Of the stages that are probed, first to last."""
    width: int
    """Size of what `forward` gives for an image, D."""
    remake: Callable[[], "Trunk"]
    """Makes a trunk of the same architecture with fresh weights; `build_trunk` sets it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @property
    @abstractmethod
    def first_filters(self) -> Tensor:
        """Weights of the first layer, (filters, 3, side, side)."""

    @abstractmethod
    def stages(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the map behind every stage of `stage_names`."""

    @abstractmethod
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the features that heads stand on, (B, D)."""

    @abstractmethod
    def stage_of(self, key: str) -> int:
        """Return the place in `stage_names` of what a weight, or a module of `net`, is used for.

        What comes before the first stage that is probed belongs to that one; what comes behind the
        last, to the last.

        Args:
            key: Of `export`, or the name of a module in `net` that holds weights of its own.
        """

    def export(self) -> dict[str, Tensor]:
        """Return the weights; under torchvision's key names where it has the architecture."""
        return {key: value.contiguous() for key, value in self.net.state_dict().items()}

    def make_room(self, weights: Mapping[str, Tensor]) -> None:
        """Give weights whose size follows the images that of `weights`; most trunks have none."""
