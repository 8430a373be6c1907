"""The pictures of a preview: what each task shows of some images, and its countermeasures."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from typing_extensions import assert_never

from pipeline.explain.countermeasures import Measure, Untouched, measures_of
from pipeline.explain.describe import AnyDraws, ContextDraws, JigsawDraws
from pipeline.explain.pictures.sheets import Pixels, seen_tiles, sheet_of, views_by_task
from pipeline.explain.pictures.source import decoded, marked_image
from pipeline.explain.pictures.step import file_name
from pipeline.explain.step import Explained
from pipeline.loading.views import PretextConfig
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import Task
from pipeline.pretext.permutation_set import permutations_of
from pipeline.pretext.rotation import RotationConfig
from pipeline.pretext.supervised import SupervisedConfig

DETAIL_PX, MAGNIFIED = 24, 8
"""Side of the square that is magnified, and how many times."""

_SOURCE_PX = 480


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture with its words."""

    name: str
    """Of its file."""
    image: Image.Image
    alt: str
    caption: str


@dataclass(frozen=True, slots=True)
class PreviewSection:
    """Pictures that stand side by side under a heading."""

    title: str
    text: str
    drawings: tuple[Drawing, ...]


def image_parts(
    pretext: PretextConfig, task: Task, explained: Explained, num: int
) -> Iterator[PreviewSection]:
    """Draw the first images of a step: stored, and as the task shows them.

    Args:
        pretext: What the step asks.
        task: One of its tasks.
        explained: The step.
        num: Of the images.
    """
    number = explained.task_names.index(task.name)
    views = [row[number] for row in views_by_task(pretext, explained.views[:num])]
    rows = zip(explained.samples, explained.payloads, views, strict=False)
    for shown, payload, tiles in rows:
        draws = shown.draws[number]
        stem = f"{task.name}-{shown.seat.position}-{file_name(shown.key)}"
        stored = decoded(payload, (shown.width, shown.height))
        scale = _SOURCE_PX / max(stored.size)
        source = Drawing(
            name=f"{stem}-stored.png",
            image=marked_image(stored, draws, task, scale, numbers=True),
            alt=f"Stored image {shown.key} with {_marks(draws)}",
            caption=f"Stored, {shown.width} x {shown.height} px, with {_marks(draws)}.",
        )
        drawings = (source, *_seen(task, draws, tiles, stem))
        yield PreviewSection(f"Position {shown.seat.position}: {shown.key}", "", drawings)


def measure_parts(
    pretext: PretextConfig, task: Task, explained: Explained
) -> Iterator[PreviewSection]:
    """Draw each countermeasure that the task switches on: before, after, and closer if needed."""
    for measure in measures_of(pretext, task, explained):
        if isinstance(measure, Untouched):
            text = f"On, but drawn for none of the {measure.num_images} images that were planned."
            yield PreviewSection(measure.title, text, ())
            continue
        shown = explained.samples[measure.row]
        yield PreviewSection(
            title=measure.title,
            text=f"{measure.hides} Shown on position {shown.seat.position}, {shown.key}.",
            drawings=tuple(_before_and_after(task, measure)),
        )


def magnified(before: Pixels, after: Pixels) -> tuple[Image.Image, Image.Image]:
    """Cut the square that differs most out of both, and enlarge it.

    Args:
        before: (T, H, W, 3).
        after: As large.
    """
    apart = np.abs(before.astype(int) - after).sum(axis=3)
    side = min(DETAIL_PX, apart.shape[1])
    sums = np.pad(apart, ((0, 0), (1, 0), (1, 0))).cumsum(axis=1).cumsum(axis=2)
    inside = sums[:, side:, side:] - sums[:, side:, :-side]
    inside = inside - sums[:, :-side, side:] + sums[:, :-side, :-side]
    tile, top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    cut = np.s_[tile, top : top + side, left : left + side]
    first, second = (
        Image.fromarray(tiles[cut].repeat(MAGNIFIED, 0).repeat(MAGNIFIED, 1))
        for tiles in (before, after)
    )
    return first, second


def _before_and_after(task: Task, measure: Measure) -> Iterator[Drawing]:
    sheet = sheet_of(task)
    # Gaps of the picture would hide that neighbouring cells touch.
    gap = 2 if measure.name == "gap" else sheet.gap
    columns = round(len(measure.before) ** 0.5)
    first = replace(sheet, grid=columns, tile_px=measure.before.shape[1], gap=gap)
    stem, title = f"{task.name}-{measure.name}", measure.title
    maker = "the reference" if measure.made_by_reference else "the graph"
    yield Drawing(
        name=f"{stem}-before.png",
        image=first.draw(measure.before),
        alt=f"{title}, before: {measure.neutral}",
        caption=f"Before, made by {maker}: {measure.neutral}.",
    )
    yield Drawing(
        name=f"{stem}-after.png",
        image=replace(sheet, grid=columns).draw(measure.after),
        alt=f"{title}, after: {measure.then}",
        caption=f"After: {measure.then}.",
    )
    if measure.closer:
        details = magnified(measure.before, measure.after)
        for when, detail in zip(("before", "after"), details, strict=True):
            yield Drawing(
                name=f"{stem}-detail-{when}.png",
                image=detail,
                alt=f"{title}, {when}: a detail, magnified {MAGNIFIED} times",
                caption=f"{when.capitalize()}, a detail x {MAGNIFIED}.",
            )


def _seen(task: Task, draws: AnyDraws, tiles: Pixels, stem: str) -> Iterator[Drawing]:
    sheet = sheet_of(task)
    match task:
        case JigsawConfig():
            assert isinstance(draws, JigsawDraws)
            row = draws.permutations[0]
            permutation = permutations_of(task)[row]
            order = " ".join(str(tile + 1) for tile in permutation)
            yield _drawing(stem, "order", sheet.draw(tiles), "Tiles in reading order")
            mixed = sheet.draw(tiles[permutation])
            yield _drawing(stem, "shuffled", mixed, f"Shuffled by permutation {row}: {order}")
        case ContextConfig():
            assert isinstance(draws, ContextDraws)
            pair = draws.pairs[0]
            yield _drawing(stem, "order", sheet.draw(tiles), "Patches in reading order")
            asked = replace(sheet, grid=2).draw(tiles[[pair.first, pair.second]])
            what = f"Asked first: patch {pair.first + 1}, then {pair.second + 1}: {pair.direction}"
            yield _drawing(stem, "pair", asked, what)
        case RotationConfig():
            what = "Turned by 0, 90, 180 and 270 degrees counterclockwise"
            yield _drawing(stem, "turns", sheet.draw(seen_tiles(task, tiles)), what)
        case SupervisedConfig():
            yield _drawing(stem, "square", sheet.draw(tiles), "The square, whose class is asked")
        case _:
            assert_never(task)


def _drawing(stem: str, kind: str, image: Image.Image, what: str) -> Drawing:
    return Drawing(f"{stem}-{kind}.png", image, what, f"{what}.")


def _marks(draws: AnyDraws) -> str:
    if isinstance(draws, ContextDraws):
        pair = draws.pairs[0]
        return (
            f"its block, its patches, and an arrow from patch {pair.first + 1} to "
            f"{pair.second + 1}, {pair.direction}"
        )
    if isinstance(draws, JigsawDraws):
        return "its crop and its tiles"
    return "its square, before it is mirrored" if draws.mirrored else "its square"
