"""A decoded image on its way through the gate, its orientation, and its refusal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.ingest.item import Reason

_ORIENTATION = 0x0112
_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_SHORT, _LONG = 3, 4


def exif_orientation(tiff: bytes) -> int | None:
    """Read the orientation, 1 to 8, of an EXIF block; 1 if there is none, None if it is broken.

    >>> exif_orientation(bytes.fromhex("4d4d002a00000008 0001 0112000300000001 00060000"))
    6
    """
    order = _ORDERS.get(tiff[:4])
    if order is None:
        return None

    def number(start: int, size: int) -> int:
        return int.from_bytes(tiff[start : start + size], order)

    first = number(4, 4) + 2
    count = number(first - 2, 2)
    for entry in range(first, min(first + 12 * count, len(tiff) - 11), 12):
        if number(entry, 2) == _ORIENTATION:
            kind = number(entry + 2, 2)
            value = number(entry + 8, 4 if kind == _LONG else 2)
            return value if kind in (_SHORT, _LONG) and 1 <= value <= 8 else None
    return 1 if first + 12 * count <= len(tiff) else None


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Make an image (H, W, C), C 1 or 3, upright by its EXIF orientation, 1 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    whole = pixels.view(f"V{pixels.shape[2]}")  # Copied pixel by pixel, not byte by byte.
    return np.ascontiguousarray(whole).view(np.uint8)


class RefusedError(Exception):
    """An image is quarantined for `reason`."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(slots=True)
class Decoded:
    """A decoded image; for a JPEG that is stored unchanged, only its luma, usually reduced."""

    pixels: NDArray[np.uint8]
    """(H, W, C), upright; C is 1 or 3. Often reduced, but no smaller than what is encoded."""
    width: int
    """px, upright, before any reduction."""
    height: int
    """px, upright, before any reduction."""
    notes: list[str] = field(default_factory=list)
    """As in `Verdict`."""
    verbatim: bytes = b""
    """A JPEG that is stored unchanged; empty where `pixels` are encoded again."""
    decode_colours: Callable[[], NDArray[np.uint8]] | None = None
    """Where `pixels` are the luma of a colour image: decodes the image, (H, W, 3), or raises
    RefusedError."""
    scale: int = 1
    """Where `pixels` are means of blocks of luma: px per side of a block; the last blocks may reach
    beyond the image."""

    def in_colour(self) -> NDArray[np.uint8]:
        """Return the image, (H, W, C).

        Raises:
            RefusedError: It has to be decoded again for its colours, and fails to.
        """
        if self.decode_colours is None:
            return self.pixels
        return self.decode_colours()
