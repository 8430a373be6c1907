"""What was drawn for one image, task by task: a row of a plan, in the words of its pretext."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import assert_never

from pipeline.loading.graph_runner import PlannedBatch
from pipeline.pretext.context import DIRECTIONS, ContextConfig, neighbours
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import PretextConfig, Task, tasks_of
from pipeline.pretext.normalize import split_labels
from pipeline.pretext.plan import COLORS, GRAY, TilePlan, grid_cells
from pipeline.pretext.rotation import QUARTER_TURNS, RotationConfig
from pipeline.pretext.supervised import SupervisedConfig

Point = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two patches of a block, and where the second lies, seen from the first."""

    first: int
    """Patches count from 0, in reading order."""
    second: int
    direction: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """A tile of a puzzle that comes of another image."""

    place: int
    """In the puzzle."""
    position: int
    """Of the other image in the global batch."""
    tile: int


@dataclass(frozen=True, slots=True)
class TaskDraws:
    """What one task drew for one image; what its config leaves no choice of is empty."""

    crop: tuple[int, int, int]
    """Top, left, side of the square, px of the stored image."""
    tiles: tuple[Point, ...]
    """Top, left of every tile inside its cell, px of the crop after its resize; reading order."""
    gray: bool
    """Whether all tiles are."""
    colors: tuple[str, ...]
    """Of every tile, one of COLORS."""
    shifts: tuple[tuple[Point, ...], ...] = ()
    """Of every tile: down, right by which red, green and blue are taken off its place, px."""
    intensity: tuple[tuple[int, ...], ...] = ()
    """Of every tile: gray levels added to red, green and blue."""
    sides: tuple[int, ...] = ()
    """Of every tile: side in px to which it is reduced before it is enlarged again."""
    noise: tuple[Point, ...] = ()
    """Of every tile: top, left in the field of noise."""
    mirrored: bool | None = None


@dataclass(frozen=True, slots=True)
class JigsawDraws(TaskDraws):
    """Puzzles."""

    permutations: tuple[int, ...] = ()
    """Rows of the permutation set, the labels."""
    foreign: tuple[tuple[Foreign, ...], ...] = ()
    """Of every puzzle."""


@dataclass(frozen=True, slots=True)
class ContextDraws(TaskDraws):
    """Pairs of patches."""

    pairs: tuple[Pair, ...] = ()
    labels: tuple[int, ...] = ()
    """Rows of `neighbours`, which name the pairs."""


@dataclass(frozen=True, slots=True)
class RotationDraws(TaskDraws):
    """Turns of one square."""

    turns: tuple[int, ...] = ()
    """Degrees, counterclockwise, in the order of the classes asked."""


@dataclass(frozen=True, slots=True)
class SupervisedDraws(TaskDraws):
    """A square and its class."""

    taught: int = -1
    """Number of the class; -1 where the image has none or is held out."""


AnyDraws = JigsawDraws | ContextDraws | RotationDraws | SupervisedDraws


def cells_of(task: Task) -> NDArray[np.int64]:
    """Return top, left of the cells that tiles are placed in, int64 (T, 2), px of the crop."""
    match task:
        case JigsawConfig():
            return grid_cells(task.grid, task.cell_px)
        case ContextConfig():
            return grid_cells(task.grid, task.patch_px + task.gap_px)
        case RotationConfig() | SupervisedConfig():
            return np.zeros((1, 2), np.int64)
        case _:
            assert_never(task)


def drawn_by(
    pretext: PretextConfig, planned: PlannedBatch, positions: Sequence[int]
) -> list[tuple[AnyDraws, ...]]:
    """Say what every task drew for every image of a batch.

    Args:
        pretext: Whose tasks they are.
        planned: The batch.
        positions: (B,), of its images in the global batch.
    """
    labels = split_labels(pretext, torch.from_numpy(planned.labels))
    tasks = zip(tasks_of(pretext), planned.tasks, labels, strict=True)
    found = []
    for task, plan, asked in tasks:
        rows = range(len(positions))
        found.append([_row(task, plan, asked.numpy(), row, positions) for row in rows])
    return list(zip(*found, strict=True))


def listed(drawn: Mapping[str, AnyDraws]) -> dict[str, Any]:
    """Return draws as JSON holds them: those of a single task, or of several by their names."""
    short = {name: _short(asdict(draws)) for name, draws in drawn.items()}
    return next(iter(short.values())) if len(short) == 1 else short


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None and value != ()}


def _row(
    task: Task, plan: TilePlan, labels: NDArray[np.int64], row: int, positions: Sequence[int]
) -> AnyDraws:
    common = _common(task, plan, row)
    asked = labels[row].tolist()
    match task:
        case JigsawConfig():
            return JigsawDraws(
                **common,
                permutations=tuple(asked[: task.puzzles_per_image]),
                foreign=_foreign(task, asked, row, positions),
            )
        case ContextConfig():
            named = neighbours(task.grid)[asked].tolist()
            pairs = tuple(Pair(first, second, DIRECTIONS[way]) for first, second, way in named)
            return ContextDraws(**common, pairs=pairs, labels=tuple(asked))
        case RotationConfig():
            return RotationDraws(**common, turns=tuple(QUARTER_TURNS[turn] for turn in asked))
        case SupervisedConfig():
            return SupervisedDraws(**common, taught=asked[0])
        case _:
            assert_never(task)


def _common(task: Task, plan: TilePlan, row: int) -> dict[str, Any]:
    top, left, side, _ = plan.crops[row].tolist()
    tiles = plan.anchors[row] - cells_of(task)
    colors = plan.colors[row]
    noisy = any(COLORS[color] in ("red", "green", "blue") for color in colors)
    return {
        "crop": (top, left, side),
        "tiles": _tuples(tiles.tolist()),
        "gray": bool((colors == GRAY).all()),
        "colors": tuple(COLORS[color] for color in colors),
        "shifts": _tuples(plan.shifts[row].tolist()) if task.tiles.reach else (),
        "intensity": _tuples(plan.offsets[row].tolist()) if plan.offsets.any() else (),
        "sides": tuple(plan.sides[row].tolist()) if task.tiles.resampled else (),
        "noise": _tuples(plan.noise[row].tolist()) if noisy else (),
        "mirrored": bool(plan.mirrored[row]) if task.tiles.mirrored else None,
    }


def _foreign(
    task: JigsawConfig, asked: list[int], row: int, positions: Sequence[int]
) -> tuple[tuple[Foreign, ...], ...]:
    if not task.max_foreign_tiles:
        return ()
    shape = (2, task.puzzles_per_image, task.max_foreign_tiles)
    places, donors = np.array(asked[task.puzzles_per_image :]).reshape(shape).tolist()
    found = []
    for puzzle_places, puzzle_donors in zip(places, donors, strict=True):
        pairs = zip(puzzle_places, puzzle_donors, strict=True)
        named = [(place, *divmod(donor, task.num_tiles)) for place, donor in pairs if place >= 0]
        found.append(tuple(Foreign(place, positions[row + on], tile) for place, on, tile in named))
    return tuple(found)


def _tuples(rows: Any) -> Any:
    return tuple(_tuples(row) for row in rows) if isinstance(rows, list) else rows


def only_rows(plan: TilePlan, rows: slice) -> TilePlan:
    """Keep a plan's rows of some images."""
    names = TilePlan.__dataclass_fields__
    return replace(plan, **{name: getattr(plan, name)[rows] for name in names})
