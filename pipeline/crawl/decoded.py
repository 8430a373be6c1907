"""An image on its way through the gate, decoded."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Decoded:
    """The pixels of an accepted decode."""

    pixels: NDArray[np.uint8]
    """(H, W, C), upright; C is 1 or 3. At least as large as what is stored, often reduced."""
    width: int
    """px, upright, before any reduction."""
    height: int
    """px, upright, before any reduction."""
    notes: list[str] = field(default_factory=list)
    """As in `Judged`."""
    verbatim: bytes = b""
    """A JPEG that a shard may store as it is, unless it is too large."""
