"""Put the metadata of a WebP where the codec library that DALI decodes with finds it."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_HAS_EXIF = 0x08
_FLAGS = 20
"""Offset of the flags in the chunk VP8X, which is the first."""


def decodable(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an encoded image as DALI can read it; all but some WebPs stay as they are.

    DALI 2.4 looks for the EXIF chunk of a WebP without counting the byte that pads a chunk of odd
    length, and refuses the image where it does not find one that is announced. The chunk is moved
    to the front, or the announcement withdrawn; neither changes pixels or orientation.

    Args:
        image: uint8 (N,), encoded, of any format.

    Returns:
        uint8 (M,).
    """
    start = image[: _FLAGS + 1].tobytes()
    if start[:4] != b"RIFF" or start[8:16] != b"WEBPVP8X" or not start[_FLAGS:]:
        return image
    return _with_exif_first(image) if start[_FLAGS] & _HAS_EXIF else image


def _with_exif_first(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    data = image.tobytes()
    chunks = list(_chunks(data))
    names = [name for name, _ in chunks]
    if b"EXIF" not in names:
        plain = image.copy()
        plain[_FLAGS] &= 0xFF - _HAS_EXIF
        return plain
    place = names.index(b"EXIF")
    if all(len(chunk) % 2 == 0 for _, chunk in chunks[:place]):
        return image
    order = [chunks[0], chunks[place], *chunks[1:place], *chunks[place + 1 :]]
    body = b"".join(chunk + bytes(len(chunk) % 2) for _, chunk in order)
    size = (len(b"WEBP") + len(body)).to_bytes(4, "little")
    return np.frombuffer(b"RIFF" + size + b"WEBP" + body, np.uint8)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the bytes of each complete chunk, its header included, without padding."""
    position, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while position + 8 <= end:
        length = 8 + int.from_bytes(data[position + 4 : position + 8], "little")
        if position + length > end:
            return
        yield data[position : position + 4], data[position : position + length]
        position += length + length % 2
