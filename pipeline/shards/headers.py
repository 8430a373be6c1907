"""Read width and height from an image header, without decoding."""

import struct
from typing import Literal

MAX_PIXELS = 100_000_000
"""Images that declare more are refused: decoding one takes over 300 MB."""

HeaderReason = Literal[
    "empty",
    "header",  # not JPEG, PNG or WebP, or a header that is truncated or unsupported by decoders
    "too_many_pixels",
    "truncated",  # the header is intact, the end marker is missing
]

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_EOI = b"\xff\xd9"
_SOS = 0xDA
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # frame headers; the three are tables
_DECODED = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))
"""Frames that the trainer's decoder reads: Huffman or arithmetic codes, sequential or progressive.
No hierarchical ones; of lossless ones only some, by their colors, so none is accepted."""
_BARE = frozenset(range(0xD0, 0xD8)) | {0x01}  # RSTn and TEM: markers without a length
_NO_MARKER = frozenset({0x00, 0xFF})  # stuffing and fill bytes
_COMPONENTS = (1, 3, 4)  # gray, YCbCr, CMYK
_read_segment = struct.Struct(">BBH").unpack_from  # 0xFF, marker, length including itself
_read_frame = struct.Struct(">BHHB").unpack_from  # precision, height, width, components
_read_ihdr = struct.Struct(">I4sII").unpack_from
_MAX_VP8_SIDE = 0x3FFF  # The two bits above are a scaling hint, not part of the side.


class HeaderError(ValueError):
    """An image whose header shows that it is unusable."""

    def __init__(self, reason: HeaderReason) -> None:
        super().__init__(reason)
        self.reason = reason


def read_size(image: memoryview) -> tuple[int, int]:
    """Read (width, height) in px as stored; takes a few microseconds.

    EXIF orientation is ignored here and by the loader, so a tagged image trains unrotated. Bytes
    after the end of an image are ignored.

    Args:
        image: uint8, the whole file.

    Raises:
        HeaderError: The image is empty, not JPEG, PNG or WebP by its first bytes, declares more
            than `MAX_PIXELS`, or lacks its end marker.
    """
    start = bytes(image[:16])
    try:
        if start.startswith(_JPEG):
            width, height = _read_jpeg(image)
        elif start.startswith(_PNG):
            width, height = _read_png(image)
        elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            width, height = _read_webp(image)
        else:
            raise HeaderError("header" if start else "empty")
    except (struct.error, IndexError):  # Truncated header.
        raise HeaderError("header") from None
    if not (width and height):
        raise HeaderError("header")
    if width * height > MAX_PIXELS:
        raise HeaderError("too_many_pixels")
    return width, height


def _read_jpeg(image: memoryview) -> tuple[int, int]:
    position, size, has_end = 2, None, bytes(image[-2:]) == _EOI
    while not (size and has_end):  # Once both are known, skip the rest.
        mark, marker, length = _read_segment(image, position)
        if mark != 0xFF:  # Junk between segments, which decoders skip too.
            position += 1
        elif marker in _NO_MARKER:
            position += 1 if marker else 2
        elif marker in _BARE:
            position += 2
        elif length < 2 or marker == _EOI[1]:
            raise HeaderError("header")
        elif marker == _SOS:
            return _find_end(image, position, size)
        else:
            if marker in _SOF:
                size = _read_jpeg_frame(image, position, size)
            position += 2 + length
    return size


def _read_jpeg_frame(
    image: memoryview, position: int, earlier: tuple[int, int] | None
) -> tuple[int, int]:
    precision, height, width, components = _read_frame(image, position + 4)
    is_decoded = image[position + 1] in _DECODED and precision == 8 and components in _COMPONENTS
    if earlier or not is_decoded:
        raise HeaderError("header")
    return width, height


def _find_end(image: memoryview, scan: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Find the end marker after the first SOS, where no thumbnail can hold one.

    Cameras pad with zeros, or append a second image or a trailer of their own.
    """
    if size is None:
        raise HeaderError("header")
    if bytes(image[scan:]).find(_EOI) < 0:
        raise HeaderError("truncated")
    return size


def _read_png(image: memoryview) -> tuple[int, int]:
    length, kind, width, height = _read_ihdr(image, len(_PNG))
    if length != 13 or kind != b"IHDR":
        raise HeaderError("header")
    if bytes(image[-8:-4]) != b"IEND" and b"IEND" not in bytes(image):
        raise HeaderError("truncated")
    return width, height


def _read_webp(image: memoryview) -> tuple[int, int]:
    kind, body = bytes(image[12:16]), bytes(image[20:30])
    size = webp_size(kind, body)
    is_marked = {b"VP8L": body[:1] == b"\x2f", b"VP8 ": body[3:6] == b"\x9d\x01\x2a"}
    if size is None or not is_marked.get(kind, True):
        raise HeaderError("header")
    if 8 + int.from_bytes(image[4:8], "little") > len(image):
        raise HeaderError("truncated")
    return size


def webp_size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    """Read (width, height) in px from the start (10 bytes) of a WebP chunk; None for others."""
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & _MAX_VP8_SIDE), 1 + (bits >> 14 & _MAX_VP8_SIDE)
    if kind == b"VP8 ":
        sides = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
        return sides[0] & _MAX_VP8_SIDE, sides[1] & _MAX_VP8_SIDE
    return None
