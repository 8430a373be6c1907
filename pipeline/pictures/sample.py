"""The picture of one sample: what is stored, where its crop and tiles lie, what the graph gave."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.explain import Explained, Shown
from pipeline.pictures.lettering import ALARM, INK, PAPER, QUIET, fit, font, wrap
from pipeline.pretext.jigsaw import JigsawConfig

MARGIN = 24
WIDEST = 1.4
"""Width over height of the box that a stored image is fitted into."""

_CROP, _TILE, _RIM = "#ff7a00", "#ffffff", "#3a3a3a"
_SHEET_PX = 360  # About how large the tiles of one sample are shown together.


@dataclass(frozen=True, slots=True)
class TileSheet:
    """Where tiles stand on a square sheet, with gaps between them, enlarged by whole numbers."""

    grid: int
    tile_px: int
    scale: int
    """Pixels of the sheet for a pixel of a tile."""
    gap: int

    @property
    def side(self) -> int:
        """Side of the sheet, px."""
        return self.grid * self.tile_px * self.scale + (self.grid - 1) * self.gap

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Left, top of every tile, px, in reading order."""
        step = self.tile_px * self.scale + self.gap
        return tuple(
            (column * step, row * step) for row in range(self.grid) for column in range(self.grid)
        )

    def draw(self, tiles: NDArray[np.uint8]) -> Image.Image:
        """Lay out tiles (T, tile_px, tile_px, 3)."""
        sheet = Image.new("RGB", (self.side, self.side), PAPER)
        for place, tile in zip(self.places, tiles, strict=True):
            large = tile.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
            sheet.paste(Image.fromarray(large), place)
        return sheet


@dataclass(frozen=True, slots=True)
class Page:
    """The picture of one sample: its stored image to the left, its tiles to the right."""

    tiles: TileSheet
    left: int
    """Of the sheet of tiles on the page, px."""
    top: int
    width: int

    @property
    def box(self) -> tuple[int, int]:
        """Width and height of the box that the stored image is fitted into."""
        return int(WIDEST * self.tiles.side), self.tiles.side


def page_of(config: JigsawConfig) -> Page:
    """Say where everything stands; the same for all samples of a pretext."""
    scale = max(1, round(_SHEET_PX / (config.grid * config.tile_px)))
    tiles = TileSheet(config.grid, config.tile_px, scale, gap=max(6, _SHEET_PX // 36))
    left = MARGIN + int(WIDEST * tiles.side) + MARGIN
    return Page(tiles, left, top=3 * MARGIN, width=left + tiles.side + MARGIN)


def sample_page(
    explained: Explained,
    shown: Shown,
    image: Image.Image,
    views: NDArray[np.uint8],
    config: JigsawConfig,
) -> Image.Image:
    """Draw one sample: what is stored, what was cut from it, what was drawn for it."""
    page = page_of(config)
    lines = _lines(explained, shown, config)
    width = page.width - 2 * MARGIN
    wrapped = [(part, color) for text, color in lines for part in wrap(text, 15, width)]
    bottom = page.top + page.tiles.side + MARGIN
    sheet = Image.new("RGB", (page.width, bottom + 22 * len(wrapped) + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    title = fit("   ".join([str(shown.seat.position), shown.key, shown.label or ""]), 20, width)
    pen.text((MARGIN, 14), title, INK, font(20))
    captions = ("stored, with the crop and the tiles' places", "seen: the tiles in reading order")
    for text, left in zip(captions, (MARGIN, page.left), strict=True):
        pen.text((left, page.top - 24), text, QUIET, font(14))
    source = fitted(image, shown, config, page.box, numbers=True)
    sheet.paste(source, (MARGIN, page.top))
    sheet.paste(page.tiles.draw(views), (page.left, page.top))
    for number, (text, color) in enumerate(wrapped):
        pen.text((MARGIN, bottom + 22 * number), text, color, font(15))
    return sheet


def _lines(explained: Explained, shown: Shown, config: JigsawConfig) -> list[tuple[str, str]]:
    top, left, side = shown.draws.crop
    seat = shown.seat
    alone = (seat.set_number, seat.set_epoch) == (0, explained.epoch)
    own = "" if alone else f", set {seat.set_number} in its epoch {seat.set_epoch}"
    tiles = "  ".join(f"{y},{x}" for y, x in shown.draws.tiles)
    slack = config.cell_px - config.tile_px
    lines = [
        (
            f"epoch {explained.epoch}, step {explained.step}, lane {seat.lane}, position "
            f"{seat.position}{own}   |   sample {shown.sample_id}",
            INK,
        ),
        (
            f"{shown.shard}, byte {shown.offset}, {shown.num_bytes} bytes   |   "
            f"{shown.width} x {shown.height} px",
            QUIET,
        ),
        (
            f"crop: {side} px from top {top}, left {left}; resized to {config.crop_px} px"
            f"   |   {'shown in gray' if shown.draws.gray else 'shown in color'}",
            QUIET,
        ),
        (f"tiles in their cells (top,left of 0..{slack}):  {tiles}", QUIET),
        (f"permutations asked:  {'  '.join(map(str, shown.draws.permutations))}", QUIET),
    ]
    if shown.instead_of:
        bad = shown.instead_of
        name = f"sample {bad.sample_id} ({bad.key or 'key unknown'})"
        lines.insert(0, (f"stands in for {name}, damaged: {bad.reason}", ALARM))
    return lines


def fitted(
    image: Image.Image,
    shown: Shown,
    config: JigsawConfig,
    box: tuple[int, int],
    *,
    numbers: bool,
) -> Image.Image:
    """Fit a stored image into a box, what lies outside of its crop faded, the tiles outlined."""
    scale = min(box[0] / image.width, box[1] / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.resize(size, Image.Resampling.LANCZOS)
    top, left, side = (v * scale for v in shown.draws.crop)
    faded = Image.blend(resized, Image.new("RGB", size, PAPER), 0.55)
    inside = (round(left), round(top), round(left + side), round(top + side))
    faded.paste(resized.crop(inside), inside[:2])
    pen = ImageDraw.Draw(faded)
    per_px = side / config.crop_px
    thick = 2 if numbers else 1
    for number, (y, x) in enumerate(shown.draws.tiles):
        row, column = divmod(number, config.grid)
        at_x = left + (column * config.cell_px + x) * per_px
        at_y = top + (row * config.cell_px + y) * per_px
        far = config.tile_px * per_px
        square = (round(at_x), round(at_y), round(at_x + far) - 1, round(at_y + far) - 1)
        _outline(pen, square, _TILE, thick)
        if numbers:
            _tag(pen, square[:2], str(number + 1))
    _outline(pen, (*inside[:2], inside[2] - 1, inside[3] - 1), _CROP, thick + 1)
    framed = Image.new("RGB", box, PAPER)
    framed.paste(faded, (0, (box[1] - size[1]) // 2))
    return framed


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
