"""What a task drew for one image, in words and for pictures; each pretext adds what it asks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.pretext.plan import COLORS, GRAY, TilePlan, Tiles

Point = tuple[int, int]
PositionOf = Callable[[int], int]
"""Gives the position in the global batch of the image that stands so many rows on."""


@dataclass(frozen=True, slots=True)
class Words:
    """How pictures of a pretext are captioned."""

    stored: str
    """What is marked on the stored image, in the legend of a contact sheet."""
    seen: str
    """The views beside it, in that legend."""
    caption: str
    """The views, on the page of a sample."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Views of one image in the order in which a picture shows them."""

    kind: str
    """Part of the picture's file name."""
    what: str
    order: tuple[int, ...] | None = None
    """Which views, in which order; None shows all in reading order."""
    columns: int | None = None
    """Views in a row; None takes the task's own."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two patches of a block, and where the second lies relative to the first."""

    first: int
    """Patches count from 0, in reading order."""
    second: int
    direction: str


@dataclass(frozen=True, slots=True)
class TaskDraws:
    """What one task drew for one image; what its config leaves no choice about is empty."""

    crop: tuple[int, int, int]
    """Top, left, side of the square, px of the stored image."""
    tiles: tuple[Point, ...]
    """Top, left of every tile inside its cell, px of the resized crop; in reading order."""
    gray: bool
    """Whether all tiles are gray."""
    colors: tuple[str, ...]
    """Color mode of every tile, one of COLORS."""
    shifts: tuple[tuple[Point, ...], ...] = ()
    """Down, right shift of red, green and blue of every tile, px."""
    intensity: tuple[tuple[int, ...], ...] = ()
    """Gray levels added to red, green and blue of every tile."""
    sides: tuple[int, ...] = ()
    """Side in px to which every tile is reduced before it is enlarged again."""
    noise: tuple[Point, ...] = ()
    """Top, left of every tile's cut from the noise field."""
    mirrored: bool | None = None

    @property
    def asked(self) -> str:
        """What is asked of the image, in one line."""
        raise NotImplementedError

    @property
    def pair(self) -> Pair | None:
        """The first pair that is asked, where pairs are."""
        return None

    @property
    def marks(self) -> str:
        """What is marked on the stored image."""
        return "its square, before it is mirrored" if self.mirrored else "its square"

    @property
    def caption(self) -> str:
        """Caption of the stored image."""
        return "stored, with the square"


def common_draws(cells: Any, tiles: Tiles, plan: TilePlan, row: int) -> dict[str, Any]:
    """Return the fields of `TaskDraws` for a row of a plan.

    Args:
        cells: int64 (T, 2), top, left of the cells that tiles are placed in.
        tiles: Geometry of the task.
        plan: What was drawn.
        row: Of the image.
    """
    top, left, side, _ = plan.crops[row].tolist()
    colors = [COLORS[color] for color in plan.colors[row]]
    noisy = not {"red", "green", "blue"}.isdisjoint(colors)
    return {
        "crop": (top, left, side),
        "tiles": _tuples((plan.anchors[row] - cells).tolist()),
        "gray": bool((plan.colors[row] == GRAY).all()),
        "colors": tuple(colors),
        "shifts": _tuples(plan.shifts[row].tolist()) if tiles.reach else (),
        "intensity": _tuples(plan.offsets[row].tolist()) if plan.offsets.any() else (),
        "sides": tuple(plan.sides[row].tolist()) if tiles.resampled else (),
        "noise": _tuples(plan.noise[row].tolist()) if noisy else (),
        "mirrored": bool(plan.mirrored[row]) if tiles.mirrored else None,
    }


def _tuples(rows: Any) -> Any:
    return tuple(_tuples(row) for row in rows) if isinstance(rows, list) else rows
