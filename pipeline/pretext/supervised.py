"""Supervised: name the class of the image; the baseline for the other pretexts."""

# Shapes: B batch, N images.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from pipeline.pretext.describe import Layout, PositionOf, TaskDraws, Words
from pipeline.pretext.draws import Draws
from pipeline.pretext.plan import SquareConfig, TilePlan, square_view

NO_CLASS = -1
"""Label of an image that teaches nothing: it has no class, or is held out."""


@dataclass(frozen=True, slots=True)
class SupervisedDraws(TaskDraws):
    """A square and its class."""

    taught: int = NO_CLASS
    """Class number; -1 where the image has none or is held out."""

    @property
    def asked(self) -> str:
        taught = self.taught if self.taught >= 0 else "none, it has none or is held out"
        return f"class asked:  {taught}"


class SupervisedConfig(SquareConfig):
    """A random square of the image, half of them mirrored, and its class.

    Images without a class, and those held out, are seen by BatchNorm and count 0 in the loss: a
    step holds the same images whatever is known of them.
    """

    name: Literal["supervised"]
    holdout: float = Field(0.3, ge=0, lt=1)
    """Share of the images whose class is not taught: those that a transfer with the same
    test_share tests on, because one hash of the key decides both."""
    classes: int | None = Field(None, ge=2)
    """Number of classes; that of the manifest where omitted."""

    num_views: ClassVar[int] = 1
    """Views that the network sees of one image."""
    num_answers: ClassVar[int] = 1
    """Answers asked of one image, L."""
    words: ClassVar[Words] = Words(
        stored="its square (orange)",
        seen="the square as the network saw it",
        caption="seen: the square",
    )

    @property
    def num_classes(self) -> int:
        """Width of the head's output.

        Raises:
            ValueError: `classes` is unset, and nobody has looked into the manifest.
        """
        if self.classes is None:
            raise ValueError("the number of classes is that of the manifest: fill in `classes`.")
        return self.classes

    @property
    def chance(self) -> float:
        """Accuracy of a blind guess."""
        return 1 / self.num_classes

    def describe(
        self, common: dict[str, Any], labels: Sequence[int], position_of: PositionOf
    ) -> SupervisedDraws:
        """Say what was drawn for one image; see `JigsawConfig.describe`."""
        return SupervisedDraws(**common, taught=labels[0])

    def layouts(self, draws: TaskDraws) -> tuple[Layout, ...]:
        """Say in which orders pictures show the view of an image."""
        return (Layout("square", "The square, whose class is asked"),)


def plan_supervised(
    config: SupervisedConfig, heights: NDArray[np.int32], widths: NDArray[np.int32], draws: Draws
) -> TilePlan:
    """Draw squares for a batch of images of the given sizes; labels (B, 1) are all NO_CLASS."""
    labels = np.full((len(heights), 1), NO_CLASS, np.int64)
    return square_view(config, heights, widths, draws, labels)


def taught_classes(
    config: SupervisedConfig, keys: Sequence[str], labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the class that each image teaches, (B, 1): NO_CLASS where it has none or is held out.

    Args:
        config: Gives the share that is held out.
        keys: Keys of the images.
        labels: Class numbers (B,), negative where there is none.
    """
    taught = (labels >= 0) & ~held_out(keys, config.holdout)
    return np.where(taught, labels, NO_CLASS)[:, None]


def held_out(keys: Sequence[str], share: float) -> NDArray[np.bool_]:
    """Say which images are held out: about `share` of them, by the hash of their key alone, (N,).

    A transfer's split takes the same hash, so that it tests on these.
    """
    return hash_keys(keys) < np.uint64(share * 2**64)


def hash_keys(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Return the hash that decides where an image goes, uint64 (N,)."""
    return np.array([xxhash.xxh3_64_intdigest(f"split:{k}".encode()) for k in keys], np.uint64)
