"""Print the hash of tiles that the compiled kernel cuts: the same, however it was compiled."""

import sys

import numpy as np
import xxhash

from pipeline.dali.resample import cut_tiles, windows

PX, TILE, REACH = 96, 24, 2


def digest():
    rng, bits = np.random.default_rng(0), xxhash.xxh3_64()
    for number in range(30):
        height, width = (int(side) for side in rng.integers(60, 400, 2))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        side = min(height, width)
        anchors = rng.integers(0, PX - TILE - REACH, (1, 4, 2)).astype(np.int32)
        crop = np.array([[0, 0, side, side]], np.int32)
        ((top, left, rows, columns),), (geometry,) = windows(
            crop, anchors, px=PX, tile_px=TILE + REACH
        )
        cuts = np.concatenate(
            [anchors[0], rng.integers(0, REACH + 1, (4, 6)), np.full((4, 3), TILE)], axis=1
        )
        cuts[:, 8] = TILE if number % 3 else 17  # A third is reduced and enlarged again.
        tints = np.tile(np.eye(3, 5, dtype=np.float32), (4, 1, 1))
        if number % 2:
            tints = rng.normal(0, 0.5, (4, 3, 5)).astype(np.float32)
        out = np.empty((4, TILE, TILE, 3), np.uint8)
        pixels = np.ascontiguousarray(image[top : top + rows, left : left + columns])
        last = [REACH, number % 2]
        cut_tiles(
            out, pixels, np.append(geometry, last).astype(np.int32), cuts.astype(np.int32), tints
        )
        bits.update(out.tobytes())
    return bits.hexdigest()


if __name__ == "__main__":
    sys.stdout.write(digest())
