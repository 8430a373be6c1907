"""Context prediction (Doersch, Gupta and Efros 2015): where does a patch lie beside another?"""

# Shapes: B batch, T patches (grid * grid, in reading order), P pairs of one image.

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from pipeline.config import Config
from pipeline.pretext.describe import Layout, Pair, PositionOf, TaskDraws, Words
from pipeline.pretext.draws import Draws
from pipeline.pretext.plan import (
    GRAY,
    KEEP_RED,
    NOISE_PLACES,
    RGB,
    Normalization,
    TilePlan,
    Tiles,
    grid_cells,
    image_colors,
    plain_plan,
    square_crops,
)

DIRECTIONS = ("NW", "N", "NE", "W", "E", "SW", "S", "SE")
"""Where the second patch of a pair lies relative to the first; the classes, in this order."""
_STEPS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
_SMALLEST_SIDE = 10 / 96
"""A patch is reduced to this share of its side at least (the released code, for 96 px patches)."""


@dataclass(frozen=True, slots=True)
class ContextDraws(TaskDraws):
    """Pairs of patches."""

    pairs: tuple[Pair, ...] = ()
    labels: tuple[int, ...] = ()
    """Rows of `neighbours` that name the pairs."""

    @property
    def asked(self) -> str:
        pairs = [f"{p.first + 1} to {p.second + 1}: {p.direction}" for p in self.pairs]
        return f"pairs asked:  {'   '.join(pairs)}"

    @property
    def pair(self) -> Pair | None:
        return self.pairs[0]

    @property
    def marks(self) -> str:
        pair = self.pairs[0]
        return (
            f"its block, its patches, and an arrow from patch {pair.first + 1} to "
            f"{pair.second + 1}, {pair.direction}"
        )

    @property
    def caption(self) -> str:
        pair = self.pairs[0]
        asked = f"stored, with the block; asked first: {pair.first + 1} to {pair.second + 1}"
        return f"{asked}, {pair.direction}"


class ContextConfig(Config):
    """Patch geometry and countermeasures.

    The defaults are the paper's: 96 px patches, 48 px apart, moved by up to 7 px, in blocks of
    2 x 2. The 3 x 3 grid of 64 px patches of Kolesnikov et al. 2019 is grid: 3, patch_px: 64,
    gap_px: 21, jitter_px: 10, min_pixels: 85000, max_pixels: 115000.
    """

    name: Literal["context"]
    side_key: ClassVar[str] = "patch_px"
    """The key that sets the side of a view."""
    grid: int = Field(2, ge=2, le=5)
    """Patches on a side of the block that is cut from an image."""
    patch_px: int = Field(96, gt=1)
    """Side of a patch."""
    gap_px: int = Field(48, ge=0)
    """Between neighbouring patches, before they are moved; hides edge continuity."""
    jitter_px: int = Field(7, ge=0)
    """Each patch is moved by up to this many pixels along either axis."""
    min_pixels: int = Field(150_000, gt=0)
    """Smallest area that an image is resized to, in px, drawn up to max_pixels. An image whose
    short side then is smaller than the block is resized until the block fits."""
    max_pixels: int = Field(450_000, gt=0)
    """Largest area that an image is resized to, in px."""
    pairs_per_image: int = Field(8, ge=1)
    """Pairs asked of one image at one pass through the trunk, with directions drawn evenly."""
    color: Literal["drop", "project", "rgb"] = "drop"
    """drop: one channel of a patch is kept, noise replaces the others; project: the axis from
    green to magenta is taken out; rgb: no countermeasure against chromatic aberration."""
    gray_probability: float = Field(0.0, ge=0, le=1)
    """Share of images shown in gray instead."""
    reduced_probability: float = Field(1 / 3, ge=0, le=1)
    """Share of patches that are reduced and enlarged again, to as few as 100 pixels out of 9,216,
    so that sharpness tells nothing (the released code)."""
    normalization: Normalization = "tile"
    """How a patch is normalized: tile equalizes mean and deviation, fixed keeps them."""

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if 2 * self.jitter_px > self.gap_px:
            raise ValueError(
                f"jitter_px (={self.jitter_px}) of two patches must be at most gap_px "
                f"(={self.gap_px}): 2 * {self.jitter_px} = {2 * self.jitter_px}, and patches would "
                "overlap; lower jitter_px or raise gap_px."
            )
        if self.block_px**2 > self.max_pixels:
            raise ValueError(
                f"max_pixels (={self.max_pixels}) must be at least {self.block_px**2}: a block of "
                f"{self.grid} x {self.grid} patches has a side of {self.grid} * patch_px "
                f"{self.patch_px} + {self.grid - 1} * gap_px {self.gap_px} + 2 * jitter_px "
                f"{self.jitter_px} = {self.block_px}, and does not fit; raise it or lower patch_px."
            )
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels (={self.min_pixels}) must be at most max_pixels (={self.max_pixels})."
            )
        return self

    words: ClassVar[Words] = Words(
        stored="its block (orange), its patches (white) and the pair asked first (yellow), an "
        "arrow from its first to its second patch",
        seen="the patches as the network saw them, in reading order",
        caption="seen: the patches in reading order",
    )

    @property
    def cell_px(self) -> int:
        """Distance between neighbouring patches before they are moved, px."""
        return self.patch_px + self.gap_px

    @property
    def block_px(self) -> int:
        """Side of the block of patches, px."""
        return (self.grid - 1) * self.cell_px + self.patch_px + 2 * self.jitter_px

    @property
    def cells(self) -> NDArray[np.int64]:
        """Top, left of the cells that patches are placed in, int64 (T, 2), px of the block."""
        return grid_cells(self.grid, self.cell_px)

    @property
    def slack_px(self) -> int:
        """How far a patch can lie from the top left of its cell, px."""
        return 2 * self.jitter_px

    @property
    def num_tiles(self) -> int:
        """Patches of one image."""
        return self.grid * self.grid

    @property
    def num_views(self) -> int:
        """Views that the network sees of one image."""
        return self.num_tiles

    @property
    def num_answers(self) -> int:
        """Answers asked of one image, L."""
        return self.pairs_per_image

    @property
    def num_classes(self) -> int:
        """Width of the head's output."""
        return len(DIRECTIONS)

    @property
    def chance(self) -> float:
        """Accuracy of a blind guess."""
        return 1 / len(DIRECTIONS)

    @property
    def tiles(self) -> Tiles:
        """Geometry of the views."""
        return Tiles(
            crop_px=self.block_px,
            num_tiles=self.num_tiles,
            tile_px=self.patch_px,
            resampled=self.reduced_probability > 0,
            tinted=self.color != "rgb" or self.gray_probability > 0,
        )

    def describe(
        self, common: dict[str, Any], labels: Sequence[int], position_of: PositionOf
    ) -> ContextDraws:
        """Say what was drawn for one image; see `JigsawConfig.describe`."""
        named = neighbours(self.grid)[list(labels)].tolist()
        pairs = tuple(Pair(first, second, DIRECTIONS[way]) for first, second, way in named)
        return ContextDraws(**common, pairs=pairs, labels=tuple(labels))

    def layouts(self, draws: TaskDraws) -> tuple[Layout, ...]:
        """Say in which orders pictures show the patches of an image."""
        assert draws.pair is not None
        first, second = draws.pair.first, draws.pair.second
        what = f"Asked first: patch {first + 1}, then {second + 1}: {draws.pair.direction}"
        return (
            Layout("order", "Patches in reading order"),
            Layout("pair", what, (first, second), columns=2),
        )


@functools.cache
def neighbours(grid: int) -> NDArray[np.int64]:
    """List the pairs of neighbouring patches of a block, all directions equally often.

    Returns:
        int64 (Q, 3), sorted by direction: first patch, second patch, direction. Q is a multiple of
        the number of directions; directions with fewer pairs repeat theirs.
    """
    by_direction = []
    for direction, (down, right) in enumerate(_STEPS):
        pairs = [
            (row * grid + column, (row + down) * grid + column + right, direction)
            for row in range(grid)
            for column in range(grid)
            if 0 <= row + down < grid and 0 <= column + right < grid
        ]
        by_direction.append(pairs)
    longest = math.lcm(*(len(pairs) for pairs in by_direction))
    rows = [pair for pairs in by_direction for pair in pairs * (longest // len(pairs))]
    found = np.array(rows, np.int64)
    found.flags.writeable = False
    return found


def plan_context(
    config: ContextConfig, heights: NDArray[np.int32], widths: NDArray[np.int32], draws: Draws
) -> TilePlan:
    """Draw blocks, patch places, colors and pairs for a batch of images of the given sizes.

    Labels are rows of `neighbours`, (B, P).
    """
    batch, patches = len(heights), config.num_tiles
    place = draws.uniform("context.block", 3)
    area = config.min_pixels + (config.max_pixels - config.min_pixels) * place[:, 0]
    height, width = heights.astype(np.int64), widths.astype(np.int64)
    scale = np.sqrt(area / (height * width))
    side = np.maximum(1, np.rint(config.block_px / scale)).astype(np.int64)
    side = np.minimum(side, np.minimum(height, width))

    jitter = draws.integers("context.jitter", config.slack_px + 1, 2 * patches)
    plan = plain_plan(
        crops=square_crops(side, heights, widths, place[:, 1:]),
        anchors=(config.cells + jitter.reshape(batch, patches, 2)).astype(np.int32),
        labels=draws.integers("context.pair", len(neighbours(config.grid)), config.pairs_per_image),
        tile_px=config.patch_px,
    )
    return replace(
        plan,
        sides=_sides(config, draws),
        colors=_colors(config, draws),
        noise=draws.integers("context.noise", NOISE_PLACES, 2 * patches)
        .reshape(batch, patches, 2)
        .astype(np.int32),
    )


def _sides(config: ContextConfig, draws: Draws) -> NDArray[np.int32]:
    """Draw the number of pixels evenly, as the released code does: s * s ~ U(10^2, 95^2)."""
    drawn = draws.uniform("context.reduced", 2 * config.num_tiles)
    chosen, size = drawn[:, : config.num_tiles], drawn[:, config.num_tiles :]
    least, most = (_SMALLEST_SIDE * config.patch_px) ** 2, (config.patch_px - 1) ** 2
    reduced = np.rint(np.sqrt(least + (most - least) * size))
    kept = chosen >= config.reduced_probability
    return np.where(kept, config.patch_px, np.maximum(1, reduced)).astype(np.int32)


def _colors(config: ContextConfig, draws: Draws) -> NDArray[np.int32]:
    patches = config.num_tiles
    projected = float(config.color == "project")
    image = image_colors(
        draws, "context.gray", config.gray_probability, projected * (1 - config.gray_probability)
    )
    shown = np.repeat(image[:, None], patches, axis=1)
    if config.color == "drop":
        kept = KEEP_RED + draws.integers("context.channel", 3, patches)
        shown = np.where(shown == GRAY, GRAY, kept)
    assert config.color != "rgb" or set(np.unique(shown)) <= {RGB, GRAY}
    return shown.astype(np.int32)
