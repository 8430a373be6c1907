import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_bits import digest

from pipeline.dali.resample import cut_tiles, windows

ROOT = Path(__file__).parents[2]

SIDES = [*range(1, 24), 63, 64, 65, 127, 128, 129, 223, 224, 225, 256, 300, 383, 384, 448, 449]


def dense(px, side):
    """The triangle filter as a matrix (px, side); what lies beyond an edge counts to the edge."""
    scale = side / px
    reach = max(scale, 1.0)
    matrix = np.zeros((px, side))
    for row, center in enumerate((np.arange(px) + 0.5) * scale):
        for k in range(int(center - reach) - 3, int(center + reach) + 4):
            weight = max(0, 1 - abs(k + 0.5 - center) / reach)
            matrix[row, min(max(k, 0), side - 1)] += weight
    return matrix / matrix.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("px", [7, 64, 129, 224])
def test_tiles_are_those_of_the_filter_at_every_scale(px):
    rng = np.random.default_rng(px)
    tile = max(1, px // 3)
    anchors = np.array([[[0, 0], [px - tile, px - tile], [px // 4, px // 3]]], np.int32)
    for height in SIDES:
        width = int(rng.choice(SIDES))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        crop = np.array([[0, 0, height, width]], np.int32)
        (rectangle,), (geometry,) = windows(crop, anchors, px=px, tile_px=tile)
        top, left, rows, columns = rectangle
        pixels = np.ascontiguousarray(image[top : top + rows, left : left + columns])
        out = np.empty((3, tile, tile, 3), np.uint8)
        cuts = np.zeros((3, 11), np.int32)
        cuts[:, :2], cuts[:, 8] = anchors[0], tile
        plain = np.tile(np.eye(3, 5, dtype=np.float32), (3, 1, 1))
        cut_tiles(out, pixels, np.append(geometry, [0, 0]).astype(np.int32), cuts, plain)
        whole = np.stack([dense(px, height) @ image[..., c] @ dense(px, width).T for c in range(3)])
        for (y, x), got in zip(anchors[0], out, strict=True):
            expected = np.moveaxis(whole[:, y : y + tile, x : x + tile], 0, 2)
            assert np.abs(got - expected).max() < 0.52, (px, height, width)


@pytest.mark.multiprocess
def test_bits_do_not_depend_on_how_the_kernel_was_compiled(tmp_path):
    """Ranks may compile it at once, in whatever order; a sum must not be fused in one of them."""
    plain = {
        **os.environ,
        "NUMBA_OPT": "0",  # No vectors, nothing fused but what the kernel itself asks for.
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    script = Path(__file__).with_name("kernel_bits.py")
    done = subprocess.run(
        [sys.executable, script], env=plain, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == digest(), done.stderr
