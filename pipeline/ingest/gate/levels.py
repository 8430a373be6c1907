"""What the numbers of a decoded image mean, by the file's own tags: depth, sign, transparency."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from pipeline.ingest.gate.decoded import RefusedError

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_MIN_IS_WHITE = 0
_UNSIGNED = 1
# Pillow reads these two, but looks for them in one byte order only.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 1, (1,), 1, (12,), ()), ("I;16", "I;12"))
_PNG_DEPTH, _PNG_COLOR = 24, 25  # offsets in a PNG: bits per sample, color type
_GRAY, _RGB = 0, 2  # color types of PNG


def check_depth(image: ImageFile.ImageFile) -> None:
    """Refuse samples whose range is unknown.

    Raises:
        RefusedError: They are 32-bit integers, signed, or floats.
    """
    if image.mode in ("I", "F"):
        raise RefusedError("unsupported_depth")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        formats = image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))
        if any(number != _UNSIGNED for number in formats):
            raise RefusedError("unsupported_depth")


def is_unknown_tiff(data: bytes) -> bool:
    """Tell whether a TIFF that Pillow cannot open is whole, but of a depth or sign it lacks."""
    try:
        TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    except SyntaxError as error:
        return str(error) == "unknown pixel mode"
    return False


def in_eight_bits(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """Convert a loaded image to 8-bit gray or RGB, with alpha where anything is transparent.

    Args:
        image: Loaded, of a depth that `check_depth` lets through.
        data: What it was loaded from.
    """
    if image.format == "PNG" and "transparency" in image.info and data[_PNG_COLOR] in (_GRAY, _RGB):
        return _without_level(image, data)
    if image.mode.startswith("I;16"):
        return Image.fromarray(_high_bytes(image))
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        plain: Image.Image = image
        return plain.convert("RGBA") if "transparency" in image.info else plain
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")


def _high_bytes(image: Image.Image) -> NDArray[np.uint8]:
    """Return the upper eight bits of gray levels of 12 or 16, black as 0."""
    levels, bits, is_negative = np.asarray(image).astype(np.uint16), 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
        # Pillow turns 8 bits and fewer over, but not 16.
        is_negative = image.tag_v2.get(_PHOTOMETRIC) == _MIN_IS_WHITE
    high = (levels >> bits - 8).astype(np.uint8)
    return 255 - high if is_negative else high


def _without_level(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """Make one level of a gray or RGB PNG transparent: the one that its tRNS chunk names.

    Levels are compared at the depth of the file: its neighbours stay.
    """
    depth, highest = data[_PNG_DEPTH], 2 ** data[_PNG_DEPTH] - 1
    level = _named_level(data) & highest  # By the standard, the lower bits count.
    if depth == 16 and image.mode == "RGB":
        pixels = np.asarray(image)
        is_level = (pixels == level >> 8) & (_low_bytes(data) == level & 0xFF)
    elif depth == 16:
        pixels, is_level = _high_bytes(image), np.asarray(image) == level
    else:
        pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("L"))
        is_level = pixels == level * 255 // highest
    hidden = is_level.reshape(*pixels.shape[:2], -1).all(axis=2)
    alpha = np.where(hidden, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([pixels, alpha]))


def _named_level(data: bytes) -> NDArray[np.int64]:
    """Read the tRNS chunk, which Pillow has found, of a gray or RGB PNG: int64 (1,) or (3,)."""
    start = 8
    while data[start + 4 : start + 8] != b"tRNS":
        start += 12 + int.from_bytes(data[start : start + 4], "big")
    size = 3 if data[_PNG_COLOR] == _RGB else 1
    return np.frombuffer(data, ">u2", count=size, offset=start + 8).astype(np.int64)


def _low_bytes(data: bytes) -> NDArray[np.uint8]:
    """Decode the lower byte of each sample of an RGB PNG of 16 bits; Pillow gives the upper one."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        assert isinstance(image, ImageFile.ImageFile)
        # The first byte is the upper one; it is passed over where it is said to be the lower.
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        return np.asarray(image)
