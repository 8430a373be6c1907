import io

import numpy as np
from PIL import Image, ImageDraw

from pipeline.audit.evidence import Evidence
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import plan_task
from pipeline.reference import tile_views


def scene(number, px=200):
    """Draw discs and bars with a fine grain on a cloudy ground: uint8 (px, px, 3).

    As in photographs, channels are much alike: things are lighter or darker, and a little tinted.
    """
    rng = np.random.default_rng(number)
    light, tint = rng.integers(60, 196, (5, 5, 1)), rng.integers(-20, 20, (5, 5, 3))
    ground = Image.fromarray((light + tint).astype(np.uint8))
    image = ground.resize((px, px), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        x, y, width, height = rng.uniform([0, 0, 0.03, 0.03], [1, 1, 0.3, 0.3]) * px
        color = tuple(int(v) for v in rng.integers(20, 236) + rng.integers(-20, 20, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x - width / 2, y - height / 2, x + width / 2, y + height / 2), fill=color)
    pixels = np.asarray(image) + rng.normal(0, 4, (px, px, 1))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def grain(number, px=200):
    """Make soft noise without content, the same in all directions: uint8 (px, px, 3)."""
    noise = np.random.default_rng(number).normal(size=(px, px, 3))
    soft = sum(np.roll(noise, (dy, dx), axis=(0, 1)) for dy in range(3) for dx in range(3))
    return np.clip(128 + 15 * soft, 0, 255).astype(np.uint8)


def encode(images, **saving):
    """Encode images, as PNG unless told otherwise."""
    encoded = []
    for pixels in images:
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, **(saving or {"format": "PNG"}))
        encoded.append(sink.getvalue())
    return encoded


def evidence_of(task, encoded, px=200):
    """Make what a probe looks at from square images of a side of px, by the oracle."""
    ids = np.arange(len(encoded), dtype=np.int64)
    sides = np.full(len(encoded), px, np.int32)
    plan = plan_task(task, sides, sides, Draws(7, 0, ids))
    return Evidence(task, tile_views(encoded, task.tiles, plan), plan, ids, sides, sides)


def jigsaw(**changes):
    """A small puzzle without countermeasures but for the given."""
    plain = {
        "crop_px": 144,
        "tile_px": 48,
        "gray_probability": 0,
        "channel_shift_px": 0,
        "num_permutations": 50,
        "puzzles_per_image": 1,
    }
    return JigsawConfig(name="jigsaw", **{**plain, **changes})


def context(**changes):
    """A small block of 2 x 2 patches without countermeasures but for the given."""
    plain = {
        "patch_px": 48,
        "gap_px": 0,
        "jitter_px": 0,
        "color": "rgb",
        "reduced_probability": 0,
        "min_pixels": 20_000,
        "max_pixels": 40_000,
    }
    return ContextConfig(name="context", **{**plain, **changes})
