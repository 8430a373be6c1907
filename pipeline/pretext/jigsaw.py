"""Jigsaw puzzles (Noroozi and Favaro 2016): find the order of shuffled tiles."""

# Shapes: B batch, T tiles (grid * grid, in reading order), P puzzles of one image.

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from pipeline.config import Config
from pipeline.draws import Draws


class JigsawConfig(Config):
    """Tile geometry, countermeasures against shortcuts, and the size of the answer set.

    The defaults are geometry (b) of the paper: 85 px cells of a 255 px crop, 64 px tiles.
    """

    name: Literal["jigsaw"]
    grid: int = Field(3, ge=2, le=8)
    """Tiles on a side."""
    crop_px: int = Field(255, gt=0)
    """Side of the square view that is cut into cells; a multiple of grid."""
    tile_px: int = Field(64, gt=1)
    """Side of the tile, cut at random inside its cell; the gap hides edge continuity."""
    min_scale: float = Field(0.7, gt=0, le=1)
    """Smallest side of the crop as a share of the image's short side, drawn up to 1. A scale that
    is not an integer keeps the phase of JPEG's 8 x 8 blocks from naming the cell."""
    gray_probability: float = Field(0.3, ge=0, le=1)
    """Share of images shown in gray, so that chromatic aberration cannot give places away."""
    num_permutations: int = Field(1000, ge=2, le=10_000)
    """Size of the permutation set."""
    permutation_seed: int = 0
    """Names the permutation set among those of the same size."""
    puzzles_per_image: int = Field(8, ge=1)
    """Permutations asked of one image at one pass through the trunk: embeddings are permuted."""

    @model_validator(mode="after")
    def _tiles_fit(self) -> Self:
        if self.crop_px % self.grid:
            raise ValueError(
                f"crop_px (={self.crop_px}) must be a multiple of grid (={self.grid}), so that all "
                "cells are equal."
            )
        if self.tile_px > self.cell_px:
            raise ValueError(
                f"tile_px (={self.tile_px}) must be at most the cell of {self.cell_px} px "
                f"(crop_px {self.crop_px} / grid {self.grid}); lower tile_px or raise crop_px."
            )
        if self.num_permutations > math.factorial(self.num_tiles):
            raise ValueError(
                f"num_permutations (={self.num_permutations}) exceeds the "
                f"{math.factorial(self.num_tiles)} permutations of {self.num_tiles} tiles "
                f"({self.num_tiles}!); lower it or raise grid."
            )
        return self

    @property
    def cell_px(self) -> int:
        """Side of one grid cell."""
        return self.crop_px // self.grid

    @property
    def num_tiles(self) -> int:
        """Tiles of one image."""
        return self.grid * self.grid

    @property
    def num_classes(self) -> int:
        """Width of the head's output."""
        return self.num_permutations

    @property
    def chance(self) -> float:
        """Accuracy of a blind guess."""
        return 1 / self.num_permutations


@dataclass(frozen=True, slots=True)
class JigsawPlan:
    """What to cut from each image of a batch, and what to ask of it."""

    crops: NDArray[np.int32]
    """(B, 4): top, left, height, width of the square crop, in pixels of the stored image."""
    anchors: NDArray[np.int32]
    """(B, T, 2): top, left of every tile in the crop after its resize to crop_px."""
    gray: NDArray[np.int32]
    """(B,): 1 where the image is shown in gray."""
    labels: NDArray[np.int64]
    """(B, P): rows of the permutation set."""


def plan_jigsaw(
    config: JigsawConfig, heights: NDArray[np.int32], widths: NDArray[np.int32], draws: Draws
) -> JigsawPlan:
    """Draw crop, tile places, gray and permutations for a batch of images of the given sizes."""
    batch, tiles = len(heights), config.num_tiles
    short = np.minimum(heights, widths)
    place = draws.uniform("jigsaw.crop", 3)
    scale = config.min_scale + (1 - config.min_scale) * place[:, 0]
    side = np.maximum(1, np.rint(scale * short)).astype(np.int64)
    top = (place[:, 1] * (heights - side + 1)).astype(np.int64)
    left = (place[:, 2] * (widths - side + 1)).astype(np.int64)

    slack = config.cell_px - config.tile_px
    jitter = draws.integers("jigsaw.jitter", slack + 1, 2 * tiles).reshape(batch, tiles, 2)
    rows, columns = np.divmod(np.arange(tiles), config.grid)
    cells = np.stack([rows, columns], axis=1) * config.cell_px
    return JigsawPlan(
        crops=np.stack([top, left, side, side], axis=1).astype(np.int32),
        anchors=(cells + jitter).astype(np.int32),
        gray=(draws.uniform("jigsaw.gray", 1)[:, 0] < config.gray_probability).astype(np.int32),
        labels=draws.integers(
            "jigsaw.permutation", config.num_permutations, config.puzzles_per_image
        ),
    )
