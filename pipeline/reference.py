"""The views of the DALI graphs in Pillow and NumPy: slow, plain, the oracle of the tests."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.pretext.jigsaw import JigsawConfig, JigsawPlan


def crop_view(encoded: bytes, crop: NDArray[np.int32], px: int) -> NDArray[np.uint8]:
    """Decode all of an image, cut the crop, resize it (bilinear with antialias).

    Beyond the edges of the crop its outermost pixels are repeated, as DALI does; Pillow alone would
    leave what lies there out of the mean.

    Returns:
        uint8 (px, px, 3).
    """
    top, left, height, width = (int(v) for v in crop)
    with Image.open(io.BytesIO(encoded)) as image:
        cut = np.asarray(image.convert("RGB"))[top : top + height, left : left + width]
    reach = -(-max(height, width) // px) + 1  # At least half the width of the filter.
    padded = Image.fromarray(np.pad(cut, ((reach, reach), (reach, reach), (0, 0)), mode="edge"))
    box = (reach, reach, reach + width, reach + height)
    return np.asarray(padded.resize((px, px), Image.Resampling.BILINEAR, box=box))


def jigsaw_views(encoded: list[bytes], config: JigsawConfig, plan: JigsawPlan) -> NDArray[np.uint8]:
    """Cut the tiles of a batch.

    Returns:
        uint8 (B, T, tile_px, tile_px, 3), tiles in reading order.
    """
    views = np.empty((len(encoded), config.num_tiles, config.tile_px, config.tile_px, 3), np.uint8)
    for b, data in enumerate(encoded):
        pixels = crop_view(data, plan.crops[b], config.crop_px)
        if plan.gray[b]:
            luma = np.rint(pixels @ np.array([0.299, 0.587, 0.114]))
            pixels = np.repeat(luma[:, :, None], 3, axis=2).astype(np.uint8)
        for t, (top, left) in enumerate(plan.anchors[b]):
            views[b, t] = pixels[top : top + config.tile_px, left : left + config.tile_px]
    return views
