"""The report's pictures: samples, puzzles as the network gets them, first-layer filters."""

# Shapes: T tiles, H/W tile size, O filters, K filter size.

import base64
import io
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from typing_extensions import assert_never

from pipeline.dali.graph import GraphOptions
from pipeline.data import open_loader
from pipeline.draws import Draws
from pipeline.loader import Batch
from pipeline.mixture import Place
from pipeline.pretext.jigsaw import JigsawConfig, plan_jigsaw
from pipeline.pretext.permutations import permutations_of
from pipeline.pretext.plan import GRAY, TilePlan
from pipeline.seen import normalize
from pipeline.shards.store import Store
from training.run import Pretraining

_SOURCE_PX = 640
_THUMBNAIL_PX = 224
_FILTER_COLUMNS = 8
_SHOWN_DEVIATIONS = 128 / 48
"""Standard deviations of a normalised tile between middle gray and black or white."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that the page holds in itself."""

    uri: str
    """data: URI."""
    width: int
    """px."""
    height: int
    """px."""
    alt: str


@dataclass(frozen=True, slots=True)
class Square:
    """A square of an image, in its pixels."""

    left: float
    top: float
    side: float


@dataclass(frozen=True, slots=True)
class TileSheet:
    """The tiles of one image on a grid."""

    picture: Picture
    places: tuple[Square, ...]
    """Of the tiles, in reading order."""
    numbers: tuple[int, ...]
    """Which tile stands at each place, counted from 1."""


@dataclass(frozen=True, slots=True)
class Puzzle:
    """What becomes of one image at one step."""

    source: Picture
    size: tuple[int, int]
    """Width and height of the stored image, px; the squares are given in these."""
    crop: Square
    tiles: tuple[Square, ...]
    """In reading order."""
    is_gray: bool
    permutation: int
    """Row of the permutation set."""
    raw: TileSheet
    raw_shuffled: TileSheet
    normalised: TileSheet
    normalised_shuffled: TileSheet


@dataclass(frozen=True, slots=True)
class Filters:
    """The first layer's weights, before and after."""

    random: Picture
    pretrained: Picture
    change: float
    """Norm of the difference as a share of the norm before."""


def contact_sheet(store: Store, num: int) -> list[Picture]:
    """Show `num` samples, evenly spaced over all shards; the same ones every time."""
    total = store.manifest.num_samples
    ids = np.unique(np.linspace(0, total - 1, min(num, total)).round().astype(np.int64))
    samples = store.read(ids).require_whole()
    classes = store.manifest.classes
    pictures = []
    for sample_id, payload, label in zip(ids, samples.payloads, samples.labels, strict=True):
        name = f", class {classes[label]}" if classes and label >= 0 else ""
        image = _decode(payload)
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
        pictures.append(_picture(image, "JPEG", f"Sample {sample_id}{name}"))
    return pictures


def puzzles(run: Pretraining, store: Store, num: int) -> list[Puzzle]:
    """Show the first images of epoch 0, step 0, from the graph that trains."""
    match run.pretext:
        case JigsawConfig():
            return _jigsaw_puzzles(run, run.pretext, store, num)
        case _:
            assert_never(run.pretext)


def filters(random: Tensor, pretrained: Tensor) -> Filters:
    """Show first-layer weights, (O, 3, K, K) each."""
    change = (pretrained - random).norm() / random.norm()
    count, _, side, _ = random.shape
    about = f"{count} filters of {side} x {side} x 3"
    return Filters(
        random=_filter_sheet(random, f"{about}, random"),
        pretrained=_filter_sheet(pretrained, f"{about}, pretrained"),
        change=float(change),
    )


def _jigsaw_puzzles(run: Pretraining, config: JigsawConfig, store: Store, num: int) -> list[Puzzle]:
    batch = _first_batch(run, num)
    ids = batch.sample_ids[:num]
    samples = store.read(ids).require_whole()
    draws = Draws(run.seed, batch.epoch, ids)
    plan = plan_jigsaw(config, samples.heights, samples.widths, draws)
    perms = permutations_of(config)
    assert np.array_equal(plan.labels, batch.labels[: len(ids)]), "this is another batch's plan"
    images = [_decode(payload) for payload in samples.payloads]
    return [
        _puzzle(config, plan, row, images[row], batch.views[row], perms[plan.labels[row, 0]])
        for row in range(len(ids))
    ]


def _first_batch(run: Pretraining, num: int) -> Batch:
    """Run the graph on the CPU for a rank whose share of a step is at least `num` if it can be.

    Any number of ranks shares the same global batches, so many ranks make the share small.
    """
    num_lanes = -(-num // run.order.lane_share)
    place = Place(rank=0, world_size=max(1, run.order.num_lanes // num_lanes))
    loader = open_loader(run.data, run.order, run.pretext, seed=run.seed, place=place, ledger=None)
    options = GraphOptions(max_batch=loader.max_batch, num_threads=1, device_id=None, prefetch=1)
    with closing(loader):
        return next(loader.batches(options))


def _puzzle(
    config: JigsawConfig,
    plan: TilePlan,
    row: int,
    image: Image.Image,
    views: Tensor,
    perm: NDArray[np.int64],
) -> Puzzle:
    top, left, side, _ = (int(v) for v in plan.crops[row])
    scale = side / config.crop_px
    size = image.size
    image.thumbnail((_SOURCE_PX, _SOURCE_PX), Image.Resampling.LANCZOS)
    raw = views.numpy()
    shown = normalize(views).permute(0, 2, 3, 1) * (128 / _SHOWN_DEVIATIONS) + 128
    normalised = shown.round().clamp(0, 255).to(torch.uint8).numpy()
    reading = np.arange(config.num_tiles)
    return Puzzle(
        source=_picture(image, "JPEG", "The stored image"),
        size=size,
        crop=Square(left, top, side),
        tiles=tuple(
            Square(left + x * scale, top + y * scale, config.tile_px * scale)
            for y, x in plan.anchors[row].tolist()
        ),
        is_gray=bool(plan.colors[row, 0] == GRAY),
        permutation=int(plan.labels[row, 0]),
        raw=_tile_sheet(raw, reading, "Tiles in reading order"),
        raw_shuffled=_tile_sheet(raw, perm, "Tiles shuffled"),
        normalised=_tile_sheet(normalised, reading, "Normalised tiles in reading order"),
        normalised_shuffled=_tile_sheet(normalised, perm, "Normalised tiles shuffled"),
    )


def _tile_sheet(tiles: NDArray[np.uint8], order: NDArray[np.int64], what: str) -> TileSheet:
    """Lay tiles (T, H, W, 3) on a square grid, tile order[p] at place p, with gaps between."""
    count, side = len(tiles), tiles.shape[1]
    grid, gap = round(count**0.5), max(2, side // 12)
    places = [
        Square((p % grid) * (side + gap), (p // grid) * (side + gap), side) for p in range(count)
    ]
    total = grid * (side + gap) - gap
    sheet = Image.new("RGBA", (total, total))
    for place, tile in zip(places, order, strict=True):
        sheet.paste(Image.fromarray(tiles[tile]), (int(place.left), int(place.top)))
    numbers = tuple(int(tile) + 1 for tile in order)
    alt = f"{what}: {', '.join(map(str, numbers))}"
    return TileSheet(_picture(sheet, "PNG", alt), tuple(places), numbers)


def _filter_sheet(weights_O3KK: Tensor, alt: str) -> Picture:
    """Lay filters on a grid, one pixel a weight; middle gray is 0, each has its own scale."""
    peak = weights_O3KK.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    shown = (weights_O3KK / peak * 127 + 128).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    count, side = shown.shape[:2]
    rows = -(-count // _FILTER_COLUMNS)
    sheet = Image.new("RGBA", (_FILTER_COLUMNS * (side + 1) - 1, rows * (side + 1) - 1))
    for position, tile in enumerate(shown):
        row, column = divmod(position, _FILTER_COLUMNS)
        sheet.paste(Image.fromarray(tile), (column * (side + 1), row * (side + 1)))
    return _picture(sheet, "PNG", alt)


def _decode(payload: NDArray[np.uint8]) -> Image.Image:
    with Image.open(io.BytesIO(payload.tobytes())) as image:
        return image.convert("RGB")


def _picture(image: Image.Image, kind: str, alt: str) -> Picture:
    sink = io.BytesIO()
    image.save(sink, kind, quality=85, optimize=True)
    data = base64.b64encode(sink.getvalue()).decode()
    uri = f"data:image/{kind.lower()};base64,{data}"
    return Picture(uri, image.width, image.height, alt)
