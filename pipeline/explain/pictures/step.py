"""The pictures of a step: a page for every sample, and all of them on one contact sheet."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw
from typing_extensions import assert_never

from pipeline.explain.pictures.lettering import ALARM, INK, PAPER, QUIET, fit, font, wrap
from pipeline.explain.pictures.sample import MARGIN, WIDEST, sample_page
from pipeline.explain.pictures.sheets import Pixels, seen_tiles, sheet_of, views_by_task
from pipeline.explain.pictures.source import decoded, fitted
from pipeline.explain.step import Explained, ShownSample
from pipeline.loading.views import PretextConfig
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import Task, tasks_of
from pipeline.pretext.rotation import RotationConfig
from pipeline.pretext.supervised import SupervisedConfig

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
        name = f"{shown.seat.position:0{digits}}-{file_name(shown.key)}.png"
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
    number = str(shown.seat.position)
    pen.text((0, foot + 3), number, INK, font(14))
    start = pen.textlength(number, font(14)) + 8
    text = "  ".join(note for note in notes if note)
    text = fit(text, 13, cell.width - start)
    pen.text((start, foot + 4), text, color, font(13))
    return cell


def _legend(pretext: PretextConfig) -> str:
    tasks = tasks_of(pretext)
    names = [f"{task.name.capitalize()}: " if len(tasks) > 1 else "" for task in tasks]
    parts = [name + _task_legend(task) for name, task in zip(names, tasks, strict=True)]
    legend = " ".join(part[0].upper() + part[1:] for part in parts)
    return f"{legend} The number is the sample's position in the global batch."


def _task_legend(task: Task) -> str:
    match task:
        case JigsawConfig():
            return (
                "left: the stored image, with its crop (orange) and the places of its tiles "
                "(white); right: the tiles as the network saw them, in reading order."
            )
        case ContextConfig():
            return (
                "left: the stored image, with its block (orange), its patches (white) and the "
                "pair asked first (yellow), an arrow from its first to its second patch; right: "
                "the patches as the network saw them, in reading order."
            )
        case RotationConfig():
            return (
                "left: the stored image, with its square (orange); right: its four turns as the "
                "network saw them, by 0, 90, 180 and 270 degrees counterclockwise."
            )
        case SupervisedConfig():
            return (
                "left: the stored image, with its square (orange); right: the square as the "
                "network saw it."
            )
        case _:
            assert_never(task)


def _contact_sheet(explained: Explained, cells: Sequence[Image.Image], about: str) -> Image.Image:
    across, down = cells[0].width + MARGIN, cells[0].height + 14
    columns = max(2, round(math.sqrt(len(cells) * down / across)))
    width = columns * across + MARGIN
    place = explained.place
    whose = "all ranks" if place.world_size == 1 else f"rank {place.rank} of {place.world_size}"
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
