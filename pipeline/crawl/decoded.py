"""An image on its way through the gate, decoded."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Decoded:
    """The pixels of an accepted decode; of a JPEG that stays as it is, its luma, often small."""

    pixels: NDArray[np.uint8]
    """(H, W, C), upright; C is 1 or 3. At least as large as what is encoded, often reduced."""
    width: int
    """px, upright, before any reduction."""
    height: int
    """px, upright, before any reduction."""
    notes: list[str] = field(default_factory=list)
    """As in `Judged`."""
    verbatim: bytes = b""
    """A JPEG that a shard stores as it is; empty where `pixels` are encoded again."""
    decode_colours: Callable[[], NDArray[np.uint8]] | None = None
    """Where `pixels` are the luma of a picture in colour: gives the image, (H, W, 3), or raises
    RefusedError."""
    scale: int = 1
    """px of the image along a side of a pixel of `pixels`, where those are means of blocks of luma;
    the last blocks may reach beyond the image."""

    def in_colour(self) -> NDArray[np.uint8]:
        """Return the image, (H, W, C).

        Raises:
            RefusedError: It is decoded again for its colours, and does not decode.
        """
        if self.decode_colours is None:
            return self.pixels
        return self.decode_colours()
