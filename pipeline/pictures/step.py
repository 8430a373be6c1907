"""The pictures of a step: a page for every sample, and all of them on one contact sheet."""

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from typing_extensions import assert_never

from pipeline.explain import Explained, Shown
from pipeline.pictures.lettering import ALARM, INK, PAPER, QUIET, fit, font, wrap
from pipeline.pictures.sample import MARGIN, WIDEST, TileSheet, fitted, sample_page
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.views import PretextConfig

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
    match pretext:
        case JigsawConfig():
            return _save_jigsaw(folder, explained, pretext, about)
        case _:
            assert_never(pretext)


def _save_jigsaw(folder: Path, explained: Explained, config: JigsawConfig, about: str) -> Path:
    rows = zip(explained.samples, explained.payloads, explained.views, strict=True)
    digits = len(str(explained.global_batch - 1))
    cells = []
    for number, (shown, payload, views) in enumerate(rows):
        image = _decode(payload, shown)
        page = sample_page(explained, shown, image, views, config)
        name = f"{shown.seat.position:0{digits}}-{_file_name(shown.key)}.png"
        page.save(folder / name, compress_level=_COMPRESSION)
        if number < _MAX_ON_SHEET:
            cells.append(_cell(shown, image, views, config))
    path = folder / CONTACT_SHEET
    _contact_sheet(explained, cells, about).save(path)
    return path


def _cell(
    shown: Shown, image: Image.Image, views: NDArray[np.uint8], config: JigsawConfig
) -> Image.Image:
    """Draw a sample small, for the contact sheet."""
    box = (int(WIDEST * _SMALL_PX), _SMALL_PX)
    cell = Image.new("RGB", (box[0] + 6 + _SMALL_PX, _SMALL_PX + 22), PAPER)
    cell.paste(fitted(image, shown, config, box, numbers=False), (0, 0))
    sheet = TileSheet(config.grid, config.tile_px, 1, gap=max(2, config.tile_px // 12))
    size = (_SMALL_PX, _SMALL_PX)
    cell.paste(sheet.draw(views).resize(size, Image.Resampling.LANCZOS), (box[0] + 6, 0))
    notes = [shown.key, shown.label or "", "gray" if shown.draws.gray else ""]
    color = QUIET
    if shown.instead_of:
        notes, color = [shown.key, f"for damaged {shown.instead_of.sample_id}"], ALARM
    pen = ImageDraw.Draw(cell)
    number = str(shown.seat.position)
    pen.text((0, _SMALL_PX + 3), number, INK, font(14))
    start = pen.textlength(number, font(14)) + 8
    text = "  ".join(note for note in notes if note)
    text = fit(text, 13, cell.width - start)
    pen.text((start, _SMALL_PX + 4), text, color, font(13))
    return cell


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
    legend = (
        f"{about}. Left: the stored image, with its crop (orange) and the places of its tiles "
        "(white). Right: the tiles as the network saw them, in reading order. The number is the "
        "sample's position in the global batch."
    )
    wrapped = wrap(legend, 14, width - 2 * MARGIN)
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


def _decode(payload: NDArray[np.uint8], shown: Shown) -> Image.Image:
    """Decode what is stored; gray where Pillow refuses what the graph accepted."""
    try:
        with Image.open(io.BytesIO(payload.tobytes())) as image:
            return image.convert("RGB")
    except OSError:
        return Image.new("RGB", (shown.width, shown.height), "#808080")


def _file_name(key: str) -> str:
    """Turn a key, which may be a path, into a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", key)[:_MAX_NAME]
