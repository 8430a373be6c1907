"""Decoded pixels into what a shard stores: sizes, reduction, encoding."""

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.ingest.config import ShardConfig

_THUMBNAIL_SIDE = 96  # px
_THUMBNAIL_QUALITY = 75


def stored_size(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Reduce (width, height) until the short side is at most `max_side`.

    >>> stored_size(2000, 1000, 512), stored_size(300, 200, 512)
    ((1024, 512), (300, 200))
    """
    short = min(width, height)
    if short <= max_side:
        return width, height
    return round(width * max_side / short), round(height * max_side / short)


def resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Reduce an image, uint8 (H, W, C), C 1 or 3, to `size` (width, height)."""
    if size == pixels.shape[1::-1]:
        return pixels
    from pipeline.ingest.gate.kernels import shrink  # Numba takes half a second to load.

    return shrink(pixels, *size)


def encoded(pixels: NDArray[np.uint8], config: ShardConfig) -> bytes:
    """Encode an image, uint8 (H, W, C), C 1 or 3; gray stays gray. Equal pixels, equal bytes."""
    if config.store_as == "jpeg":
        return _jpeg(pixels, config.quality, config.subsampling)
    image = _image(pixels).convert("RGB")
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=config.quality)
    return sink.getvalue()


def thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a JPEG of at most 96 px on the long side."""
    height, width = pixels.shape[:2]
    scale = max(1.0, max(width, height) / _THUMBNAIL_SIDE)
    size = max(1, round(width / scale)), max(1, round(height / scale))
    some = pixels[:: int(scale)]  # Rows are skipped: it need only be recognisable.
    if size == some.shape[1::-1]:
        return _jpeg(some, _THUMBNAIL_QUALITY, "420")
    small = _image(some).resize(size, Image.Resampling.BOX)
    return _jpeg(np.asarray(small).reshape(size[1], size[0], -1), _THUMBNAIL_QUALITY, "420")


def thumbnail_of(image: bytes) -> bytes:
    """Make a thumbnail of an encoded image; a thumbnail stays unchanged."""
    with Image.open(io.BytesIO(image), formats=["JPEG", "WEBP"]) as opened:
        if opened.format == "JPEG" and max(opened.size) <= _THUMBNAIL_SIDE:
            return image
        return thumbnail(np.asarray(opened.convert("RGB")))


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])


def _jpeg(pixels: NDArray[np.uint8], quality: int, subsampling: str) -> bytes:
    gray = pixels.shape[2] == 1
    return bytes(
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels),
            quality,
            colorspace="GRAY" if gray else "RGB",
            colorsubsampling="Gray" if gray else subsampling,
        )
    )
