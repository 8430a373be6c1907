"""The picture of one sample: what is stored, where its crops and tiles lie, what the graph gave."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from typing_extensions import assert_never

from pipeline.explain.describe import (
    AnyDraws,
    ContextDraws,
    JigsawDraws,
    RotationDraws,
    SupervisedDraws,
)
from pipeline.explain.pictures.lettering import ALARM, INK, PAPER, QUIET, fit, font, wrap
from pipeline.explain.pictures.sheets import Pixels, TileSheet, seen_tiles, sheet_of
from pipeline.explain.pictures.source import fitted
from pipeline.explain.step import Explained, ShownSample
from pipeline.loading.views import PretextConfig
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import Task, tasks_of
from pipeline.pretext.rotation import RotationConfig
from pipeline.pretext.supervised import SupervisedConfig

MARGIN = 24
WIDEST = 1.4
"""Width over height of the box that a stored image is fitted into."""

_COLORS = {"rgb": "shown in color", "gray": "shown in gray", "projected": "colors projected"}
_COLORS |= {name: f"only {name} kept" for name in ("red", "green", "blue")}


@dataclass(frozen=True, slots=True)
class Panel:
    """One task of a sample: the stored image to the left, what is seen of it to the right."""

    tiles: TileSheet
    left: int
    """Of the sheet of tiles on the page, px."""
    top: int

    @property
    def box(self) -> tuple[int, int]:
        """Width and height of the box that the stored image is fitted into."""
        return int(WIDEST * self.tiles.side), self.tiles.side

    @property
    def right(self) -> int:
        """Where the page may end, px."""
        return self.left + self.tiles.side + MARGIN

    @property
    def bottom(self) -> int:
        """Where the next panel's caption may begin, px."""
        return self.top + self.tiles.side + MARGIN


def panels_of(pretext: PretextConfig) -> tuple[Panel, ...]:
    """Say where every task stands on a page; the same for all samples of a pretext."""
    panels, top = [], 3 * MARGIN
    for task in tasks_of(pretext):
        tiles = sheet_of(task)
        panels.append(Panel(tiles, MARGIN + int(WIDEST * tiles.side) + MARGIN, top))
        top = panels[-1].bottom + MARGIN
    return tuple(panels)


def sample_page(
    explained: Explained,
    shown: ShownSample,
    image: Image.Image,
    views: Sequence[Pixels],
    pretext: PretextConfig,
) -> Image.Image:
    """Draw one sample: what is stored, what was cut from it, what was drawn for it.

    Args:
        explained: The step.
        shown: The sample.
        image: As it is stored.
        views: (T, H, W, 3) of each task, as the graph gave them.
        pretext: What is asked.
    """
    panels = panels_of(pretext)
    page_width = max(panel.right for panel in panels)
    width, bottom = page_width - 2 * MARGIN, panels[-1].bottom
    lines = _lines(explained, shown, pretext)
    wrapped = [(part, color) for text, color in lines for part in wrap(text, 15, width)]
    sheet = Image.new("RGB", (page_width, bottom + 22 * len(wrapped) + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    title = fit("   ".join([str(shown.seat.position), shown.key, shown.label or ""]), 20, width)
    pen.text((MARGIN, 14), title, INK, font(20))
    parts = zip(tasks_of(pretext), panels, shown.draws, views, strict=True)
    for task, panel, draws, tiles in parts:
        name = f"{task.name}: " if len(panels) > 1 else ""
        for text, left in zip(_captions(task, draws), (MARGIN, panel.left), strict=True):
            pen.text((left, panel.top - 24), name + text, QUIET, font(14))
            name = ""
        sheet.paste(fitted(image, draws, task, panel.box, numbers=True), (MARGIN, panel.top))
        seen = panel.tiles.draw(seen_tiles(task, tiles))
        sheet.paste(seen, (panel.left, panel.top), seen)
    for number, (text, color) in enumerate(wrapped):
        pen.text((MARGIN, bottom + 22 * number), text, color, font(15))
    return sheet


def _captions(task: Task, draws: AnyDraws) -> tuple[str, str]:
    match task:
        case JigsawConfig():
            return "stored, with the crop and the tiles' places", "seen: the tiles in reading order"
        case ContextConfig():
            assert isinstance(draws, ContextDraws)
            pair = draws.pairs[0]
            asked = f"stored, with the block; asked first: {pair.first + 1} to {pair.second + 1}"
            return f"{asked}, {pair.direction}", "seen: the patches in reading order"
        case RotationConfig():
            return "stored, with the square", "seen: turned by 0, 90, 180 and 270 degrees"
        case SupervisedConfig():
            return "stored, with the square", "seen: the square"
        case _:
            assert_never(task)


def _lines(
    explained: Explained, shown: ShownSample, pretext: PretextConfig
) -> list[tuple[str, str]]:
    seat = shown.seat
    alone = (seat.set_number, seat.set_epoch) == (0, explained.epoch)
    own = "" if alone else f", set {seat.set_number} in its epoch {seat.set_epoch}"
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
    ]
    tasks = tasks_of(pretext)
    for task, draws in zip(tasks, shown.draws, strict=True):
        if len(tasks) > 1:
            lines.append((task.name, INK))
        lines += [(text, QUIET) for text in (*_drawn(task, draws), _asked(draws))]
    if shown.instead_of:
        bad = shown.instead_of
        name = f"sample {bad.sample_id} ({bad.key or 'key unknown'})"
        lines.insert(0, (f"stands in for {name}, damaged: {bad.reason}", ALARM))
    return lines


def _drawn(task: Task, draws: AnyDraws) -> list[str]:
    top, left, side = draws.crop
    colors = set(draws.colors)
    shown = _COLORS[draws.colors[0]] if len(colors) == 1 else "each tile in its own color"
    mirrored = "   |   mirrored" if draws.mirrored else ""
    lines = [
        f"crop: {side} px from top {top}, left {left}; resized to {task.tiles.crop_px} px"
        f"   |   {shown}{mirrored}"
    ]
    if len(draws.tiles) > 1:
        places = "  ".join(f"{y},{x}" for y, x in draws.tiles)
        lines.append(f"tiles in their cells (top,left of 0..{_slack(task)}):  {places}")
    if len(colors) > 1:
        lines.append(f"colors:  {'  '.join(draws.colors)}")
    if draws.shifts:
        shifts = "  ".join("/".join(f"{y},{x}" for y, x in tile) for tile in draws.shifts)
        lines.append(f"shifts (down,right of red/green/blue):  {shifts}")
    if draws.intensity:
        levels = "  ".join("/".join(map(str, tile)) for tile in draws.intensity)
        lines.append(f"gray levels added (red/green/blue):  {levels}")
    if draws.sides:
        lines.append(
            f"reduced to (px of {task.tiles.tile_px}):  {'  '.join(map(str, draws.sides))}"
        )
    return lines


def _slack(task: Task) -> int:
    match task:
        case JigsawConfig():
            return task.cell_px - task.tile_px - task.channel_shift_px
        case ContextConfig():
            return 2 * task.jitter_px
        case RotationConfig() | SupervisedConfig():
            return 0
        case _:
            assert_never(task)


def _asked(draws: AnyDraws) -> str:
    match draws:
        case JigsawDraws():
            return f"permutations asked:  {'  '.join(map(str, draws.permutations))}"
        case ContextDraws():
            pairs = [f"{p.first + 1} to {p.second + 1}: {p.direction}" for p in draws.pairs]
            return f"pairs asked:  {'   '.join(pairs)}"
        case RotationDraws():
            return f"turns asked (degrees counterclockwise):  {'  '.join(map(str, draws.turns))}"
        case SupervisedDraws() if draws.taught >= 0:
            return f"class asked:  {draws.taught}"
        case SupervisedDraws():
            return "class asked:  none, it has none or is held out"
        case _:
            assert_never(draws)
