"""How each bug is planted: in pixels, in plans, or in the images that are stored."""

# Shapes: N images, T tiles, H/W view size, K permutations.

import io
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.audit.control import QUALITY, encode
from pipeline.audit.evidence import Evidence
from pipeline.audit.gather import Source
from pipeline.bench.repeated import write_repeated
from pipeline.data import open_store
from pipeline.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.plan import TilePlan, grid_cells
from pipeline.pretext.rotation import QUARTER_TURNS, RotationConfig, plan_rotation
from pipeline.reference import resize

_BEYOND_PX = 2
_CORNER = 0.6
"""Share of the light that a corner of the crop loses."""
_REDUCED = 0.5
"""Share of its side that a patch is reduced to."""
_SAMPLES_PER_SHARD = 200


@dataclass(frozen=True, slots=True)
class StoredAs:
    """How a JPEG is encoded."""

    subsampling: str
    quality: int = QUALITY


def crop_beyond(views: NDArray[np.uint8], grid: int) -> NDArray[np.uint8]:
    """Fill with zeros what tiles of the last row and column have beyond the image."""
    planted = views.copy()
    planted[:, grid - 1 :: grid, :, -_BEYOND_PX:] = 0
    planted[:, -grid:, -_BEYOND_PX:] = 0
    return planted


def darken_corners(evidence: Evidence) -> NDArray[np.uint8]:
    """Darken each pixel by the square of its distance from the middle of the crop."""
    tiles = evidence.task.tiles
    reach = np.arange(tiles.tile_px)
    places = evidence.plan.anchors[..., None] + reach  # (N, T, 2, H)
    squares = (places / tiles.crop_px * 2 - 1) ** 2
    loss = (squares[:, :, 0, :, None] + squares[:, :, 1, None, :]) / 2
    light = (1 - _CORNER * loss).astype(np.float32)
    return np.stack(
        [
            (view * shade[..., None]).astype(np.uint8)
            for view, shade in zip(evidence.views, light, strict=True)
        ]
    )


def skip_last_place(plan: TilePlan, task: JigsawConfig) -> TilePlan:
    """Draw the jitter of tiles from all places but the last, as `randint(0, slack)` does."""
    slack = task.cell_px - task.tile_px - task.channel_shift_px
    cells = grid_cells(task.grid, task.cell_px)
    rng = np.random.Generator(np.random.Philox(int(plan.labels.sum())))
    jitter = rng.integers(slack, size=plan.anchors.shape)
    return replace(plan, anchors=(cells + jitter).astype(np.int32))


def reduce_first(plan: TilePlan) -> TilePlan:
    """Reduce and enlarge the first patch of each image, and no other."""
    sides = np.full_like(plan.sides, plan.sides.max())
    sides[:, 0] = round(_REDUCED * int(plan.sides.max()))
    return replace(plan, sides=sides)


def alike_in_pairs(perms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give every second permutation (K, T) the order of the one before it, two tiles exchanged."""
    planted = perms.copy()
    half = len(perms) // 2
    planted[1 : 2 * half : 2] = perms[: 2 * half : 2]
    planted[1 : 2 * half : 2, :2] = perms[: 2 * half : 2, 1::-1]
    return planted


def turn_before_crop(source: Source, task: RotationConfig, num: int) -> Evidence:
    """Turn whole images inside their own frame, black where they do not reach, then cut squares.

    Returns:
        Views (N, 4, H, H, 3), the four turns of each image.
    """
    payloads = photographs(source, num)
    views = np.empty((len(payloads), len(QUARTER_TURNS), task.crop_px, task.crop_px, 3), np.uint8)
    images = [Image.open(io.BytesIO(payload)).convert("RGB") for payload in payloads]
    widths, heights = np.array([image.size for image in images], np.int32).T
    ids = np.arange(len(images))
    plan = plan_rotation(task, heights, widths, Draws(source.seed, 0, ids))
    for n, image in enumerate(images):
        top, left, height, width = plan.crops[n].tolist()
        for turn, degrees in enumerate(QUARTER_TURNS):
            turned = np.asarray(image.rotate(degrees))
            views[n, turn] = resize(turned[top : top + height, left : left + width], task.crop_px)
    return Evidence(task, views, plan, ids, heights, widths)


def presized(pixels: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    """Cut the central square of an image, and resize it to the size at which it will be cut."""
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return resize(pixels[top : top + side, left : left + side], px)


def restored(
    source: Source,
    num: int,
    out: Path,
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    stored_as: StoredAs,
) -> None:
    """Store changed images as JPEGs in new shards."""
    images = []
    for payload in photographs(source, num):
        with Image.open(io.BytesIO(payload)) as image:
            pixels = change(np.asarray(image.convert("RGB")))
            images.append(encode(pixels, stored_as.subsampling, quality=stored_as.quality))
    shards = -(-len(images) // _SAMPLES_PER_SHARD)
    write_repeated(images, out, num_shards=shards, samples_per_shard=len(images) // shards)


def photographs(source: Source, num: int) -> list[bytes]:
    """Read the encoded images of some shards, those that come first."""
    assert source.data.manifest is not None
    with closing(open_store(source.data.manifest, source.data.cache)) as store:
        ids = np.arange(min(num, store.manifest.num_samples))
        return [bytes(payload) for payload in store.read(ids).require_whole().payloads]
