"""Supervised: name the class of the image; what other pretexts are compared with."""

# Shapes: B batch, N images.

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import xxhash
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

NO_CLASS = -1
"""Label of an image that teaches nothing: it has no class, or is held out."""


class SupervisedConfig(Config):
    """A random square of the image, half of them mirrored, and its class.

    Images without a class, and those held out, are seen by BatchNorm and count 0 in the loss: a
    step holds the same images whatever is known of them.
    """

    name: Literal["supervised"]
    crop_px: int = Field(224, gt=1)
    """Side of the square that the trunk sees."""
    min_scale: float = Field(0.5, gt=0, le=1)
    """Smallest side of the square as a share of the image's short side, drawn up to 1."""
    mirror_probability: float = Field(0.5, ge=0, le=1)
    """Share of images whose left and right are exchanged."""
    gray_probability: float = Field(0.0, ge=0, le=1)
    """Share of images shown in gray."""
    projection_probability: float = Field(0.0, ge=0, le=1)
    """Share of images whose colors are projected (Doersch et al. 2015, section 3.1)."""
    normalization: Normalization = "tile"
    """Of a view: tile makes mean and deviation equal, as a transfer does; fixed leaves them."""
    holdout: float = Field(0.3, ge=0, lt=1)
    """Share of the images whose class is not taught. They are those that a transfer with the same
    test_share tests on: one hash of the key decides both."""
    classes: int | None = Field(None, ge=2)
    """Number of classes; that of the manifest where this is left out."""

    @model_validator(mode="after")
    def _shares_are_possible(self) -> Self:
        require_color_shares(self.gray_probability, self.projection_probability)
        return self

    @property
    def num_tiles(self) -> int:
        """Views that the graph makes of one image."""
        return 1

    @property
    def num_answers(self) -> int:
        """Answers asked of one image, L."""
        return 1

    @property
    def num_classes(self) -> int:
        """Width of the head's output.

        Raises:
            ValueError: `classes` is left out, and nobody has looked into the manifest.
        """
        if self.classes is None:
            raise ValueError("the number of classes is that of the manifest: fill in `classes`.")
        return self.classes

    @property
    def chance(self) -> float:
        """Accuracy of a blind guess."""
        return 1 / self.num_classes

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


def plan_supervised(
    config: SupervisedConfig, heights: NDArray[np.int32], widths: NDArray[np.int32], draws: Draws
) -> TilePlan:
    """Draw squares for a batch of images of the given sizes; labels (B, 1) are all NO_CLASS."""
    batch = len(heights)
    drawn = draws.uniform("supervised.crop", 4)
    side = crop_sides(heights, widths, (config.min_scale, 1.0), drawn[:, 0])
    plan = plain_plan(
        crops=square_crops(side, heights, widths, drawn[:, 1:3]),
        anchors=np.zeros((batch, 1, 2), np.int32),
        labels=np.full((batch, 1), NO_CLASS, np.int64),
        tile_px=config.crop_px,
    )
    shown = image_colors(
        draws, "supervised.gray", config.gray_probability, config.projection_probability
    )
    return replace(
        plan,
        colors=shown[:, None],
        mirrored=(drawn[:, 3] < config.mirror_probability).astype(np.int32),
    )


def taught_classes(
    config: SupervisedConfig, keys: Sequence[str], labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the class that each image teaches, (B, 1): NO_CLASS where it has none or is held out.

    Args:
        config: How many are held out.
        keys: Of the images.
        labels: Class numbers (B,), negative where there is none.
    """
    taught = (labels >= 0) & ~held_out(keys, config.holdout)
    return np.where(taught, labels, NO_CLASS)[:, None]


def held_out(keys: Sequence[str], share: float) -> NDArray[np.bool_]:
    """Say which images are held out: about `share` of them, by the hash of their key alone, (N,).

    A transfer's split takes the same hash, so that it tests on these.
    """
    return hash_keys(keys) < np.uint64(share * 2**64)


def hash_keys(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Return the hash that decides where an image goes, uint64 (N,)."""
    return np.array([xxhash.xxh3_64_intdigest(f"split:{k}".encode()) for k in keys], np.uint64)
