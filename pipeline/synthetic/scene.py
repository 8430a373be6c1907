"""Render one picture: an object in random pose and colours, with clutter, on a background.

Colours, background and clutter have the same distribution for every class: only shape tells.
"""

import colorsys
import functools
import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pipeline.synthetic.objects import Points, Polygon, draw_object, ellipse, stroke

_TILE_PX = 1024
_SHADE = 0  # Index of the texture tile that is a plain gradient.


def render_picture(rng: Generator, class_name: str) -> Image.Image:
    """Draw one RGB picture of 200 to 600 px per side; a pure function of `rng` and class."""
    width, height = _size(rng)
    image = _background(rng, width, height)
    ground = np.asarray(image.reduce(8), dtype=np.float64).mean(axis=(0, 1))
    for _ in range(rng.integers(0, 6)):
        _fill(rng, image, _clutter(rng, width, height, 0.3), _ramp(rng, []))
    parts = _pose(rng, draw_object(class_name, rng), width, height)
    if rng.random() < 0.5:
        _shadow(rng, image, parts)
    _draw_parts(rng, image, parts, ground)
    for _ in range(rng.integers(0, 3)):
        _fill(rng, image, _clutter(rng, width, height, 0.12), _ramp(rng, []))
    return _photograph(rng, image)


def _size(rng: Generator) -> tuple[int, int]:
    """Draw width and height: common aspect ratios, more landscape than portrait."""
    ratio = float(rng.choice([1.0, 1.2, 4 / 3, 4 / 3, 1.5, 1.5, 16 / 9]))
    long = int(rng.integers(280, 601)) if rng.random() < 0.6 else int(rng.integers(280, 401))
    short = max(200, round(long / ratio))
    return (short, long) if rng.random() < 0.35 else (long, short)


def _pose(rng: Generator, parts: list[Polygon], width: int, height: int) -> list[Polygon]:
    """Warp, mirror, rotate, scale and place an object.

    Objects are roughly upright (15 degrees rms, 40 at most), so that the arrangement of parts can
    be learned.
    """
    turn = math.radians(float(np.clip(rng.normal(0, 15), -40, 40)))
    stretch, shear = rng.uniform(0.85, 1.18), rng.normal(0, 0.08)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    skew = np.array([[mirror * stretch, shear], [0.0, 1 / stretch]])
    rotate = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    waves = rng.uniform([0.0, 0.0, 3.0], [0.03, 2 * math.pi, 6.0], (2, 3))
    moved = []
    for part in parts:
        x, y = part.points.T
        (ax, px, fx), (ay, py, fy) = waves
        warped = np.stack([x + ax * np.sin(fx * y + px), y + ay * np.sin(fy * x + py)], axis=1)
        moved.append(warped @ (rotate @ skew).T)
    corners = np.concatenate(moved)
    low, high = corners.min(axis=0), corners.max(axis=0)
    frame_px = np.array([width, height])
    scale = rng.uniform(0.55, 0.97) * float((frame_px / (high - low)).min())
    slack = frame_px - (high - low) * scale
    origin = slack * rng.beta(2, 2, 2) - low * scale
    return [
        Polygon(part.paint, points * scale + origin, part.outlined)
        for part, points in zip(parts, moved, strict=True)
    ]


def _draw_parts(
    rng: Generator, image: Image.Image, parts: list[Polygon], ground: NDArray[np.float64]
) -> None:
    """Paint the parts from back to front; some objects are outlined."""
    lined = rng.random() < 0.45
    ink = tuple(int(v) for v in (rng.uniform(0, 50, 3) if rng.random() < 0.7 else [235] * 3))
    weight = int(rng.integers(1, 4))
    ramps: dict[str, NDArray[np.uint8]] = {}
    near = [ground]
    for part in parts:
        if part.paint not in ramps:
            ramps[part.paint] = _ramp(rng, near)
            near.append(ramps[part.paint].mean(axis=0))
        _fill(rng, image, part.points, ramps[part.paint])
        if lined and part.outlined:
            ImageDraw.Draw(image).line(
                [*map(tuple, part.points), tuple(part.points[0])], fill=ink, width=weight
            )


def _fill(rng: Generator, image: Image.Image, points: Points, ramp: NDArray[np.uint8]) -> None:
    """Fill a polygon, antialiased; half of the fills are textured, the others plain."""
    low = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, image.size)
    if (high <= low).any():
        return
    width, height = (int(side) for side in high - low)
    mask = Image.new("L", (2 * width, 2 * height))
    ImageDraw.Draw(mask).polygon([*map(tuple, (points - low) * 2)], fill=255)
    corner = (int(low[0]), int(low[1]))
    if rng.random() < 0.5 or width * height < 300:
        colour = tuple(int(v) for v in ramp[128])
        image.paste(colour, (*corner, corner[0] + width, corner[1] + height), mask.reduce(2))
    else:
        image.paste(_texture(rng, width, height, ramp), corner, mask.reduce(2))


def _clutter(rng: Generator, width: int, height: int, share: float) -> Points:
    """Draw the outline of some clutter: a blob, a polygon or a bar."""
    size = min(width, height) * share * rng.uniform(0.3, 1.0)
    centre = rng.uniform(0, 1, 2) * [width, height]
    kind = rng.integers(3)
    if kind == 0:
        blob = ellipse(0, 0, 1, rng.uniform(0.4, 1.0), rng.uniform(0, 180))
        return blob * size * 0.6 + centre
    if kind == 1:
        angles = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 7)))
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return corners * size * 0.7 + centre
    angle = rng.uniform(0, math.pi)
    reach = np.array([math.cos(angle), math.sin(angle)]) * size * 1.5
    thick = size * rng.uniform(0.06, 0.25)
    return stroke(np.stack([centre - reach, centre + reach]), thick, thick)


def _background(rng: Generator, width: int, height: int) -> Image.Image:
    """Draw a texture, blurred blobs, or two textures that meet at a horizon."""
    kind = rng.integers(4)
    if kind == 0:
        grid = rng.uniform(0, 255, (*rng.integers(3, 7, 2), 3))
        gray = grid.mean(axis=2, keepdims=True)
        tamed = (gray + (grid - gray) * rng.uniform(0.0, 0.9)) * rng.uniform(0.5, 1.0)
        blobs = Image.fromarray(tamed.astype(np.uint8))
        return blobs.resize((width, height), Image.Resampling.BICUBIC)
    image = _texture(rng, width, height, _ramp(rng, []))
    if kind == 1:
        level, tilt = rng.uniform(0.35, 0.8) * height, rng.normal(0, 0.03) * height
        near = _texture(rng, width, height - int(level - abs(tilt)), _ramp(rng, []))
        edge = [(0, 0), (width, 0), (width, abs(tilt) + tilt), (0, abs(tilt) - tilt)]
        mask = Image.new("L", near.size, 255)
        ImageDraw.Draw(mask).polygon(edge, fill=0)
        image.paste(near, (0, height - near.height), mask)
    return image


def _shadow(rng: Generator, image: Image.Image, parts: list[Polygon]) -> None:
    """Add a soft shadow of the object."""
    shape = Image.new("L", (image.width // 4, image.height // 4))
    draw = ImageDraw.Draw(shape)
    offset = rng.uniform(-0.05, 0.07, 2) * min(image.size)
    strength = int(rng.uniform(60, 150))
    for part in parts:
        draw.polygon([*map(tuple, (part.points + offset) / 4)], fill=strength)
    soft = shape.filter(ImageFilter.BoxBlur(rng.uniform(1, 4)))
    image.paste((0, 0, 0), (0, 0), soft.resize(image.size, Image.Resampling.BILINEAR))


def _photograph(rng: Generator, image: Image.Image) -> Image.Image:
    """Vary exposure, contrast and white balance, blur a little, add sensor noise."""
    gain, gamma = rng.uniform(0.75, 1.0), rng.uniform(0.75, 1.35)
    lift = rng.uniform(0.0, 255 * (1 - gain))
    white = rng.uniform(0.92, 1.0, 3)[:, None]
    curve = (np.linspace(0, 1, 256) ** gamma * 255 * gain + lift) * white
    image = image.point(curve.round().astype(int).ravel().tolist())
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.0)))
    if rng.random() < 0.6:
        grain = _noise_tile()
        y, x = rng.integers(0, np.array(grain.shape[:2]) - [image.height, image.width] + 1)
        patch = grain[y : y + image.height, x : x + image.width] >> int(rng.integers(0, 3))
        noisy = np.asarray(image).astype(np.int16) + patch
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return image


def _ramp(rng: Generator, avoid: list[NDArray[np.float64]]) -> NDArray[np.uint8]:
    """Draw a gradient of 256 colours between two random ones, away from the colours of `avoid`.

    Returns:
        uint8 (256, 3).
    """
    best, distance = np.zeros(3), -1.0
    for _ in range(4 if avoid else 1):
        hue, saturation, value = rng.random(), rng.beta(1.3, 1.8), rng.uniform(0.08, 1.0)
        colour = np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255
        nearest = min((float(np.abs(colour - other).sum()) for other in avoid), default=0.0)
        if nearest > distance:
            best, distance = colour, nearest
    swing = rng.normal(0, 22, 3) + rng.choice([-1, 1]) * rng.uniform(15, 60)
    steps = np.linspace(-0.5, 0.5, 256)[:, None]
    ramp: NDArray[np.uint8] = (best + steps * swing).clip(0, 255).astype(np.uint8)
    return ramp


def _texture(rng: Generator, width: int, height: int, ramp: NDArray[np.uint8]) -> Image.Image:
    """Cut a rotated and scaled window out of a random tile and colour it."""
    tiles = _texture_tiles()
    kind = int(rng.integers(len(tiles))) if rng.random() < 0.75 else _SHADE
    reach = math.hypot(width, height)
    zoom = min(_TILE_PX / reach if kind == _SHADE else rng.uniform(0.5, 1.6), _TILE_PX / reach)
    angle = rng.uniform(0, 2 * math.pi)
    c, s = zoom * math.cos(angle), zoom * math.sin(angle)
    slack = (_TILE_PX - reach * zoom) / 2
    x, y = _TILE_PX / 2 + rng.uniform(-slack, slack, 2)
    window = (
        *(c, -s, x - (c * width - s * height) / 2),
        *(s, c, y - (s * width + c * height) / 2),
    )
    field = tiles[kind].transform(
        (width, height), Image.Transform.AFFINE, window, Image.Resampling.BILINEAR
    )
    field.putpalette(ramp.tobytes())
    return field.convert("RGB")


@functools.cache
def _texture_tiles() -> tuple[Image.Image, ...]:
    """Build the gray tiles that textures are cut from, the same in every process."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:_TILE_PX, 0:_TILE_PX]
    ramp = x * 256 // _TILE_PX
    stripes = [np.abs(x % period - period // 2) * 510 // period for period in (20, 44)]
    bars = (x // 22 % 2) * 255
    checker = ((x // 30 + y // 30) % 2) * 255
    dots = [np.hypot(x % p - p / 2, y % p - p / 2) for p in (26, 48)]
    spots = [
        (255 - (255 * (d - 0.25 * p)).clip(0, 255)) for d, p in zip(dots, (26, 48), strict=True)
    ]
    bricks = ((y % 28 > 3) & ((x + y // 28 % 2 * 32) % 64 > 3)) * 255
    clouds = [_cloud(rng, gain) for gain in (0.5, 0.5, 0.65, 0.8)]
    tiles = [ramp, *stripes, bars, checker, *spots, bricks, *clouds]
    return tuple(Image.fromarray(tile.astype(np.uint8)) for tile in tiles)


def _cloud(rng: Generator, gain: float) -> NDArray[np.float64]:
    """Add octaves of random grids, each of twice the frequency and `gain` times the amplitude.

    Pillow resizes 8-bit images in integers, so the tile is the same on every processor.
    """
    total = np.zeros((_TILE_PX, _TILE_PX))
    for octave in range(8):
        grid = rng.integers(0, 256, (4 << octave, 4 << octave)).astype(np.uint8)
        smooth = Image.fromarray(grid).resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
        total += (np.asarray(smooth) - 128.0) * gain**octave
    cloud: NDArray[np.float64] = 128 + (total - total.mean()) / total.std() * 60
    return cloud.clip(0, 255)


@functools.cache
def _noise_tile() -> NDArray[np.int16]:
    """Build sensor noise, int16 (700, 700, 3), of 12 gray levels rms."""
    rng = np.random.default_rng(1)
    return rng.normal(0, 12, (700, 700, 3)).round().astype(np.int16)
