"""A permutation set in one picture: distances of its pairs, and how often a tile stands where."""

import html
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.atomic import write_atomic
from pipeline.config import ConfigError
from pipeline.explain.pictures.lettering import INK, PAPER, QUIET, font
from pipeline.pretext.permutation_set import Distances, distances

_MARGIN, _SIDE, _GAP = 40, 400, 80
_TOP = 112
_WIDTH, _HEIGHT = 2 * _MARGIN + 2 * _SIDE + _GAP, _TOP + _SIDE + 84
_BAR, _FAINT = "#35618f", "#e6e2d8"
_TITLE, _TEXT, _SMALL = 24, 16, 13


@dataclass(frozen=True, slots=True)
class _Box:
    x: float
    y: float
    width: float
    height: float
    fill: str


@dataclass(frozen=True, slots=True)
class _Text:
    x: float
    y: float
    """Height of the baseline."""
    text: str
    px: int
    fill: str
    middle: bool = False
    """Whether x is the text's middle; otherwise it starts there."""


def draw_permutations(path: Path, perms: NDArray[np.int64], title: str) -> None:
    """Draw a set of permutations (K, T) into a .png or an .svg file.

    Raises:
        ConfigError: The file's name ends in neither.
    """
    found = distances(perms)
    words = f"minimum {found.min}, mean {found.mean:.3f} of {perms.shape[1]} places"
    shapes: list[_Box | _Text] = [
        _Text(_MARGIN, 44, title, _TITLE, INK),
        _Text(_MARGIN, 70, words, _TEXT, QUIET),
        *_bars(found, _MARGIN),
        *_places(perms, _MARGIN + _SIDE + _GAP),
    ]
    match path.suffix.lower():
        case ".png":
            data = _png(shapes)
        case ".svg":
            data = _svg(shapes)
        case _:
            raise ConfigError(f"plot (={path}) must end in .png or .svg.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)


def _bars(found: Distances, left: float) -> list[_Box | _Text]:
    """Draw one bar for every distance above 0, with the number of its pairs on it."""
    pitch, foot = _SIDE / (len(found.histogram) - 1), _TOP + _SIDE
    most = max(found.histogram)
    px = int(min(_SMALL, pitch / 4))  # 50 million pairs: eight digits over a bar.
    every = -(-20 // int(max(1, pitch)))
    shapes: list[_Box | _Text] = []
    for distance, pairs in enumerate(found.histogram[1:], start=1):
        x = left + (distance - 1) * pitch
        height = (_SIDE - 24) * pairs / most
        height = max(height, 1.0) if pairs else 0.0  # Few pairs are pairs, too.
        shapes.append(_Box(x + pitch * 0.1, foot - height, pitch * 0.8, height, _BAR))
        if pairs and px >= 7:
            shapes.append(_Text(x + pitch / 2, foot - height - 6, f"{pairs}", px, INK, True))
        if not distance % every:
            shapes.append(_Text(x + pitch / 2, foot + 20, f"{distance}", _SMALL, INK, True))
    label = "Pairs of permutations by the number of places at which they differ"
    shapes.append(_Box(left, foot, _SIDE, 1, QUIET))
    shapes.append(_Text(left, foot + 46, label, _SMALL, QUIET))
    return shapes


def _places(perms: NDArray[np.int64], left: float) -> list[_Box | _Text]:
    """Draw a cell for every place and tile, colored by how far its count is from an even share."""
    num, tiles = perms.shape
    counts = np.stack([np.bincount(column, minlength=tiles) for column in perms.T])
    even, pitch = num / tiles, _SIDE / tiles
    shapes: list[_Box | _Text] = [_Box(left, _TOP, _SIDE, _SIDE, _FAINT)]
    for place in range(tiles):
        for tile in range(tiles):
            count = int(counts[place, tile])
            x, y = left + tile * pitch, _TOP + place * pitch
            fill = _shade(count / even - 1)
            shapes.append(_Box(x + 1, y + 1, pitch - 2, pitch - 2, fill))
            if pitch >= 24:
                shapes.append(_Text(x + pitch / 2, y + pitch / 2 + 5, f"{count}", 13, INK, True))
    label = f"How often a tile (across) stands at a place (down); even: {even:.5g}"
    shapes.append(_Text(left, _TOP + _SIDE + 46, label, _SMALL, QUIET))
    return shapes


def _shade(excess: float) -> str:
    """Color a share: white where even, blue above and red below; full at half as much again."""
    strength = min(1.0, abs(excess) * 2)
    far = (120, 160, 205) if excess > 0 else (222, 140, 120)
    mixed = (round(255 + (channel - 255) * strength) for channel in far)
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _png(shapes: list[_Box | _Text]) -> bytes:
    scale = 2  # For screens with fine pixels.
    image = Image.new("RGB", (_WIDTH * scale, _HEIGHT * scale), PAPER)
    pen = ImageDraw.Draw(image)
    for shape in shapes:
        x, y = shape.x * scale, shape.y * scale
        if isinstance(shape, _Text):
            anchor = "ms" if shape.middle else "ls"
            pen.text((x, y), shape.text, shape.fill, font(shape.px * scale), anchor)
        elif shape.width > 0 and shape.height > 0:
            far = (x + shape.width * scale - 1, y + shape.height * scale - 1)
            pen.rectangle((x, y, max(x, far[0]), max(y, far[1])), shape.fill)
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()


def _svg(shapes: list[_Box | _Text]) -> bytes:
    size = f'width="{_WIDTH}" height="{_HEIGHT}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {size} '
        'font-family="sans-serif">',
        f'<rect {size} fill="{PAPER}"/>',
    ]
    for shape in shapes:
        at = f'x="{shape.x:g}" y="{shape.y:g}"'
        if isinstance(shape, _Text):
            anchor = ' text-anchor="middle"' if shape.middle else ""
            look = f'font-size="{shape.px}" fill="{shape.fill}"'
            lines.append(f"<text {at} {look}{anchor}>{html.escape(shape.text)}</text>")
        else:
            box = f'width="{shape.width:g}" height="{shape.height:g}"'
            lines.append(f'<rect {at} {box} fill="{shape.fill}"/>')
    return "\n".join([*lines, "</svg>", ""]).encode()
