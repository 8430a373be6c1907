"""An image on its way through the gate, decoded."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Decode = Callable[[tuple[int, int]], NDArray[np.uint8]]


@dataclass(slots=True)
class Decoded:
    """The pixels of an accepted decode; of a JPEG that stays as it is, its luma."""

    pixels: NDArray[np.uint8]
    """(H, W, C), upright; C is 1 or 3. At least as large as what is stored, often reduced."""
    width: int
    """px, upright, before any reduction."""
    height: int
    """px, upright, before any reduction."""
    notes: list[str] = field(default_factory=list)
    """As in `Judged`."""
    verbatim: bytes = b""
    """A JPEG that a shard stores as it is; empty where `pixels` are encoded again."""
    decode_colours: Decode | None = None
    """Where `pixels` are the luma of a picture in colour: takes (width, height), gives the image,
    (H, W, 3), no smaller. It raises RefusedError."""

    def in_colour(self, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Return the image, (H, W, C), where `size` is given of at least that (width, height).

        Raises:
            RefusedError: It is decoded again for its colours, and does not decode.
        """
        if self.decode_colours is None:
            return self.pixels
        return self.decode_colours(size or (self.width, self.height))
