"""The one thing in EXIF that changes pixels."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

_ORIENTATION = 0x0112
_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_SHORT, _LONG = 3, 4


def exif_orientation(tiff: bytes) -> int | None:
    """Read the orientation, 1 to 8; 1 where there is none, None where the block is broken.

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
    """Turn an image (H, W, C) as its orientation says, 1 to 8; C is 1 or 3."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    whole = pixels.view(f"V{pixels.shape[2]}")  # Copied pixel by pixel, not byte by byte.
    return np.ascontiguousarray(whole).view(np.uint8)
