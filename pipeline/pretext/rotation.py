"""Rotation (Gidaris, Singh and Komodakis 2018): which way is up?"""

# Shapes: B batch.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.pretext.describe import Layout, PositionOf, TaskDraws, Words
from pipeline.pretext.draws import Draws
from pipeline.pretext.plan import SquareConfig, TilePlan, square_view

QUARTER_TURNS = (0, 90, 180, 270)
"""Degrees, counterclockwise; the classes, in this order."""


@dataclass(frozen=True, slots=True)
class RotationDraws(TaskDraws):
    """Turns of one square."""

    turns: tuple[int, ...] = ()
    """Degrees, counterclockwise, in the order of the classes asked."""

    @property
    def asked(self) -> str:
        return f"turns asked (degrees counterclockwise):  {'  '.join(map(str, self.turns))}"


class RotationConfig(SquareConfig):
    """The square that is turned, and countermeasures.

    A square is cut before it is turned, and turned by moving pixels: no corner is black, and there
    is no interpolation to tell the turns apart.
    """

    name: Literal["rotation"]

    num_views: ClassVar[int] = len(QUARTER_TURNS)
    """Views that the network sees of one image."""
    num_answers: ClassVar[int] = len(QUARTER_TURNS)
    """Answers asked of one image, L."""
    num_classes: ClassVar[int] = len(QUARTER_TURNS)
    """Width of the head's output."""
    chance: ClassVar[float] = 1 / len(QUARTER_TURNS)
    """Accuracy of a blind guess."""
    words: ClassVar[Words] = Words(
        stored="its square (orange)",
        seen="its four turns as the network saw them, by 0, 90, 180 and 270 degrees "
        "counterclockwise",
        caption="seen: turned by 0, 90, 180 and 270 degrees",
    )

    def describe(
        self, common: dict[str, Any], labels: Sequence[int], position_of: PositionOf
    ) -> RotationDraws:
        """Say what was drawn for one image; see `JigsawConfig.describe`."""
        return RotationDraws(**common, turns=tuple(QUARTER_TURNS[turn] for turn in labels))

    def layouts(self, draws: TaskDraws) -> tuple[Layout, ...]:
        """Say in which orders pictures show the turns of an image."""
        return (Layout("turns", "Turned by 0, 90, 180 and 270 degrees counterclockwise"),)


def plan_rotation(
    config: RotationConfig, heights: NDArray[np.int32], widths: NDArray[np.int32], draws: Draws
) -> TilePlan:
    """Draw squares for a batch of images of the given sizes; labels (B, 4) are all four turns."""
    turns = np.arange(len(QUARTER_TURNS), dtype=np.int64)
    labels = np.repeat(turns[None], len(heights), axis=0)
    return square_view(config, heights, widths, draws, labels)
