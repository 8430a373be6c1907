"""Images with the spectrum and the edges of photographs, and what a crawl does to them."""

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline.ingest.near.hash import near_words
from pipeline.ingest.near.search import find_near


def photo(number, width=240, height=180):
    """Clouds of all scales, and a few hard-edged things in front of them."""
    rng = np.random.default_rng(number)
    rows = np.fft.fftfreq(height)[:, None] * height
    columns = np.fft.rfftfreq(width)[None] * width
    scale = 1 / np.maximum(np.hypot(rows, columns), 1) ** 1.3
    clouds = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * scale)
    level = (clouds - clouds.mean()) / clouds.std() * 40 + rng.uniform(90, 160)
    image = Image.fromarray(np.clip(level, 0, 255).astype(np.uint8)).convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        left, top = rng.uniform(0, 0.7, 2) * (width, height)
        box = (left, top, left + rng.uniform(20, width / 2), top + rng.uniform(20, height / 2))
        draw.ellipse(box, fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return image


def words_of(image):
    return near_words(np.asarray(image.convert("L")))


def with_quality(image, quality):
    sink = io.BytesIO()
    image.convert("RGB").save(sink, "JPEG", quality=quality)
    return Image.open(sink)


def resized(image, factor):
    sides = [max(1, round(side * factor)) for side in image.size]
    return image.resize(sides, Image.Resampling.BICUBIC)


def cropped(image, left, top, part=0.95):
    """A window of `part` of the sides; `left` and `top` are 0 to 1 of the room there is."""
    width, height = (round(side * part) for side in image.size)
    x, y = round(left * (image.width - width)), round(top * (image.height - height))
    return image.crop((x, y, x + width, y + height))


def changes(image, rng):
    """The kinds of change, by name, that a copy of `image` must be found after."""
    left, top = rng.uniform(0, 1, 2)
    quality, factor = int(rng.integers(30, 96)), 2 ** rng.uniform(-1, 1)
    return {
        "quality 30": with_quality(image, 30),
        "half": resized(image, 0.5),
        "double": resized(image, 2.0),
        "centre": cropped(image, 0.5, 0.5),
        "corner": cropped(image, 0.0, 1.0),
        "offset": cropped(image, left, top),
        "resized, quality": with_quality(resized(image, factor), quality),
    }


def near_of(words, ranks, folder=None):
    """Find near duplicates by ranks, the smaller kept, in `folder` or one of the moment."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        return np.array(find_near(words, np.argsort(ranks), Path(made)))
