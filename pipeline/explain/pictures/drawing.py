"""What pictures are made of: sheets of tiles, and stored images with crops and tiles marked."""

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from pipeline.explain.pictures.lettering import PAPER, font
from pipeline.pretext.multitask import AnyDraws, PretextConfig, Task
from pipeline.pretext.normalize import quarter_turns, see, split_views
from pipeline.pretext.rotation import RotationConfig

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
    grid = round(task.num_views**0.5)
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


_CROP, _TILE, _PAIR, _RIM = "#ff7a00", "#ffffff", "#ffd400", "#3a3a3a"
_HEAD = math.radians(28)


@dataclass(frozen=True, slots=True)
class Square:
    """A square of an image, px."""

    left: float
    top: float
    side: float

    @property
    def middle(self) -> tuple[float, float]:
        """x, y."""
        return self.left + self.side / 2, self.top + self.side / 2


@dataclass(frozen=True, slots=True)
class Arrow:
    """A line that ends in a head, px."""

    tail: tuple[float, float]
    tip: tuple[float, float]
    head: tuple[tuple[float, float], tuple[float, float]]
    """The far ends of the two strokes of the head."""


def squares_of(task: Task, draws: AnyDraws, scale: float) -> tuple[Square, ...]:
    """Place an image's tiles on it, in reading order; `scale` is px drawn for a stored px."""
    top, left, side = draws.crop
    per_px = side / task.tiles.crop_px
    anchors = task.cells + np.array(draws.tiles)
    far = task.tiles.tile_px * per_px * scale
    return tuple(
        Square((left + x * per_px) * scale, (top + y * per_px) * scale, far)
        for y, x in anchors.tolist()
    )


def arrow_between(first: Square, second: Square) -> Arrow:
    """Point from the middle of one square to the middle of another, short of both."""
    (x0, y0), (x1, y1) = first.middle, second.middle
    away, angle = math.hypot(x1 - x0, y1 - y0), math.atan2(y1 - y0, x1 - x0)
    cut = min(0.22 * first.side, away / 4)
    tip = (x1 - cut * math.cos(angle), y1 - cut * math.sin(angle))
    long = 0.22 * away
    left, right = (
        (tip[0] - long * math.cos(turned), tip[1] - long * math.sin(turned))
        for turned in (angle - _HEAD, angle + _HEAD)
    )
    tail = (x0 + cut * math.cos(angle), y0 + cut * math.sin(angle))
    return Arrow(tail, tip, (left, right))


def fitted(
    image: Image.Image, draws: AnyDraws, task: Task, box: tuple[int, int], *, numbers: bool
) -> Image.Image:
    """Fit a stored image into a box, what lies outside of its crop faded, the tiles outlined."""
    scale = min(box[0] / image.width, box[1] / image.height)
    framed = Image.new("RGB", box, PAPER)
    marked = marked_image(image, draws, task, scale, numbers=numbers)
    framed.paste(marked, (0, (box[1] - marked.height) // 2))
    return framed


def marked_image(
    image: Image.Image, draws: AnyDraws, task: Task, scale: float, *, numbers: bool
) -> Image.Image:
    """Resize an image, fade what lies outside of its crop, and draw in what is asked."""
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.resize(size, Image.Resampling.LANCZOS)
    top, left, side = (v * scale for v in draws.crop)
    marked = Image.blend(resized, Image.new("RGB", size, PAPER), 0.55)
    inside = (round(left), round(top), round(left + side), round(top + side))
    marked.paste(resized.crop(inside), inside[:2])
    pen = ImageDraw.Draw(marked)
    thick = 2 if numbers else 1
    squares, pair = squares_of(task, draws, scale), draws.pair
    alone = len(squares) == 1  # The square of rotation is the crop itself.
    for number, square in enumerate(() if alone else squares):
        asked = pair is not None and number in (pair.first, pair.second)
        corners = _corners(square)
        _outline(pen, corners, _PAIR if asked else _TILE, thick + asked)
        if numbers:
            _tag(pen, corners[:2], str(number + 1))
    _outline(pen, (*inside[:2], inside[2] - 1, inside[3] - 1), _CROP, thick + 1)
    if pair is not None:
        _draw_arrow(pen, arrow_between(squares[pair.first], squares[pair.second]), 2 * thick)
    return marked


def decoded(payload: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """Decode what is stored; gray of that size where Pillow refuses what the graph accepted."""
    try:
        with Image.open(io.BytesIO(payload.tobytes())) as image:
            return image.convert("RGB")
    except OSError:
        return Image.new("RGB", size, "#808080")


def _corners(square: Square) -> tuple[int, int, int, int]:
    right, bottom = square.left + square.side, square.top + square.side
    return round(square.left), round(square.top), round(right) - 1, round(bottom) - 1


def _draw_arrow(pen: ImageDraw.ImageDraw, arrow: Arrow, thick: int) -> None:
    for color, width in ((_RIM, thick + 3), (_PAIR, thick)):
        lines = [(arrow.tail, arrow.tip), (arrow.head[0], arrow.tip, arrow.head[1])]
        for line in lines:
            pen.line(list(line), fill=color, width=width, joint="curve")


def _outline(
    pen: ImageDraw.ImageDraw, square: tuple[int, int, int, int], color: str, thick: int
) -> None:
    """Draw a frame with a dark rim, so that it shows on any image."""
    x0, y0, x1, y1 = square
    if x1 - x0 <= 2 * thick or y1 - y0 <= 2 * thick:
        return
    pen.rectangle((x0, y0, x1, y1), outline=color, width=thick)
    pen.rectangle((x0 + thick, y0 + thick, x1 - thick, y1 - thick), outline=_RIM)


def _tag(pen: ImageDraw.ImageDraw, corner: tuple[int, ...], text: str) -> None:
    x, y = corner[0] + 3, corner[1] + 3
    right = x + 5 + pen.textlength(text, font(11))
    pen.rectangle((x, y, right, y + 13), fill=_RIM)
    pen.text((x + 3, y), text, "#ffffff", font(11))
