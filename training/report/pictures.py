"""The report's pictures: samples, puzzles, first-layer filters."""

import base64
import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from typing_extensions import assert_never

from pipeline.config import ConfigError
from pipeline.explain.pictures.drawing import (
    SHOWN_DEVIATIONS,
    Arrow,
    Pixels,
    Square,
    arrow_between,
    decoded,
    normalised_tiles,
    seen_tiles,
    squares_of,
    views_by_task,
)
from pipeline.explain.pictures.step import sample_page
from pipeline.explain.step import Explained, Subject, explain_step, open_subject
from pipeline.loading.mixture import RankInfo
from pipeline.pretext.context import ContextConfig, ContextDraws
from pipeline.pretext.jigsaw import JigsawConfig, JigsawDraws, permutations_of
from pipeline.pretext.multitask import AnyDraws, Task, tasks_of
from pipeline.pretext.rotation import QUARTER_TURNS, RotationConfig
from pipeline.pretext.supervised import SupervisedConfig
from pipeline.shards.store import Store
from training.run import Pretraining

# Shapes: T tiles, O filters, K filter size.

_THUMBNAIL_PX = 224
_SHEET_COLUMNS = 6
_SHEET_GAP = 8
_SOURCE_PX = 640
_FILTER_COLUMNS = 8
_FILTER_SCALE = 8
_COMPRESSION = 3  # Half the time of Pillow's default, files a twentieth larger.
_TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image embedded in the page."""

    data: bytes
    """The encoded file."""
    kind: str
    """PNG or JPEG."""
    width: int
    """px."""
    height: int
    """px."""
    alt: str

    @property
    def uri(self) -> str:
        """The file as a data: URI."""
        return f"data:image/{self.kind.lower()};base64,{base64.b64encode(self.data).decode()}"

    @property
    def png(self) -> bytes:
        """The file as PNG."""
        return self.data if self.kind == "PNG" else png_of(_opened(self))


@dataclass(frozen=True, slots=True)
class PuzzleSheet:
    """Tiles of one image on a grid."""

    picture: EmbeddedImage
    places: tuple[Square, ...]
    """In reading order."""
    numbers: tuple[str, ...]
    """Number written on each tile; empty if they are in reading order."""
    tiles: tuple[int, ...]
    """Index of the tile at each place."""
    caption: str


@dataclass(frozen=True, slots=True)
class Puzzle:
    """What one image becomes at one step."""

    source: EmbeddedImage
    size: tuple[int, int]
    """Width and height of the stored image, px; squares are in these coordinates."""
    crop: Square
    tiles: tuple[Square, ...]
    """In reading order; empty if the crop is the only one."""
    arrow: Arrow | None
    """From the first to the second patch of the pair."""
    shown: str
    """How the views differ from the image: gray, mirrored."""
    sheets: tuple[PuzzleSheet, ...]


@dataclass(frozen=True, slots=True)
class TaskPuzzles:
    """One task's puzzles."""

    name: str
    words: str
    """What the task asks, and what the pictures show."""
    puzzles: tuple[Puzzle, ...]


@dataclass(frozen=True, slots=True)
class Puzzles:
    """What the network sees of some images."""

    tasks: Sequence[TaskPuzzles]
    pages: Sequence[Image.Image]
    """One picture per image with all its tasks, as `tessera explain` draws it."""


@dataclass(frozen=True, slots=True)
class Filters:
    """The first layer's weights, before and after."""

    random: EmbeddedImage
    pretrained: EmbeddedImage
    change: float
    """Norm of the difference, relative to the norm before."""


def contact_sheet(store: Store, num: int) -> list[EmbeddedImage]:
    """Pick `num` samples, evenly spaced over all shards; always the same ones."""
    total = store.manifest.num_samples
    ids = np.unique(np.linspace(0, total - 1, min(num, total)).round().astype(np.int64))
    samples = store.read(ids).require_whole()
    classes = store.manifest.classes
    pictures = []
    for sample_id, payload, label in zip(ids, samples.payloads, samples.labels, strict=True):
        name = f", class {classes[label]}" if classes and label >= 0 else ""
        image = _decode(payload)
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
        pictures.append(picture(image, "JPEG", f"Sample {sample_id}{name}"))
    return pictures


def one_sheet(pictures: Sequence[EmbeddedImage]) -> Image.Image:
    """Lay the pictures of a contact sheet on a grid, each centred in its cell."""
    columns = min(_SHEET_COLUMNS, len(pictures))
    step = _THUMBNAIL_PX + _SHEET_GAP
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * step + _SHEET_GAP, rows * step + _SHEET_GAP), "white")
    for number, shown in enumerate(pictures):
        row, column = divmod(number, columns)
        left = _SHEET_GAP + column * step + (_THUMBNAIL_PX - shown.width) // 2
        top = _SHEET_GAP + row * step + (_THUMBNAIL_PX - shown.height) // 2
        sheet.paste(_opened(shown), (left, top))
    return sheet


def puzzles(run: Pretraining, num: int) -> Puzzles:
    """Show the first images of epoch 0, step 0, as the training graph cuts them.

    Raises:
        ConfigError: The shards cannot be read.
        DamageError: A sample is damaged, and the run's policy is to stop.
    """
    # Global batches do not depend on the number of ranks, so many ranks make the share small.
    num_lanes = -(-num // run.order.lane_share)
    place = RankInfo(rank=0, world_size=max(1, run.order.num_lanes // num_lanes))
    with closing(open_subject(run.data, run.order, run.pretext, seed=run.seed)) as subject:
        explained = explain_step(subject, 0, 0, place)
        tasks = [
            TaskPuzzles(task.name, _words(task), tuple(_puzzles(subject, explained, number, num)))
            for number, task in enumerate(tasks_of(run.pretext))
        ]
        return Puzzles(tasks, _pages(subject, explained, num))


def _pages(subject: Subject, explained: Explained, num: int) -> list[Image.Image]:
    views = views_by_task(subject.pretext, explained.views[:num])
    pages = []
    for shown, payload, by_task in zip(explained.samples, explained.payloads, views, strict=False):
        image = decoded(payload, (shown.width, shown.height))
        pages.append(sample_page(explained, shown, image, by_task, subject.pretext))
    return pages


def _puzzles(subject: Subject, explained: Explained, number: int, num: int) -> list[Puzzle]:
    task = tasks_of(subject.pretext)[number]
    views = views_by_task(subject.pretext, explained.views[:num])
    found = []
    for row, by_task in enumerate(views):
        shown = explained.samples[row]
        image = decoded(explained.payloads[row], (shown.width, shown.height))
        found.append(_puzzle(task, shown.draws[number], image, by_task[number]))
    return found


def _puzzle(task: Task, draws: AnyDraws, image: Image.Image, views: Pixels) -> Puzzle:
    top, left, side = draws.crop
    size = image.size
    squares, pair = squares_of(task, draws, 1.0), draws.pair
    image.thumbnail((_SOURCE_PX, _SOURCE_PX), Image.Resampling.LANCZOS)
    drawn = "the crop" if len(squares) == 1 else f"the crop and the {len(squares)} tiles"
    if pair is not None:
        drawn += f" and an arrow from tile {pair.first + 1} to tile {pair.second + 1}"
    return Puzzle(
        source=picture(image, "JPEG", f"The stored image, with {drawn} drawn in it"),
        size=size,
        crop=Square(left, top, side),
        tiles=squares if len(squares) > 1 else (),
        arrow=arrow_between(squares[pair.first], squares[pair.second]) if pair else None,
        shown=("shown in gray" if draws.gray else "")
        + (", " if draws.gray and draws.mirrored else "")
        + ("mirrored" if draws.mirrored else ""),
        sheets=_sheets(task, draws, views),
    )


def _sheets(task: Task, draws: AnyDraws, views: Pixels) -> tuple[PuzzleSheet, ...]:
    seen = seen_tiles(task, views)
    normalised = normalised_tiles(task, views)
    reading = np.arange(task.num_tiles)
    match task:
        case JigsawConfig():
            assert isinstance(draws, JigsawDraws)
            number = draws.permutations[0]
            asked, names = permutations_of(task)[number], [str(t + 1) for t in reading]
            words = (
                *("Tiles in reading order", f"Shuffled by permutation {number}"),
                "Normalised, as the trunk gets them",
                "Normalised, in the order that the head gets",
            )
        case ContextConfig():
            assert isinstance(draws, ContextDraws)
            pair = draws.pairs[0]
            asked, names = np.array([pair.first, pair.second]), [str(t + 1) for t in reading]
            words = (
                *("Patches in reading order", f"The pair asked first: {pair.direction}"),
                *("Normalised, as the trunk gets them", f"The pair, normalised: {pair.direction}"),
            )
        case RotationConfig():
            asked, names = np.arange(len(QUARTER_TURNS)), [str(turn) for turn in QUARTER_TURNS]
            words = (
                *("The square", "Turned, degrees counterclockwise"),
                *("The square, normalised", "Turned and normalised, as the trunk gets them"),
            )
        case SupervisedConfig():
            asked, names = reading, []
            words = ("The square", "The square", "Normalised", "Normalised, as the trunk gets it")
        case _:
            assert_never(task)
    return (
        _sheet(seen, reading, [], words[0]),
        _sheet(seen, asked, names, words[1]),
        _sheet(normalised, reading, [], words[2]),
        _sheet(normalised, asked, names, words[3]),
    )


def _sheet(
    tiles: Pixels, order: NDArray[np.int64], names: Sequence[str], caption: str
) -> PuzzleSheet:
    """Lay tiles (T, H, W, 3) on a grid with gaps, tile order[p] at place p."""
    count, side = len(order), tiles.shape[1]
    grid, gap = int(np.ceil(count**0.5)), max(2, side // 12)
    places = tuple(
        Square((p % grid) * (side + gap), (p // grid) * (side + gap), side) for p in range(count)
    )
    rows = -(-count // grid)
    sheet = Image.new("RGBA", (grid * (side + gap) - gap, rows * (side + gap) - gap))
    for place, tile in zip(places, order, strict=True):
        sheet.paste(Image.fromarray(tiles[tile]), (int(place.left), int(place.top)))
    shown = tuple(order.tolist())
    numbers = tuple(names[tile] for tile in shown) if names else ()
    alt = f"{caption}: {', '.join(numbers)}" if numbers else caption
    return PuzzleSheet(picture(sheet, "PNG", alt), places, numbers, shown, caption)


def _words(task: Task) -> str:
    deviations = f"{SHOWN_DEVIATIONS:.1f} standard deviations"
    scale = (
        f"here mid-gray is its mean; black and white are {deviations} away"
        if task.normalization == "tile"
        else f"here mid-gray is 0; black and white are {deviations} away"
    )
    own = "on its own" if task.normalization == "tile" else "by constants"
    match task:
        case JigsawConfig():
            return (
                f"A square crop is resized to {task.crop_px} px and cut into {task.grid} {_TIMES} "
                f"{task.grid} cells of {task.cell_px} px; a tile of {task.tile_px} px is cut at a "
                f"random place in each. The trunk gets each tile normalised {own} ({scale}). "
                "The head gets the tiles' embeddings in shuffled order and names the permutation "
                f"among {task.num_permutations:,}; every image is shuffled "
                f"{task.puzzles_per_image} times, and the first is shown."
            )
        case ContextConfig():
            return (
                f"A block of {task.grid} {_TIMES} {task.grid} patches of {task.patch_px} px is cut "
                f"from the resized image, {task.gap_px} px apart, each moved by up to "
                f"{task.jitter_px} px. The trunk gets each patch normalised {own} ({scale}). The "
                "head gets the embeddings of two patches and names the direction from the first "
                f"to the second, one of 8; of {task.pairs_per_image} pairs per image the first is "
                "shown, with an arrow from its first patch to its second."
            )
        case RotationConfig():
            return (
                f"A square crop is resized to {task.crop_px} px and turned by 0, 90, 180 and 270 "
                f"degrees. The trunk gets each view normalised {own} ({scale}), and the head names "
                "the turn."
            )
        case SupervisedConfig():
            return (
                f"A square crop is resized to {task.crop_px} px. The trunk gets it normalised "
                f"{own} ({scale}), and the head names the class of the image among "
                f"{task.num_classes:,}; {task.holdout:.0%} of the images are held out."
            )
        case _:
            assert_never(task)


def filters(random: Tensor, pretrained: Tensor) -> Filters:
    """Draw first-layer weights, (O, 3, K, K) each."""
    change = (pretrained - random).norm() / random.norm()
    count, _, side, _ = random.shape
    about = f"{count} filters of {side} x {side} x 3"
    return Filters(
        random=_filter_sheet(random, f"{about}, random"),
        pretrained=_filter_sheet(pretrained, f"{about}, pretrained"),
        change=float(change),
    )


def _filter_sheet(weights_O3KK: Tensor, alt: str) -> EmbeddedImage:
    """Lay filters on a grid, one square per weight; mid-gray is 0, each has its own scale."""
    peak = weights_O3KK.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    shown = (weights_O3KK / peak * 127 + 128).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    count, side = shown.shape[:2]
    rows = -(-count // _FILTER_COLUMNS)
    sheet = Image.new("RGBA", (_FILTER_COLUMNS * (side + 1) - 1, rows * (side + 1) - 1))
    for position, tile in enumerate(shown):
        row, column = divmod(position, _FILTER_COLUMNS)
        sheet.paste(Image.fromarray(tile), (column * (side + 1), row * (side + 1)))
    large = (sheet.width * _FILTER_SCALE, sheet.height * _FILTER_SCALE)
    return picture(sheet.resize(large, Image.Resampling.NEAREST), "PNG", alt)


def stored_picture(path: Path, alt: str) -> EmbeddedImage:
    """Read a PNG written by a stage, and embed it as JPEG, which keeps photographs small.

    Raises:
        ConfigError: The picture is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return picture(image.convert("RGB"), "JPEG", alt)
    except (OSError, SyntaxError):  # What Pillow raises for a broken PNG.
        raise ConfigError(f"picture (={path}) cannot be read; run that stage again.") from None


def picture(image: Image.Image, kind: str, alt: str) -> EmbeddedImage:
    """Encode an image as PNG or JPEG to embed it."""
    sink = io.BytesIO()
    image.save(sink, kind, quality=85, optimize=True)
    return EmbeddedImage(sink.getvalue(), kind, image.width, image.height, alt)


def png_of(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    sink = io.BytesIO()
    image.save(sink, "PNG", compress_level=_COMPRESSION)
    return sink.getvalue()


def _opened(shown: EmbeddedImage) -> Image.Image:
    with Image.open(io.BytesIO(shown.data)) as image:
        return image.convert("RGB")


def _decode(payload: NDArray[np.uint8]) -> Image.Image:
    with Image.open(io.BytesIO(payload.tobytes())) as image:
        return image.convert("RGB")
