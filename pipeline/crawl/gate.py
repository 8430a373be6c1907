"""One verdict for each file: limits, header, strict decode by Pillow and by the training decoder.

Runs in worker processes: a decoder that crashes must not take the run down.
"""

import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash
from PIL import Image

from pipeline.crawl.config import ShardConfig
from pipeline.crawl.encode import DepthError, open_image, orientation, upright_rgb
from pipeline.dali.decode import decode_rgb

Reason = Literal[
    "unreadable",  # the file system gave an error
    "too_big",  # more than max_bytes
    "empty",
    "not_image",  # no format of the allow-list
    "too_many_pixels",  # more than max_pixels, by the header
    "truncated",
    "undecodable",
    "unsupported_depth",  # 32-bit integers or floats
    "decoder_refuses",  # Pillow reads it, the decoder that trains does not
    "decoder_crash",  # a decoder ended its process
    "min_side",
    "max_aspect",
    "low_information",  # one colour
]

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
_MAX_SPREAD = 2  # of 255, in every channel of an image that counts as one colour
_MAX_DISAGREEMENT = 2.0  # of 255, mean over pixels; the two decoders are bit-identical as a rule
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one input, and why."""

    outcome: Literal["accepted", "quarantined", "filtered"]
    reason: Reason | None = None
    """None where accepted."""
    content_hash: str = ""
    """xxh3 (128 bit) of the file's bytes, hex; empty where it was not read."""
    image_format: str = ""
    """Pillow's name of the format, empty where unknown."""
    width: int = 0
    """px, upright; 0 where it was not decoded."""
    height: int = 0
    """px, upright; 0 where it was not decoded."""
    as_is: bool = False
    """Whether a shard stores the file's own bytes."""


class _QuarantineError(Exception):
    def __init__(self, reason: Reason) -> None:
        self.reason = reason


def examine(file: str, config: ShardConfig) -> Verdict:
    """Judge the file at path `file`; never raises for what the file holds."""
    content_hash = image_format = ""
    try:
        data = _read(file, config.max_bytes)
        content_hash = hash_content(data)
        image_format = sniff(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Damaged metadata is dropped, not reported.
            return _judge(data, content_hash, image_format, config)
    except _QuarantineError as error:
        return Verdict("quarantined", error.reason, content_hash, image_format)


def hash_content(data: bytes) -> str:
    """Name the content of a file: xxh3 (128 bit), hex."""
    return xxhash.xxh3_128_hexdigest(data)


def sniff(data: bytes) -> str:
    """Tell the format by the first bytes; file names lie."""
    for magic, image_format in _MAGIC:
        if data.startswith(magic):
            return image_format
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise _QuarantineError("not_image")


def _read(file: str, max_bytes: int) -> bytes:
    path = Path(file)
    try:
        if path.stat().st_size > max_bytes:
            raise _QuarantineError("too_big")
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError:
        raise _QuarantineError("unreadable") from None
    if len(data) > max_bytes:
        raise _QuarantineError("too_big")
    if not data:
        raise _QuarantineError("empty")
    return data


def _judge(data: bytes, content_hash: str, image_format: str, config: ShardConfig) -> Verdict:
    image, rgb = _decode(data, image_format, config.max_pixels)
    width, height = rgb.size
    reason = _filter_reason(rgb, config)
    if reason is not None:
        return Verdict("filtered", reason, content_hash, image_format, width, height)
    as_is = _is_stored_as_is(image, rgb, data, config.max_side)
    return Verdict("accepted", None, content_hash, image_format, width, height, as_is)


def _decode(data: bytes, image_format: str, max_pixels: int) -> tuple[Image.Image, Image.Image]:
    """Decode strictly: the image as Pillow holds it, and upright in RGB."""
    try:
        image = open_image(data, image_format)
        if image.width * image.height > max_pixels:
            raise _QuarantineError("too_many_pixels")
        image.load()
        return image, upright_rgb(image)
    except Image.DecompressionBombError:
        raise _QuarantineError("too_many_pixels") from None
    except DepthError:
        raise _QuarantineError("unsupported_depth") from None
    except _DECODER_ERRORS as error:
        cut = "truncated" in str(error).lower() or _is_cut(data, image_format)
        raise _QuarantineError("truncated" if cut else "undecodable") from None


def _is_cut(data: bytes, image_format: str) -> bool:
    """Whether the mark that ends the format is missing."""
    match image_format:
        case "JPEG":
            return b"\xff\xd9" not in data
        case "PNG":
            return b"IEND" not in data
        case "WEBP":
            return 8 + int.from_bytes(data[4:8], "little") > len(data)
    return False


def _filter_reason(rgb: Image.Image, config: ShardConfig) -> Reason | None:
    short, long = sorted(rgb.size)
    if short < config.min_side:
        return "min_side"
    if long > config.max_aspect * short:
        return "max_aspect"
    extrema = np.array(rgb.getextrema())  # (3, 2), least and greatest of each channel
    if (extrema[:, 1] - extrema[:, 0]).max() <= _MAX_SPREAD:
        return "low_information"
    return None


def _is_stored_as_is(image: Image.Image, rgb: Image.Image, data: bytes, max_side: int) -> bool:
    """Whether a shard may store the file's own bytes.

    Only upright JPEGs of bounded size, and only where the training decoder sees what Pillow sees;
    a JPEG whose EXIF the two read differently is encoded again instead.
    """
    plain = image.format == "JPEG" and image.mode in ("RGB", "L") and orientation(image) == 1
    if not plain or min(rgb.size) > max_side:
        return False
    trained = decode_rgb(data)
    if trained is None:
        raise _QuarantineError("decoder_refuses")
    pixels = np.asarray(rgb)
    if trained.shape != pixels.shape:
        return False
    sparse = np.s_[::8, ::8]
    difference = np.abs(trained[sparse].astype(np.int16) - pixels[sparse])
    return bool(difference.mean() <= _MAX_DISAGREEMENT)
