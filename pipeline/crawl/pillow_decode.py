"""The gate's slow lane: formats and cases that the decoder that trains lacks, by Pillow."""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from pipeline.crawl.config import ShardConfig
from pipeline.crawl.decoded import Decoded
from pipeline.crawl.exif import exif_orientation
from pipeline.crawl.headers import Header, read_gif_header, read_png_header, read_webp_header
from pipeline.crawl.reduce import stored_size
from pipeline.crawl.refusal import RefusedError

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
_WALKERS = {"PNG": read_png_header, "WEBP": read_webp_header, "GIF": read_gif_header}
_DECODER_ERRORS = (  # What Pillow's plugins raise on hostile bytes.
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    RuntimeError,  # and NotImplementedError
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)


def decode_by_pillow(data: bytes, image_format: str, config: ShardConfig) -> Decoded:
    """Decode the first frame of an image that is no JPEG.

    Raises:
        RefusedError: It does not decode, or is of a kind or size that is not taken.
    """
    header = Header(data=data, ended=True)
    if image_format in _WALKERS:
        header = _WALKERS[image_format](data, config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Damaged metadata is dropped, not reported.
            with _open(header, image_format, config) as image:
                notes = _notes(header, image)
                image.load()
                return _upright(image, header, notes, config)
    except Image.DecompressionBombError:
        raise RefusedError("too_many_pixels") from None
    except _DECODER_ERRORS as error:
        cut = "truncated" in str(error).lower() or not header.ended
        raise RefusedError("truncated" if cut else "undecodable") from None


def _open(header: Header, image_format: str, config: ShardConfig) -> ImageFile.ImageFile:
    """Read the header, and only as `image_format`."""
    name = image_format
    if image_format == "HEIC":
        name = _register_heif()
    elif image_format == "AVIF" and "AVIF" not in _known_formats():
        raise RefusedError("unsupported_codec")
    image = Image.open(io.BytesIO(header.data), formats=[name])
    header.set_size(image.width, image.height, config)
    if image_format not in _WALKERS:
        texts = [value for value in image.info.values() if isinstance(value, bytes | str)]
        header.add_metadata(sum(len(text) for text in texts), config)
    if not isinstance(image, ImageFile.ImageFile):
        raise TypeError(f"{name} gives no file")
    return image


def _known_formats() -> set[str]:
    Image.init()
    return set(Image.OPEN)


def _register_heif() -> str:
    try:
        import pillow_heif  # Optional: its codec is under another licence.
    except ImportError:
        raise RefusedError("unsupported_codec") from None
    pillow_heif.register_heif_opener()
    return "HEIF"


def _notes(header: Header, image: ImageFile.ImageFile) -> list[str]:
    """What the header tells; read before `load`, which drops what it applies.

    Raises:
        RefusedError: Samples are 32-bit integers or floats, whose range is unknown.
    """
    if image.mode in ("I", "F"):
        raise RefusedError("unsupported_depth")
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Its count of frames walks them all.
        more, turned = image.tag_v2.next != 0, image.getexif().get(_ORIENTATION_TAG) in _TRANSPOSE
    else:
        more, turned = getattr(image, "is_animated", False), False
    deep = any(";16" in str(tile[-1]) for tile in image.tile) or image.info.get("bit_depth", 8) > 8
    found = {
        "first_frame": header.frames > 1 or (image.format not in _WALKERS and more),
        "high_depth": deep,
        "cmyk": image.mode == "CMYK",
        "oriented": turned,
        "metadata_broken": header.broken,
        "trailing_bytes": header.trailing,
        "missing_end": image.format == "PNG" and not header.ended,
    }
    return [note for note, is_true in found.items() if is_true]


def _upright(
    image: ImageFile.ImageFile, header: Header, notes: list[str], config: ShardConfig
) -> Decoded:
    """Make a loaded image upright RGB or gray: alpha on the background, 16 bits to their high 8."""
    plain = _in_eight_bits(image)
    turn = _orientation(image, header)
    if turn is None:
        notes.append("metadata_broken")
    elif turn in _TRANSPOSE:
        notes.append("oriented")
        plain = plain.transpose(_TRANSPOSE[turn])
    width, height = plain.size
    target = stored_size(width, height, config.max_side)
    if width >= 2 * target[0]:  # The mean of squares; what is left is less than half too large.
        plain = plain.reduce(min(width // target[0], height // target[1]))
    if plain.mode in ("LA", "RGBA"):
        rgba = plain.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            notes.append("alpha")
        ground = Image.new("RGBA", rgba.size, (*config.background, 255))
        plain = Image.alpha_composite(ground, rgba).convert("RGB")
    pixels = np.asarray(plain)
    return Decoded(pixels.reshape(*pixels.shape[:2], -1), width, height, list(dict.fromkeys(notes)))


def _in_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        high = np.asarray(image).astype(np.uint16) >> 8
        return Image.fromarray(high.astype(np.uint8))
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        plain: Image.Image = image
        return plain.convert("RGBA") if "transparency" in image.info else plain
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")


def _orientation(image: Image.Image, header: Header) -> int | None:
    """Read the orientation that is still to be applied, None where EXIF is broken."""
    if image.format in _WALKERS:
        return 1 if header.exif is None else exif_orientation(header.exif)
    try:  # Of a loaded image: Pillow turns TIFFs by itself and then drops their tag.
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, RuntimeError, struct.error):
        return None
    return value if value == 1 or value in _TRANSPOSE else None
