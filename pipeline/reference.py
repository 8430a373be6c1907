"""The views of the DALI graphs in Pillow and NumPy: slow, plain, the oracle of the tests."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.pretext.plan import TilePlan, Tiles, noise_field, tints


def crop_view(encoded: bytes, crop: NDArray[np.int32], px: int) -> NDArray[np.uint8]:
    """Decode all of an image, cut the crop, resize it (bilinear with antialias).

    Returns:
        uint8 (px, px, 3).
    """
    top, left, height, width = (int(v) for v in crop)
    with Image.open(io.BytesIO(encoded)) as image:
        cut = np.asarray(image.convert("RGB"))[top : top + height, left : left + width]
    return resize(cut, px)


def resize(pixels: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    """Resize an image (H, W, 3) to a square (px, px, 3), bilinear with antialias.

    Beyond the edges its outermost pixels are repeated, as DALI does; Pillow alone would leave what
    lies there out of the mean.
    """
    height, width = pixels.shape[:2]
    reach = -(-max(height, width) // px) + 1  # At least half the width of the filter.
    padded = Image.fromarray(np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="edge"))
    box = (reach, reach, reach + width, reach + height)
    return np.asarray(padded.resize((px, px), Image.Resampling.BILINEAR, box=box))


def tile_views(encoded: list[bytes], tiles: Tiles, plan: TilePlan) -> NDArray[np.uint8]:
    """Cut the tiles of a batch, and show them as planned.

    Returns:
        uint8 (B, T, tile_px, tile_px, 3), tiles in reading order.
    """
    side, field, colors = tiles.tile_px, noise_field(tiles.tile_px), tints(plan)
    views = np.empty((len(encoded), *tiles.shape), np.uint8)
    for b, data in enumerate(encoded):
        pixels = crop_view(data, plan.crops[b], tiles.crop_px)
        for t in range(tiles.num_tiles):
            tile = np.empty((side, side, 3), np.uint8)
            for c in range(3):
                top, left = plan.anchors[b, t] + plan.shifts[b, t, c]
                tile[..., c] = pixels[top : top + side, left : left + side, c]
            if plan.sides[b, t] != side:
                tile = resize(resize(tile, int(plan.sides[b, t])), side)
            top, left = plan.noise[b, t]
            noise = field[top : top + side, left : left + side]
            weights, offset, amplitude = np.split(colors[b, t], [3, 4], axis=1)
            shown = tile @ weights.T + offset[:, 0] + amplitude[:, 0] * noise
            tile = np.clip(np.floor(shown + 0.5), 0, 255).astype(np.uint8)
            views[b, t] = tile[:, ::-1] if plan.mirrored[b] else tile
    return views
