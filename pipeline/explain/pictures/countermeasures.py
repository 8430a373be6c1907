"""Previews: what each task shows of some images, and each countermeasure before and after."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import assert_never

from pipeline.explain.describe import only_rows
from pipeline.explain.pictures.drawing import (
    SHOWN_DEVIATIONS,
    Pixels,
    decoded,
    marked_image,
    normalised_tiles,
    seen_tiles,
    sheet_of,
    views_by_task,
)
from pipeline.explain.pictures.step import file_name
from pipeline.explain.step import Explained
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.jigsaw import JigsawConfig, JigsawDraws, permutations_of
from pipeline.pretext.multitask import AnyDraws, PretextConfig, Task
from pipeline.pretext.plan import GRAY, KEEP_RED, PROJECTED, RGB, TilePlan, Tiles
from pipeline.pretext.rotation import RotationConfig
from pipeline.pretext.supervised import SupervisedConfig
from pipeline.reference import tile_views

# Shapes: B batch, T tiles of an image.


@dataclass(frozen=True, slots=True)
class Measure:
    """A countermeasure on one image."""

    name: str
    """Part of a file's name."""
    title: str
    hides: str
    """What the network could exploit without it, a sentence."""
    neutral: str
    """How `before` differs, a phrase."""
    row: int
    """Row of the image in the step."""
    before: Pixels
    """(T, H, W, 3)."""
    after: Pixels
    """(T, H, W, 3), as the graph gave them."""
    made_by_reference: bool = True
    """Whether `before` is; otherwise it is the graph's, too."""
    then: str = "made by the graph that trains"
    """What `after` shows."""
    closer: bool = False
    """Whether it shows only in a magnified detail."""


@dataclass(frozen=True, slots=True)
class Untouched:
    """A countermeasure that was drawn for no image."""

    name: str
    title: str
    num_images: int


@dataclass(frozen=True, slots=True)
class _Change:
    """A countermeasure undone."""

    name: str
    title: str
    hides: str
    neutral: str
    touched: NDArray[Any]
    """(B,): how much it changes an image; 0 where it does not touch it."""
    tiles: Tiles
    plan: TilePlan
    closer: bool = False


def measures_of(
    pretext: PretextConfig, task: Task, explained: Explained
) -> Iterator[Measure | Untouched]:
    """Show each countermeasure that a task switches on, on the image that it changes most.

    Args:
        pretext: What the step asks.
        task: One of its tasks.
        explained: The step.
    """
    number = explained.task_names.index(task.name)
    plan = explained.plans[number]
    views = [row[number] for row in views_by_task(pretext, explained.views)]
    for change in _changes(task, plan):
        if not change.touched.any():
            yield Untouched(change.name, change.title, len(views))
            continue
        row = int(change.touched.argmax())
        payload = explained.payloads[row].tobytes()
        before = tile_views([payload], change.tiles, only_rows(change.plan, slice(row, row + 1)))
        yield Measure(
            name=change.name,
            title=change.title,
            hides=change.hides,
            neutral=change.neutral,
            row=row,
            before=before[0],
            after=views[row],
            closer=change.closer,
        )
    if isinstance(task, JigsawConfig) and task.max_foreign_tiles:
        yield _foreign(task, explained, number, views)
    if task.normalization == "tile":
        yield Measure(
            name="normalization",
            title="Normalization of every tile",
            hides="Brightness and contrast of a tile would tell its image and its place.",
            neutral="bytes as they leave the graph",
            row=0,
            before=seen_tiles(task, views[0]),
            after=normalised_tiles(task, views[0]),
            made_by_reference=False,
            then="mean and deviation of every tile and channel made equal; middle gray is the "
            f"mean, black and white are {SHOWN_DEVIATIONS:.1f} deviations away",
        )


def _changes(task: Task, plan: TilePlan) -> Iterator[_Change]:
    match task:
        case JigsawConfig():
            yield from _of_jigsaw(task, plan)
        case ContextConfig():
            yield from _of_context(task, plan)
        case RotationConfig() | SupervisedConfig():
            if task.tiles.mirrored:
                yield _mirror(task.tiles, plan)
            if task.projection_probability:
                yield _colored(task.tiles, plan, "projection")
        case _:
            assert_never(task)
    if task.gray_probability:
        yield _colored(task.tiles, plan, "gray")


def _of_jigsaw(task: JigsawConfig, plan: TilePlan) -> Iterator[_Change]:
    if task.tile_px < task.cell_px:
        yield _cells(task, plan)
    if task.channel_shift_px:
        yield _shift(task.tiles, plan)
    if task.intensity_jitter:
        yield _intensity(task.tiles, plan)
    if task.projection_probability:
        yield _colored(task.tiles, plan, "projection")


def _of_context(task: ContextConfig, plan: TilePlan) -> Iterator[_Change]:
    if task.gap_px:
        yield _gap(task, plan)
    if task.tiles.resampled:
        yield _reduced(task.tiles, plan)
    if task.color == "project":
        yield _colored(task.tiles, plan, "projection")
    if task.color == "drop":
        yield _colored(task.tiles, plan, "drop")


_ABERRATION = "Lenses shift colors apart towards the rim: the fringes would tell places."
_COLORED = {
    "gray": ("Shown in gray", (GRAY,)),
    "projection": ("Projected colors", (PROJECTED,)),
    "drop": ("One color channel kept", tuple(range(KEEP_RED, KEEP_RED + 3))),
}


def _colored(tiles: Tiles, plan: TilePlan, name: str) -> _Change:
    title, shown = _COLORED[name]
    return _Change(
        name=name,
        title=title,
        hides=_ABERRATION,
        neutral="every tile in its own colors",
        touched=np.isin(plan.colors, shown).sum(axis=1),
        tiles=tiles,
        plan=replace(plan, colors=np.full_like(plan.colors, RGB)),
    )


def _cells(task: JigsawConfig, plan: TilePlan) -> _Change:
    whole = replace(
        plan,
        anchors=np.broadcast_to(task.cells, plan.anchors.shape).astype(np.int32),
        shifts=np.zeros_like(plan.shifts),
        sides=np.full_like(plan.sides, task.cell_px),
    )
    return _Change(
        name="gap",
        title="Gap and jitter",
        hides="Lines that run on over the edge between two cells would join the tiles.",
        neutral="tiles as large as their cells, which leaves no room for the channel shift either",
        touched=np.ones(len(plan.crops)),
        tiles=replace(task.tiles, tile_px=task.cell_px),
        plan=whole,
    )


def _gap(task: ContextConfig, plan: TilePlan) -> _Change:
    rows, columns = np.divmod(np.arange(task.num_tiles), task.grid)
    rim = (task.block_px - task.grid * task.patch_px) // 2
    touching = np.stack([rows, columns], axis=1) * task.patch_px + rim
    return _Change(
        name="gap",
        title="Gap and jitter",
        hides="Lines that run on over the edge between two patches would join them.",
        neutral="patches that touch, in the middle of the block",
        touched=np.ones(len(plan.crops)),
        tiles=task.tiles,
        plan=replace(plan, anchors=np.broadcast_to(touching, plan.anchors.shape).astype(np.int32)),
    )


def _shift(tiles: Tiles, plan: TilePlan) -> _Change:
    return _Change(
        name="channel-shift",
        title="Channel shift",
        hides=_ABERRATION,
        neutral="red, green and blue in their places",
        # A gray tile shows the shift as blur only: one in color comes first where there is one.
        touched=plan.shifts.sum(axis=(1, 2, 3)) * np.where(plan.colors[:, 0] == RGB, 10, 1),
        tiles=tiles,
        plan=replace(plan, shifts=np.zeros_like(plan.shifts)),
        closer=True,
    )


def _intensity(tiles: Tiles, plan: TilePlan) -> _Change:
    return _Change(
        name="intensity",
        title="Intensity jitter",
        hides="Brightness and color cast of a tile would tell its image and its place.",
        neutral="no gray levels added",
        touched=np.abs(plan.offsets).sum(axis=(1, 2)),
        tiles=tiles,
        plan=replace(plan, offsets=np.zeros_like(plan.offsets)),
    )


def _reduced(tiles: Tiles, plan: TilePlan) -> _Change:
    return _Change(
        name="reduced",
        title="Patches reduced and enlarged",
        hides="Sharpness of a patch would tell where the lens was in focus.",
        neutral="no patch reduced",
        touched=tiles.tile_px - plan.sides.min(axis=1),
        tiles=tiles,
        plan=replace(plan, sides=np.full_like(plan.sides, tiles.tile_px)),
    )


def _mirror(tiles: Tiles, plan: TilePlan) -> _Change:
    return _Change(
        name="mirror",
        title="Mirrored",
        hides="Writing and handedness would tell one turn from another.",
        neutral="left and right in their places",
        touched=plan.mirrored,
        tiles=tiles,
        plan=replace(plan, mirrored=np.zeros_like(plan.mirrored)),
    )


def _foreign(
    task: JigsawConfig, explained: Explained, number: int, views: Sequence[Pixels]
) -> Measure | Untouched:
    """Exchange tiles in the first puzzle that has foreign ones."""
    perms = permutations_of(task)
    rows = {shown.slot.position: row for row, shown in enumerate(explained.samples)}
    for row, shown in enumerate(explained.samples):
        draws = shown.draws[number]
        assert isinstance(draws, JigsawDraws)
        for permutation, foreign in zip(draws.permutations, draws.foreign, strict=True):
            if foreign:
                before = views[row][perms[permutation]]
                after = before.copy()
                for one in foreign:
                    after[one.place] = views[rows[one.position]][one.tile]
                return Measure(
                    name="foreign",
                    title="Tiles of another image",
                    hides="Without strangers, any two tiles may be trusted to be neighbours.",
                    neutral=f"the puzzle of permutation {permutation} before tiles are exchanged",
                    row=row,
                    before=before,
                    after=after,
                    made_by_reference=False,
                    then=f"{len(foreign)} of the tiles exchanged; the head exchanges what the "
                    "trunk makes of them",
                )
    return Untouched("foreign", "Tiles of another image", len(views))


DETAIL_PX, MAGNIFIED = 24, 8
"""Side of the square that is magnified, and how many times."""

_SOURCE_PX = 480


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture with its words."""

    name: str
    """Name of its file."""
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
        num: Number of images.
    """
    number = explained.task_names.index(task.name)
    views = [row[number] for row in views_by_task(pretext, explained.views[:num])]
    rows = zip(explained.samples, explained.payloads, views, strict=False)
    for shown, payload, tiles in rows:
        draws = shown.draws[number]
        stem = f"{task.name}-{shown.slot.position}-{file_name(shown.key)}"
        stored = decoded(payload, (shown.width, shown.height))
        scale = _SOURCE_PX / max(stored.size)
        source = Drawing(
            name=f"{stem}-stored.png",
            image=marked_image(stored, draws, task, scale, numbers=True),
            alt=f"Stored image {shown.key} with {draws.marks}",
            caption=f"Stored, {shown.width} x {shown.height} px, with {draws.marks}.",
        )
        drawings = (source, *_seen(task, draws, tiles, stem))
        yield PreviewSection(f"Position {shown.slot.position}: {shown.key}", "", drawings)


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
            text=f"{measure.hides} Shown on position {shown.slot.position}, {shown.key}.",
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
    sheet, seen = sheet_of(task), seen_tiles(task, tiles)
    for layout in task.layouts(draws):
        shown = seen if layout.order is None else seen[list(layout.order)]
        image = replace(sheet, grid=layout.columns or sheet.grid).draw(shown)
        yield Drawing(f"{stem}-{layout.kind}.png", image, layout.what, f"{layout.what}.")
