"""The available trunks, and the view sizes that each accepts."""

import functools
from typing import Literal

from pydantic import model_validator
from typing_extensions import Self, assert_never

from pipeline.config import Config, ConfigError
from training.models.alexnet import PRETEXT_STRIDE, TRANSFER_STRIDE, AlexNetTrunk, least_px
from training.models.residual import ResidualTrunk, SmallNet
from training.models.trunk import Trunk
from training.models.vit import PATCH, VitTrunk

__all__ = ["Trunk", "TrunkConfig", "Use", "build_trunk", "require_view"]

Use = Literal["pretext", "transfer"]
"""What a trunk is built for; only the stride of AlexNet's conv1 depends on it."""


class TrunkConfig(Config):
    """The architecture to train."""

    name: Literal["small", "resnet18", "resnet50", "alexnet", "vit_s16"]
    """small: four basic blocks of 32 to 256 channels, for CPUs; alexnet: the convolutions of
    Noroozi and Favaro 2016; vit_s16: view sides must be multiples of 16 px; the others are
    torchvision's."""
    batch_norm: bool | None = None
    """BatchNorm after every convolution of alexnet; true by default. The paper has none, but
    without it SGD often fails to start."""

    @model_validator(mode="after")
    def _options_are_of_the_architecture(self) -> Self:
        if self.batch_norm is not None and self.name != "alexnet":
            raise ValueError(
                f"batch_norm (={self.batch_norm}) is a choice of alexnet alone, name "
                f"(={self.name}); leave batch_norm out."
            )
        return self


def build_trunk(config: TrunkConfig, *, use: Use = "pretext", view_px: int = 224) -> Trunk:
    """Make a trunk with fresh weights from torch's global generator.

    Initialised as in He et al. 2015 (fan-out), except alexnet without BatchNorm and vit_s16.

    Args:
        config: The architecture.
        use: What the trunk is for.
        view_px: Side of the views that vit_s16 has position embeddings for; it interpolates for
            others. Other trunks ignore it.
    """
    trunk = _build(config, use, view_px)
    trunk.remake = functools.partial(build_trunk, config, use=use, view_px=view_px)
    return trunk


def require_view(config: TrunkConfig, px: int, *, key: str, use: Use) -> None:
    """Refuse a view size that the trunk does not accept.

    Args:
        config: The architecture.
        px: Side of the view.
        key: Path of the config key that sets it, for the message.
        use: What the trunk is for.

    Raises:
        ConfigError: The trunk does not accept views of `px`.
    """
    if config.name == "vit_s16" and px % PATCH:
        near = sorted({max(PATCH, px // PATCH * PATCH), (px // PATCH + 1) * PATCH})
        raise ConfigError(
            f"{key} (={px}) must be a multiple of {PATCH}, the side of a patch of trunk.name "
            f"(=vit_s16); set it to {' or '.join(map(str, near))}."
        )
    least = least_px(_stride(use))
    if config.name == "alexnet" and px < least:
        raise ConfigError(
            f"{key} (={px}) must be at least {least}: the convolutions and pools of trunk.name "
            "(=alexnet) leave nothing of smaller views; raise it or take trunk.name small."
        )


def _build(config: TrunkConfig, use: Use, view_px: int) -> Trunk:
    import torchvision  # Here and in the trunks' modules because it takes seconds to load.

    match config.name:
        case "small":
            return ResidualTrunk(SmallNet(), width=256)
        case "resnet18":
            return ResidualTrunk(torchvision.models.resnet18(weights=None), width=512)
        case "resnet50":
            return ResidualTrunk(torchvision.models.resnet50(weights=None), width=2048)
        case "alexnet":
            return AlexNetTrunk(stride=_stride(use), batch_norm=config.batch_norm is not False)
        case "vit_s16":
            return VitTrunk(view_px=view_px)
        case _:
            assert_never(config.name)


def _stride(use: Use) -> int:
    return PRETEXT_STRIDE if use == "pretext" else TRANSFER_STRIDE
