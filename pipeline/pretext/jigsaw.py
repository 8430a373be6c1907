"""Jigsaw puzzles (Noroozi and Favaro 2016): find the order of shuffled tiles."""

# Shapes: B batch, T tiles (grid * grid, in reading order), P puzzles of one image.

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from pipeline.config import Config
from pipeline.pretext.describe import Layout, PositionOf, TaskDraws, Words
from pipeline.pretext.draws import Draws
from pipeline.pretext.permutation_set import PermutationMethod, permutation_set, read_permutations
from pipeline.pretext.plan import (
    Normalization,
    TilePlan,
    Tiles,
    crop_sides,
    grid_cells,
    image_colors,
    plain_plan,
    require_color_shares,
    square_crops,
)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A tile of a puzzle that comes from another image."""

    place: int
    """Position in the puzzle."""
    position: int
    """Position of the other image in the global batch."""
    tile: int


@dataclass(frozen=True, slots=True)
class JigsawDraws(TaskDraws):
    """Puzzles."""

    permutations: tuple[int, ...] = ()
    """Rows of the permutation set, the labels."""
    foreign: tuple[tuple[Foreign, ...], ...] = ()
    """Foreign tiles of every puzzle."""

    @property
    def asked(self) -> str:
        return f"permutations asked:  {'  '.join(map(str, self.permutations))}"

    @property
    def marks(self) -> str:
        return "its crop and its tiles"

    @property
    def caption(self) -> str:
        return "stored, with the crop and the tiles' places"


class JigsawConfig(Config):
    """Tile geometry, countermeasures against shortcuts, and the answer set.

    The defaults are geometry (b) of the paper: 85 px cells of a 255 px crop, 64 px tiles. Geometry
    (a), 75 px cells of a 225 px crop out of a short side of 256 px, is crop_px: 225, min_scale:
    0.879, max_scale: 0.879.
    """

    name: Literal["jigsaw"]
    side_key: ClassVar[str] = "tile_px"
    """The key that sets the side of a view."""
    grid: int = Field(3, ge=2, le=8)
    """Tiles on a side."""
    crop_px: int = Field(255, gt=0)
    """Side of the square view that is cut into cells; a multiple of grid."""
    tile_px: int = Field(64, gt=1)
    """Side of the tile, cut at random inside its cell; the gap hides edge continuity."""
    min_scale: float = Field(0.7, gt=0, le=1)
    """Smallest side of the crop as a share of the image's short side, drawn up to max_scale. A
    scale that is not an integer keeps the phase of JPEG's 8 x 8 blocks from naming the cell."""
    max_scale: float = Field(1.0, gt=0, le=1)
    """Largest side of the crop as a share of the image's short side."""
    normalization: Normalization = "tile"
    """Section 4.1 of the paper: mean and deviation of every tile are made equal."""
    gray_probability: float = Field(0.3, ge=0, le=1)
    """Share of images shown in gray, so that chromatic aberration cannot give places away."""
    projection_probability: float = Field(0.0, ge=0, le=1)
    """Share of images whose colors are projected (Doersch et al. 2015, section 3.1)."""
    channel_shift_px: int = Field(2, ge=0, le=8)
    """Each color channel of a tile is shifted by 0 to this many pixels down and to the right, on
    its own (the color jittering of section 4.1), inside the tile's cell."""
    intensity_jitter: int = Field(0, ge=0, le=64)
    """Each color channel of a tile is made brighter or darker by up to this many gray levels."""
    max_foreign_tiles: int = Field(0, ge=0)
    """Up to this many tiles of a puzzle are replaced by tiles of another image (Noroozi et al.
    2018, section 3.1: 2), one that the same lane gives to the step."""
    num_permutations: int = Field(1000, ge=2, le=10_000)
    """Size of the permutation set."""
    permutation_method: PermutationMethod = "max_min"
    """How the set is picked: largest minimum distance; largest mean distance, as the paper; or at
    random."""
    permutation_seed: int = 0
    """Names the permutation set among those of the same size."""
    permutation_file: Path | None = None
    """A set of num_permutations rows to take instead: .npy, or the original int32 binary."""
    puzzles_per_image: int = Field(8, ge=1)
    """Permutations asked of one image at one pass through the trunk: embeddings are permuted."""

    @model_validator(mode="after")
    def _tiles_fit(self) -> Self:
        if self.crop_px % self.grid:
            raise ValueError(
                f"crop_px (={self.crop_px}) must be a multiple of grid (={self.grid}), so that all "
                "cells are equal."
            )
        if self.tile_px + self.channel_shift_px > self.cell_px:
            shift = f" + channel_shift_px (={self.channel_shift_px})"
            raise ValueError(
                f"tile_px (={self.tile_px}){shift if self.channel_shift_px else ''} must fit into "
                f"the cell of {self.cell_px} px (crop_px {self.crop_px} / grid {self.grid}); lower "
                "tile_px or raise crop_px."
            )
        if self.num_permutations > math.factorial(self.num_tiles):
            raise ValueError(
                f"num_permutations (={self.num_permutations}) exceeds the "
                f"{math.factorial(self.num_tiles)} permutations of {self.num_tiles} tiles "
                f"({self.num_tiles}!); lower it or raise grid."
            )
        return self

    @model_validator(mode="after")
    def _shares_are_possible(self) -> Self:
        if self.min_scale > self.max_scale:
            raise ValueError(
                f"min_scale (={self.min_scale}) must be at most max_scale (={self.max_scale})."
            )
        require_color_shares(self.gray_probability, self.projection_probability)
        if self.max_foreign_tiles > self.num_tiles - 2:
            raise ValueError(
                f"max_foreign_tiles (={self.max_foreign_tiles}) must leave 2 of the "
                f"{self.num_tiles} tiles of a puzzle; lower it."
            )
        return self

    words: ClassVar[Words] = Words(
        stored="its crop (orange) and the places of its tiles (white)",
        seen="the tiles as the network saw them, in reading order",
        caption="seen: the tiles in reading order",
    )

    @property
    def cell_px(self) -> int:
        """Side of one grid cell, px."""
        return self.crop_px // self.grid

    @property
    def cells(self) -> NDArray[np.int64]:
        """Top, left of the cells that tiles are placed in, int64 (T, 2), px of the crop."""
        return grid_cells(self.grid, self.cell_px)

    @property
    def slack_px(self) -> int:
        """How far a tile can lie from the top left of its cell, px."""
        return self.cell_px - self.tile_px - self.channel_shift_px

    @property
    def num_tiles(self) -> int:
        """Tiles of one image."""
        return self.grid * self.grid

    @property
    def num_views(self) -> int:
        """Views that the network sees of one image."""
        return self.num_tiles

    @property
    def num_answers(self) -> int:
        """Columns of the labels: a permutation for each puzzle, and two for each foreign tile."""
        return self.puzzles_per_image * (1 + 2 * self.max_foreign_tiles)

    @property
    def num_classes(self) -> int:
        """Width of the head's output."""
        return self.num_permutations

    @property
    def chance(self) -> float:
        """Accuracy of a blind guess."""
        return 1 / self.num_permutations

    @property
    def tiles(self) -> Tiles:
        """Geometry of the views."""
        return Tiles(
            crop_px=self.crop_px,
            num_tiles=self.num_tiles,
            tile_px=self.tile_px,
            reach=self.channel_shift_px,
            tinted=bool(
                self.gray_probability or self.projection_probability or self.intensity_jitter
            ),
        )

    def describe(
        self, common: dict[str, Any], labels: Sequence[int], position_of: PositionOf
    ) -> JigsawDraws:
        """Say what was drawn for one image.

        Args:
            common: Fields of `TaskDraws`.
            labels: (L,), what the task asks of the image.
            position_of: Position in the global batch of the image that many rows on.
        """
        puzzles = self.puzzles_per_image
        foreign: list[tuple[Foreign, ...]] = []
        if self.max_foreign_tiles:
            shape = (2, puzzles, self.max_foreign_tiles)
            places, donors = np.array(labels[puzzles:]).reshape(shape).tolist()
            for pairs in map(zip, places, donors):
                named = [(place, *divmod(on, self.num_tiles)) for place, on in pairs if place >= 0]
                foreign.append(tuple(Foreign(p, position_of(on), tile) for p, on, tile in named))
        return JigsawDraws(**common, permutations=tuple(labels[:puzzles]), foreign=tuple(foreign))

    def layouts(self, draws: TaskDraws) -> tuple[Layout, ...]:
        """Say in which orders pictures show the tiles of an image."""
        assert isinstance(draws, JigsawDraws)
        row = draws.permutations[0]
        order = tuple(permutations_of(self)[row].tolist())
        named = " ".join(str(tile + 1) for tile in order)
        return (
            Layout("order", "Tiles in reading order"),
            Layout("shuffled", f"Shuffled by permutation {row}: {named}", order),
        )


def permutations_of(config: JigsawConfig) -> NDArray[np.int64]:
    """Return the permutation set of a puzzle, int64 (num_permutations, num_tiles).

    Raises:
        ConfigError: permutation_file holds no such set.
    """
    size, seed = config.num_permutations, config.permutation_seed
    if config.permutation_file is not None:
        return read_permutations(config.permutation_file, (size, config.num_tiles))
    return permutation_set(config.permutation_method, config.num_tiles, size, seed=seed)


def plan_jigsaw(
    config: JigsawConfig, heights: NDArray[np.int32], widths: NDArray[np.int32], draws: Draws
) -> TilePlan:
    """Draw crop, tile places, colors and permutations for a batch of images of the given sizes.

    Labels are rows of the permutation set, (B, P).
    """
    batch, tiles = len(heights), config.num_tiles
    place = draws.uniform("jigsaw.crop", 3)
    side = crop_sides(heights, widths, (config.min_scale, config.max_scale), place[:, 0])

    jitter = draws.integers("jigsaw.jitter", config.slack_px + 1, 2 * tiles)
    labels = draws.integers("jigsaw.permutation", config.num_permutations, config.puzzles_per_image)
    plan = plain_plan(
        crops=square_crops(side, heights, widths, place[:, 1:]),
        anchors=(config.cells + jitter.reshape(batch, tiles, 2)).astype(np.int32),
        labels=labels,
        tile_px=config.tile_px,
    )
    shown = image_colors(
        draws, "jigsaw.gray", config.gray_probability, config.projection_probability
    )
    reach, levels = config.channel_shift_px, config.intensity_jitter
    shifts = draws.integers("jigsaw.shift", reach + 1, 6 * tiles) if reach else plan.shifts
    bright = draws.integers("jigsaw.intensity", 2 * levels + 1, 3 * tiles) if levels else levels
    return replace(
        plan,
        colors=np.repeat(shown[:, None], tiles, axis=1),
        shifts=shifts.reshape(batch, tiles, 3, 2).astype(np.int32),
        offsets=(np.broadcast_to(bright, (batch, 3 * tiles)) - levels)
        .reshape(batch, tiles, 3)
        .astype(np.int32),
    )


def draw_foreign(config: JigsawConfig, draws: Draws, mates: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw which tiles of each puzzle come from another image: none to all of max_foreign_tiles.

    Args:
        config: How many puzzles, tiles and foreign tiles.
        draws: Draws of the batch.
        mates: (B,), how many rows on the other image stands.

    Returns:
        int64 (B, 2 * P * F), as (B, 2, P, F): the places in the puzzles that are exchanged, -1 for
        none; and whose tile comes there, rows on * T + tile.
    """
    puzzles, most, tiles = config.puzzles_per_image, config.max_foreign_tiles, config.num_tiles
    shape = (len(mates), puzzles, most)
    order = draws.uniform("jigsaw.foreign", puzzles * tiles).reshape(len(mates), puzzles, tiles)
    places = order.argsort(axis=2)[:, :, :most]  # All different.
    count = draws.integers("jigsaw.num_foreign", most + 1, puzzles)
    places = np.where(np.arange(most) < count[:, :, None], places, -1)
    donors = draws.integers("jigsaw.donor", tiles, puzzles * most).reshape(shape)
    donors += mates[:, None, None] * tiles
    return np.stack([places, donors], axis=1).reshape(len(mates), -1)
