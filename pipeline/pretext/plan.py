"""What every pretext plans: square crops, the tiles cut from them, and how tiles are shown."""

# Shapes: B batch, T tiles of an image, L answers asked of an image.

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from pipeline.config import Config
from pipeline.pretext.draws import Draws

Normalization = Literal["tile", "fixed"]
"""tile: give each tile and channel mean 0 and deviation 1; fixed: the same constants for all, so
that brightness and contrast can tell where a tile comes from."""

COLORS = ("rgb", "gray", "projected", "red", "green", "blue")
"""How a tile can be shown; the last three keep one channel, noise replaces the others."""
RGB, GRAY, PROJECTED, KEEP_RED = range(4)

NOISE_PLACES = 128
"""Positions per axis at which a tile's noise may be cut from the noise field."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray, ITU-R BT.601."""
_AXIS = np.array([-1.0, 2.0, -1.0])
# Doersch, Gupta and Efros 2015, section 3.1: what lies along green against magenta, where lenses
# leave their mark, is taken out of every pixel.
_PROJECTION = np.eye(3) - np.outer(_AXIS, _AXIS) / (_AXIS @ _AXIS)
_MIDDLE = 128.0
_NOISE_LEVELS = 0.5
"""Standard deviation of noise, in gray levels: a hundredth of what a channel usually has."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """The geometry of a pretext's views: how large, how many, and what may be done to them."""

    crop_px: int
    """Side that the square crop is resized to before it is cut."""
    num_tiles: int
    tile_px: int
    """Side of a tile."""
    reach: int = 0
    """How far, in px, a color channel may be shifted down and to the right."""
    resampled: bool = False
    """Whether tiles may be reduced and enlarged again."""
    tinted: bool = False
    """Whether tiles may be shown in other than their own colors."""
    mirrored: bool = False
    """Whether tiles may be shown mirrored."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the views of one image: (T, tile_px, tile_px, 3)."""
        return self.num_tiles, self.tile_px, self.tile_px, 3


@dataclass(frozen=True, slots=True)
class TilePlan:
    """What to cut from each image of a batch, how to show it, and what to ask of it."""

    crops: NDArray[np.int32]
    """(B, 4): top, left, height, width of the square crop, in pixels of the stored image."""
    anchors: NDArray[np.int32]
    """(B, T, 2): top, left of every tile in the crop after its resize."""
    labels: NDArray[np.int64]
    """(B, L): what the pretext asks."""
    shifts: NDArray[np.int32]
    """(B, T, 3, 2): down, right offset of each color channel from the anchor, 0..reach."""
    sides: NDArray[np.int32]
    """(B, T): side in px to which a tile is reduced before it is enlarged again; tile_px where it
    is unchanged."""
    colors: NDArray[np.int32]
    """(B, T): index into COLORS."""
    offsets: NDArray[np.int32]
    """(B, T, 3): added to each color channel, in gray levels."""
    noise: NDArray[np.int32]
    """(B, T, 2): top, left in the field of noise, 0..NOISE_PLACES - 1."""
    mirrored: NDArray[np.int32]
    """(B,): 1 where all tiles are flipped left to right."""

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        """Return what the graph is fed.

        Returns:
            int32 (B, 5): the crop, and whether it is mirrored; int32 (B, T, 11): anchor, shifts of
            red, green and blue, side, place of the noise; and the `tints`.
        """
        batch, tiles = self.anchors.shape[:2]
        frames = np.concatenate([self.crops, self.mirrored[:, None]], axis=1)
        shifts = self.shifts.reshape(batch, tiles, 6)
        cuts = np.concatenate([self.anchors, shifts, self.sides[..., None], self.noise], axis=2)
        return frames, cuts, tints(self)


def plain_plan(
    crops: NDArray[np.int32], anchors: NDArray[np.int32], labels: NDArray[np.int64], tile_px: int
) -> TilePlan:
    """Plan tiles that are shown unchanged."""
    batch, tiles = anchors.shape[:2]
    return TilePlan(
        crops=crops,
        anchors=anchors,
        labels=labels,
        shifts=np.zeros((batch, tiles, 3, 2), np.int32),
        sides=np.full((batch, tiles), tile_px, np.int32),
        colors=np.zeros((batch, tiles), np.int32),
        offsets=np.zeros((batch, tiles, 3), np.int32),
        noise=np.zeros((batch, tiles, 2), np.int32),
        mirrored=np.zeros(batch, np.int32),
    )


class SquareConfig(Config):
    """What tasks share that show one random square of an image."""

    name: str
    crop_px: int = Field(224, gt=1)
    """Side of the square that the trunk sees, px."""
    min_scale: float = Field(0.5, gt=0, le=1)
    """Smallest side of the square as a share of the image's short side, drawn up to 1."""
    mirror_probability: float = Field(0.5, ge=0, le=1)
    """Share of images flipped left to right."""
    gray_probability: float = Field(0.0, ge=0, le=1)
    """Share of images shown in gray, so that the layout of colors tells less."""
    projection_probability: float = Field(0.0, ge=0, le=1)
    """Share of images whose colors are projected (Doersch et al. 2015, section 3.1)."""
    normalization: Normalization = "tile"
    """How a view is normalized: tile equalizes mean and deviation, as a transfer does; fixed keeps
    them."""

    grid: ClassVar[int] = 1
    num_tiles: ClassVar[int] = 1
    """Views that the graph makes of one image."""
    slack_px: ClassVar[int] = 0
    side_key: ClassVar[str] = "crop_px"
    """The key that sets the side of a view."""

    @model_validator(mode="after")
    def _shares_are_possible(self) -> Self:
        require_color_shares(self.gray_probability, self.projection_probability)
        return self

    @property
    def cells(self) -> NDArray[np.int64]:
        """Top, left of the cells that tiles are placed in, int64 (1, 2)."""
        return grid_cells(1, self.crop_px)

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


def square_view(
    config: SquareConfig,
    heights: NDArray[np.int32],
    widths: NDArray[np.int32],
    draws: Draws,
    labels: NDArray[np.int64],
) -> TilePlan:
    """Draw a square, its colors and whether it is mirrored; the draws are named by the task.

    Args:
        config: The task.
        heights: (B,).
        widths: (B,).
        draws: Draws of the batch.
        labels: (B, L).
    """
    drawn = draws.uniform(f"{config.name}.crop", 4)
    side = crop_sides(heights, widths, (config.min_scale, 1.0), drawn[:, 0])
    plan = plain_plan(
        crops=square_crops(side, heights, widths, drawn[:, 1:3]),
        anchors=np.zeros((len(heights), 1, 2), np.int32),
        labels=labels,
        tile_px=config.crop_px,
    )
    gray, projected = config.gray_probability, config.projection_probability
    return replace(
        plan,
        colors=image_colors(draws, f"{config.name}.gray", gray, projected)[:, None],
        mirrored=(drawn[:, 3] < config.mirror_probability).astype(np.int32),
    )


def require_color_shares(gray: float, projected: float) -> None:
    """Raise ValueError where images in gray and with projected colors are more than all."""
    if gray + projected > 1:
        raise ValueError(
            f"gray_probability (={gray}) + projection_probability (={projected}) must be at most "
            f"1, is {gray + projected:g}."
        )


def crop_sides(
    heights: NDArray[np.int32],
    widths: NDArray[np.int32],
    scales: tuple[float, float],
    drawn: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return sides of squares, (B,), from the smallest to the largest share of the short side.

    Args:
        heights: (B,).
        widths: (B,).
        scales: Smallest and largest share.
        drawn: (B,) in [0, 1): where between them.
    """
    scale = scales[0] + (scales[1] - scales[0]) * drawn
    return np.maximum(1, np.rint(scale * np.minimum(heights, widths))).astype(np.int64)


def square_crops(
    sides: NDArray[np.int64],
    heights: NDArray[np.int32],
    widths: NDArray[np.int32],
    places: NDArray[np.float64],
) -> NDArray[np.int32]:
    """Place squares inside images.

    Args:
        sides: (B,), at most the image's short side.
        heights: (B,).
        widths: (B,).
        places: (B, 2) in [0, 1): where between the top and the bottom, the left and the right.

    Returns:
        int32 (B, 4): top, left, height, width.
    """
    top = (places[:, 0] * (heights - sides + 1)).astype(np.int64)
    left = (places[:, 1] * (widths - sides + 1)).astype(np.int64)
    return np.stack([top, left, sides, sides], axis=1).astype(np.int32)


def grid_cells(grid: int, pitch: int) -> NDArray[np.int64]:
    """Return top, left of the cells of a square grid in reading order, int64 (grid * grid, 2)."""
    return np.stack(np.divmod(np.arange(grid * grid), grid), axis=1) * pitch


def image_colors(draws: Draws, name: str, gray: float, projected: float) -> NDArray[np.int32]:
    """Draw for each image whether all of it is shown in gray, or projected; int32 (B,)."""
    drawn = draws.uniform(name, 1)[:, 0]
    others = np.where(drawn < gray + projected, PROJECTED, RGB)
    return np.where(drawn < gray, GRAY, others).astype(np.int32)


def tints(plan: TilePlan) -> NDArray[np.float32]:
    """Turn colors into arithmetic: what becomes of a pixel is one affine map of its channels.

    Returns:
        float32 (B, T, 3, 5): for each channel shown, the weights of red, green and blue, what is
        added, and the standard deviation of the noise, in gray levels.
    """
    found = _TINTS[plan.colors]
    found[..., 3] += plan.offsets
    return found


def _tint_table() -> NDArray[np.float32]:
    """Return the tint of each of COLORS, float32 (6, 3, 5)."""
    table = np.zeros((len(COLORS), 3, 5))
    table[RGB, :, :3] = np.eye(3)
    table[GRAY, :, :3] = LUMA
    table[PROJECTED, :, :3] = _PROJECTION
    for channel in range(3):
        kept = table[KEEP_RED + channel]
        kept[:, 3], kept[:, 4] = _MIDDLE, _NOISE_LEVELS
        kept[channel] = 0
        kept[channel, channel] = 1
    return table.astype(np.float32)


_TINTS = _tint_table()


def noise_field(tile_px: int) -> NDArray[np.float32]:
    """Make the field that noise is cut from: even, with mean 0 and deviation 1, never another.

    Returns:
        float32 (F, F, 3), F = tile_px + NOISE_PLACES - 1.
    """
    side = tile_px + NOISE_PLACES - 1
    field = np.empty((side, side, 3), np.float32)
    _fill(field)
    return field


@njit(cache=True)
def _fill(field: Any) -> None:
    for y in range(field.shape[0]):
        for x in range(field.shape[1]):
            for c in range(3):
                field[y, x, c] = noise_at(y, x, c)


@njit(cache=True)
def noise_at(y: Any, x: Any, c: Any) -> Any:
    """Hash a place of the field of noise and a channel into a float32."""
    word = (y * 0x9E3779B1 + x * 0x85EBCA77 + c * 0xC2B2AE3D + 0x27D4EB2F) & 0xFFFFFFFF
    word = ((word ^ (word >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    word = ((word ^ (word >> 12)) * 0x297A2D39) & 0xFFFFFFFF
    word = word ^ (word >> 15)
    return np.float32((word * 2.0**-32 - 0.5) * 12.0**0.5)
