"""Rotation (Gidaris, Singh and Komodakis 2018): which way is up?"""

# Shapes: B batch.

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from pipeline.config import Config
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import Normalization
from pipeline.pretext.plan import (
    TilePlan,
    Tiles,
    crop_sides,
    image_colors,
    plain_plan,
    require_color_shares,
    square_crops,
)

QUARTER_TURNS = (0, 90, 180, 270)
"""Degrees, counterclockwise; the classes, in this order."""


class RotationConfig(Config):
    """The square that is turned, and countermeasures.

    A square is cut before it is turned, and it is turned by exchanging pixels: no corner is black,
    and nothing is interpolated that would tell the turns apart.
    """

    name: Literal["rotation"]
    crop_px: int = Field(224, gt=1)
    """Side of the square."""
    min_scale: float = Field(0.5, gt=0, le=1)
    """Smallest side of the square as a share of the image's short side, drawn up to 1."""
    mirror_probability: float = Field(0.5, ge=0, le=1)
    """Share of images whose left and right are exchanged."""
    gray_probability: float = Field(0.0, ge=0, le=1)
    """Share of images shown in gray, so that the layout of colors tells less."""
    projection_probability: float = Field(0.0, ge=0, le=1)
    """Share of images whose colors are projected (Doersch et al. 2015, section 3.1)."""
    normalization: Normalization = "tile"
    """Of a view: tile makes mean and deviation equal, fixed leaves them."""

    @model_validator(mode="after")
    def _shares_are_possible(self) -> Self:
        require_color_shares(self.gray_probability, self.projection_probability)
        return self

    @property
    def num_tiles(self) -> int:
        """Views that the graph makes of one image; all four turns come of the same one."""
        return 1

    @property
    def num_answers(self) -> int:
        """Answers asked of one image, L."""
        return len(QUARTER_TURNS)

    @property
    def num_classes(self) -> int:
        """Width of the head's output."""
        return len(QUARTER_TURNS)

    @property
    def chance(self) -> float:
        """Accuracy of a blind guess."""
        return 1 / len(QUARTER_TURNS)

    @property
    def tiles(self) -> Tiles:
        """Geometry of the views."""
        return Tiles(
            crop_px=self.crop_px,
            num_tiles=1,
            tile_px=self.crop_px,
            tinted=bool(self.gray_probability or self.projection_probability),
            mirrored=self.mirror_probability > 0,
        )


def plan_rotation(
    config: RotationConfig, heights: NDArray[np.int32], widths: NDArray[np.int32], draws: Draws
) -> TilePlan:
    """Draw squares for a batch of images of the given sizes; labels (B, 4) are all four turns."""
    batch = len(heights)
    drawn = draws.uniform("rotation.crop", 4)
    side = crop_sides(heights, widths, (config.min_scale, 1.0), drawn[:, 0])
    turns = np.arange(len(QUARTER_TURNS), dtype=np.int64)
    plan = plain_plan(
        crops=square_crops(side, heights, widths, drawn[:, 1:3]),
        anchors=np.zeros((batch, 1, 2), np.int32),
        labels=np.repeat(turns[None], batch, axis=0),
        tile_px=config.crop_px,
    )
    shown = image_colors(
        draws, "rotation.gray", config.gray_probability, config.projection_probability
    )
    return replace(
        plan,
        colors=shown[:, None],
        mirrored=(drawn[:, 3] < config.mirror_probability).astype(np.int32),
    )
