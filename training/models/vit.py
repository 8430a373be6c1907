"""ViT-S/16 (Dosovitskiy et al. 2021, small as in Touvron et al. 2021) on torchvision's ViT."""

# Shapes: B batch, C channels, H/W map size, N = H * W patches, D = 384.

import bisect
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.trunk import Trunk

PATCH = 16
"""Side of a patch in px; a view's side is a multiple of it."""

_POSITIONS = "encoder.pos_embedding"
_BLOCK = "encoder.layers.encoder_layer_"
_PROBED = (3, 6, 9, 12)
"""Blocks whose output is probed."""


class VitTrunk(Trunk):
    """A vision transformer; its features are the class token after the last normalisation.

    The position embedding encodes where a patch is in its view, not where the view is in the
    image: every tile is encoded separately with the same embedding, so it cannot give away the
    answer to a pretext. For other view sizes it is interpolated (bicubic).
    """

    stage_names = tuple(f"block{number}" for number in _PROBED)
    width = 384

    def __init__(self, *, view_px: int) -> None:
        from torchvision.models import VisionTransformer

        net = VisionTransformer(
            image_size=view_px,
            patch_size=PATCH,
            num_layers=12,
            num_heads=6,
            hidden_dim=self.width,
            mlp_dim=4 * self.width,
        )
        net.heads = nn.Identity()  # Holds no weights, so heads are not in the export.
        super().__init__(net)

    @property
    def first_filters(self) -> Tensor:
        return self.net.get_parameter("conv_proj.weight")

    def stage_of(self, key: str) -> int:
        if key.startswith("encoder.ln"):
            return len(_PROBED) - 1
        if not key.startswith(_BLOCK):
            return 0  # Patches, class token, positions.
        number = int(key.removeprefix(_BLOCK).split(".")[0]) + 1
        return bisect.bisect_left(_PROBED, number)

    def stages(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the patch tokens after the probed blocks as maps (B, D, H, W)."""
        tokens, size = self._blocks(images_BCHW)
        return [x[:, 1:].transpose(1, 2).reshape(len(x), self.width, *size) for x in tokens]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        last = self._blocks(images_BCHW)[0][-1]
        features: Tensor = self.net.get_submodule("encoder.ln")(last)[:, 0]
        return features

    def make_room(self, weights: Mapping[str, Tensor]) -> None:
        """Adopt the number of positions, which depends on the size of the training views."""
        ours = self.net.get_parameter(_POSITIONS)
        theirs = weights.get(_POSITIONS)
        if theirs is not None and theirs.ndim == 3 and _is_square(theirs.shape[1] - 1):
            room = torch.zeros(1, theirs.shape[1], self.width, device=ours.device)
            self.net.get_submodule("encoder").pos_embedding = nn.Parameter(room)

    def _blocks(self, images_BCHW: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Return the tokens (B, 1 + N, D) after the probed blocks, and H, W of the patch grid."""
        patches_BDHW = self.net.get_submodule("conv_proj")(images_BCHW)
        size = (patches_BDHW.shape[2], patches_BDHW.shape[3])
        token = self.net.get_parameter("class_token").expand(len(images_BCHW), -1, -1)
        x = torch.cat([token, patches_BDHW.flatten(2).transpose(1, 2)], dim=1)
        x = x + positions_of(self.net.get_parameter(_POSITIONS), size)
        outputs = []
        for number, block in enumerate(self.net.get_submodule("encoder.layers").children(), 1):
            x = block(x)
            if number in _PROBED:
                outputs.append(x)
        return outputs, size


def positions_of(embedding: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate a position embedding unless it already has the given size.

    Args:
        embedding: (1, 1 + n * n, D), the class token's first, then those of a square of patches.
        size: Patches down and across, H and W.

    Returns:
        (1, 1 + H * W, D).
    """
    side = round((embedding.shape[1] - 1) ** 0.5)
    if (side, side) == size:
        return embedding
    grid = embedding[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
    wanted = F.interpolate(grid, size=size, mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :1], wanted.flatten(2).transpose(1, 2)], dim=1)


def _is_square(number: int) -> bool:
    return number > 0 and round(number**0.5) ** 2 == number
