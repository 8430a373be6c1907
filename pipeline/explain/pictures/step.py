"""Pictures of a step: a page for every sample, and all of them on one contact sheet."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw

from pipeline.explain.pictures.drawing import (
    Pixels,
    TileSheet,
    decoded,
    fitted,
    seen_tiles,
    sheet_of,
    views_by_task,
)
from pipeline.explain.pictures.lettering import ALARM, INK, PAPER, QUIET, fit, font, wrap
from pipeline.explain.step import Explained, ShownSample
from pipeline.pretext.multitask import AnyDraws, PretextConfig, Task, tasks_of

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
    """Left edge of the sheet of tiles on the page, px."""
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
    title = fit("   ".join([str(shown.slot.position), shown.key, shown.label or ""]), 20, width)
    pen.text((MARGIN, 14), title, INK, font(20))
    parts = zip(tasks_of(pretext), panels, shown.draws, views, strict=True)
    for task, panel, draws, tiles in parts:
        name = f"{task.name}: " if len(panels) > 1 else ""
        for text, left in zip(
            (draws.caption, task.words.caption), (MARGIN, panel.left), strict=True
        ):
            pen.text((left, panel.top - 24), name + text, QUIET, font(14))
            name = ""
        sheet.paste(fitted(image, draws, task, panel.box, numbers=True), (MARGIN, panel.top))
        seen = panel.tiles.draw(seen_tiles(task, tiles))
        sheet.paste(seen, (panel.left, panel.top), seen)
    for number, (text, color) in enumerate(wrapped):
        pen.text((MARGIN, bottom + 22 * number), text, color, font(15))
    return sheet


def _lines(
    explained: Explained, shown: ShownSample, pretext: PretextConfig
) -> list[tuple[str, str]]:
    slot = shown.slot
    alone = (slot.set_number, slot.set_epoch) == (0, explained.epoch)
    own = "" if alone else f", set {slot.set_number} in its epoch {slot.set_epoch}"
    lines = [
        (
            f"epoch {explained.epoch}, step {explained.step}, lane {slot.lane}, position "
            f"{slot.position}{own}   |   sample {shown.sample_id}",
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
        lines += [(text, QUIET) for text in (*_drawn(task, draws), draws.asked)]
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
        lines.append(f"tiles in their cells (top,left of 0..{task.slack_px}):  {places}")
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


CONTACT_SHEET = "step.png"

_SMALL_PX = 132  # Height of a picture on the contact sheet.
_MAX_ON_SHEET = 256
_MAX_NAME = 100
_COMPRESSION = 3  # Half the time of Pillow's own choice, files a twentieth larger.


def save_pictures(folder: Path, explained: Explained, pretext: PretextConfig, about: str) -> Path:
    """Write `<position>-<key>.png` for every sample, and the contact sheet.

    Args:
        folder: Exists.
        explained: The step.
        pretext: What it asks.
        about: Names the data set, in one line.

    Returns:
        The contact sheet's path.
    """
    rows = zip(
        explained.samples, explained.payloads, views_by_task(pretext, explained.views), strict=True
    )
    digits = len(str(explained.global_batch - 1))
    cells = []
    for number, (shown, payload, views) in enumerate(rows):
        image = decoded(payload, (shown.width, shown.height))
        page = sample_page(explained, shown, image, views, pretext)
        name = f"{shown.slot.position:0{digits}}-{file_name(shown.key)}.png"
        page.save(folder / name, compress_level=_COMPRESSION)
        if number < _MAX_ON_SHEET:
            cells.append(_cell(shown, image, views, pretext))
    path = folder / CONTACT_SHEET
    _contact_sheet(explained, cells, f"{about}. {_legend(pretext)}").save(path)
    return path


def file_name(key: str) -> str:
    """Turn a key, which may be a path, into a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", key)[:_MAX_NAME]


def _cell(
    shown: ShownSample, image: Image.Image, views: Sequence[Pixels], pretext: PretextConfig
) -> Image.Image:
    """Draw a sample small, for the contact sheet: its tasks below each other."""
    box, tasks = (int(WIDEST * _SMALL_PX), _SMALL_PX), tasks_of(pretext)
    foot = len(tasks) * (_SMALL_PX + 6) - 6
    cell = Image.new("RGB", (box[0] + 6 + _SMALL_PX, foot + 22), PAPER)
    for row, (task, draws, tiles) in enumerate(zip(tasks, shown.draws, views, strict=True)):
        top = row * (_SMALL_PX + 6)
        cell.paste(fitted(image, draws, task, box, numbers=False), (0, top))
        sheet = replace(sheet_of(task), scale=1, gap=max(2, task.tiles.tile_px // 12))
        drawn = sheet.draw(seen_tiles(task, tiles))
        seen = Image.new("RGB", drawn.size, PAPER)
        seen.paste(drawn, mask=drawn)
        small = seen.resize((_SMALL_PX, _SMALL_PX), Image.Resampling.LANCZOS)
        cell.paste(small, (box[0] + 6, top))
    gray = any(draws.gray for draws in shown.draws)
    notes = [shown.key, shown.label or "", "gray" if gray else ""]
    color = QUIET
    if shown.instead_of:
        notes, color = [shown.key, f"for damaged {shown.instead_of.sample_id}"], ALARM
    pen = ImageDraw.Draw(cell)
    number = str(shown.slot.position)
    pen.text((0, foot + 3), number, INK, font(14))
    start = pen.textlength(number, font(14)) + 8
    text = "  ".join(note for note in notes if note)
    text = fit(text, 13, cell.width - start)
    pen.text((start, foot + 4), text, color, font(13))
    return cell


def _legend(pretext: PretextConfig) -> str:
    tasks = tasks_of(pretext)
    names = [f"{task.name.capitalize()}: " if len(tasks) > 1 else "" for task in tasks]
    parts = [
        f"{name}left: the stored image, with {task.words.stored}; right: {task.words.seen}."
        for name, task in zip(names, tasks, strict=True)
    ]
    legend = " ".join(part[0].upper() + part[1:] for part in parts)
    return f"{legend} The number is the sample's position in the global batch."


def _contact_sheet(explained: Explained, cells: Sequence[Image.Image], about: str) -> Image.Image:
    across, down = cells[0].width + MARGIN, cells[0].height + 14
    columns = max(2, round(math.sqrt(len(cells) * down / across)))
    width = columns * across + MARGIN
    rank_info = explained.rank_info
    whose = (
        "all ranks"
        if rank_info.world_size == 1
        else f"rank {rank_info.rank} of {rank_info.world_size}"
    )
    cut = "" if len(cells) == len(explained.samples) else f"; the first {len(cells)} are shown"
    count = len(explained.samples)
    title = (
        f"Epoch {explained.epoch}, step {explained.step} of {explained.steps_per_epoch}: "
        f"{count} {'sample' if count == 1 else 'samples'}, {whose}{cut}"
    )
    wrapped = wrap(about, 14, width - 2 * MARGIN)
    head = 58 + 20 * len(wrapped) + 16
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (width, head + rows * down + MARGIN // 2), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 18), fit(title, 24, width - 2 * MARGIN), INK, font(24))
    for number, text in enumerate(wrapped):
        pen.text((MARGIN, 54 + 20 * number), text, QUIET, font(14))
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (MARGIN + column * across, head + row * down))
    return sheet
