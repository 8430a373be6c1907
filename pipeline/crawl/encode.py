"""From any accepted image to what a shard stores: an upright RGB JPEG of bounded size."""

import io

import numpy as np
from PIL import Image, ImageFile

ImageFile.LOAD_TRUNCATED_IMAGES = False  # A cut image must raise, whoever imported Pillow before.

_TRANSPOSE = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_QUALITY = 90


class DepthError(ValueError):
    """An image of 32-bit or float samples, whose range is unknown."""


def open_image(data: bytes, image_format: str) -> Image.Image:
    """Read the header of an image, and only as `image_format` (Pillow's name)."""
    return Image.open(io.BytesIO(data), formats=[image_format])


def orientation(image: Image.Image) -> int | None:
    """Read the EXIF orientation of a loaded image; 1 where there is none, None if it is broken.

    Read after `load`: Pillow turns TIFFs there by itself and drops their tag.
    """
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, RuntimeError):
        return None
    return value if value == 1 or value in _TRANSPOSE else None


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image to RGB: turned upright, alpha on white, 16-bit gray to its high byte.

    Raises:
        DepthError: The samples are 32-bit integers or floats.
    """
    method = _TRANSPOSE.get(orientation(image) or 1)
    rgb = _to_rgb(image)
    return rgb if method is None else rgb.transpose(method)


def stored_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Reduce (width, height) until the short side is at most `max_side`.

    >>> stored_size((2000, 1000), 512), stored_size((300, 200), 512)
    ((1024, 512), (300, 200))
    """
    short = min(size)
    if short <= max_side:
        return size
    width, height = size
    return round(width * max_side / short), round(height * max_side / short)


def encode_jpeg(data: bytes, image_format: str, max_side: int) -> bytes:
    """Decode an accepted image and store it as JPEG: upright, reduced, 4:4:4, no metadata."""
    image = open_image(data, image_format)
    if image.format == "JPEG":  # Decode at 1/2, 1/4 or 1/8 where that still is large enough.
        image.draft(None, stored_size(image.size, max_side))
    image.load()
    rgb = upright_rgb(image)
    size = stored_size(rgb.size, max_side)
    if size != rgb.size:
        rgb = rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    rgb.info.clear()  # Pillow would copy the comment.
    sink = io.BytesIO()
    rgb.save(sink, "JPEG", quality=_QUALITY, subsampling=0)
    return sink.getvalue()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        high = np.asarray(image).astype(np.uint16) >> 8
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DepthError(f"mode {image.mode}")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image
