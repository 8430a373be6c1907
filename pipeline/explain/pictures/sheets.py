"""Sheets of tiles: what the network sees of one image, laid out with gaps."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from typing_extensions import assert_never

from pipeline.loading.views import PretextConfig
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import Task
from pipeline.pretext.normalize import quarter_turns, see, split_views
from pipeline.pretext.rotation import QUARTER_TURNS, RotationConfig
from pipeline.pretext.supervised import SupervisedConfig

Pixels = NDArray[np.uint8]

SHOWN_DEVIATIONS = 128 / 48
"""Standard deviations of a normalised tile between middle gray and black or white."""

_SHEET_PX = 360  # About how large the tiles of one sample are shown together.


@dataclass(frozen=True, slots=True)
class TileSheet:
    """Where tiles stand on a sheet, with gaps between them, enlarged by whole numbers."""

    grid: int
    """Tiles in a row."""
    tile_px: int
    scale: int
    """Pixels of the sheet for a pixel of a tile."""
    gap: int

    @property
    def side(self) -> int:
        """Width of the sheet, and its height where it is square, px."""
        return self.grid * self.tile_px * self.scale + (self.grid - 1) * self.gap

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Left, top of the tiles of a square sheet, px, in reading order."""
        return tuple(self.place(number) for number in range(self.grid**2))

    def place(self, number: int) -> tuple[int, int]:
        """Return left, top of a tile, px; they count in reading order."""
        row, column = divmod(number, self.grid)
        step = self.tile_px * self.scale + self.gap
        return column * step, row * step

    def draw(self, tiles: Pixels) -> Image.Image:
        """Lay out tiles (T, tile_px, tile_px, 3); the gaps are transparent."""
        rows = -(-len(tiles) // self.grid)
        height = rows * self.tile_px * self.scale + (rows - 1) * self.gap
        sheet = Image.new("RGBA", (self.side, height))
        for number, tile in enumerate(tiles):
            large = tile.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
            sheet.paste(Image.fromarray(large), self.place(number))
        return sheet


def sheet_of(task: Task) -> TileSheet:
    """Choose how the tiles of one image are laid out; the same for all images of a task."""
    match task:
        case JigsawConfig() | ContextConfig():
            grid = task.grid
        case RotationConfig():
            grid = round(len(QUARTER_TURNS) ** 0.5)
        case SupervisedConfig():
            grid = 1
        case _:
            assert_never(task)
    side = task.tiles.tile_px
    return TileSheet(grid, side, max(1, round(_SHEET_PX / (grid * side))), max(6, _SHEET_PX // 36))


def seen_tiles(task: Task, views: Pixels) -> Pixels:
    """Return what the network sees of one image before it is normalised.

    Args:
        task: What is asked.
        views: (T, H, W, 3), as the graph gave them.

    Returns:
        (V, H, W, 3): the tiles, or the four turns of a square.
    """
    if isinstance(task, RotationConfig):
        return quarter_turns(torch.tensor(views)[None])[0].numpy()
    return views


def normalised_tiles(task: Task, views: Pixels) -> Pixels:
    """Show what `see` makes of one image's views as `seen_tiles` are shown: middle gray is 0."""
    return as_image(see(task, torch.tensor(views)[None]))


def as_image(normalised: Tensor) -> Pixels:
    """Show normalised tiles (N, 3, H, W) as uint8 (N, H, W, 3)."""
    shown = normalised.permute(0, 2, 3, 1) * (128 / SHOWN_DEVIATIONS) + 128
    return shown.round().clamp(0, 255).to(torch.uint8).numpy()


def views_by_task(pretext: PretextConfig, views: Pixels) -> list[list[Pixels]]:
    """Cut what a graph gave of a batch; returns for each image the views (T, H, W, 3) by task."""
    parts = [part.numpy() for part in split_views(pretext, torch.tensor(views))]
    return [list(row) for row in zip(*parts, strict=True)]
