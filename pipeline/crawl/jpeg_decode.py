"""The gate's fast lane: a JPEG decoded once, strictly, by the library that trains.

simplejpeg is libjpeg-turbo, as is the CPU backend of nvImageCodec, with the same pixels bit by bit.
nvImageCodec delivers damaged pictures and says so on stderr only, Pillow delivers them in silence;
simplejpeg turns each warning into an error, is a fifth faster than either (0.90 ms against 1.09 and
1.12 for 500 x 375 px), and decodes at a fraction of the size. It is given what a shard would store,
stripped of metadata and junk, so that the trainer has nothing else to read.

Of a JPEG that is stored as it is, luma is decoded alone, at an eighth of the size: all coded data
of all components is read and checked as ever, and the third of the time that goes into colours and
pixels is saved.
"""

import io
from functools import partial

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.crawl.config import ShardConfig
from pipeline.crawl.decoded import Decoded
from pipeline.crawl.exif import exif_orientation, upright
from pipeline.crawl.jpeg_header import JpegHeader, read_jpeg_header
from pipeline.crawl.reduce import stored_size
from pipeline.crawl.refusal import RefusedError
from pipeline.dali.header import decoded_size

_EIGHTHS = (1, 2, 3, 4)
"""Scales that are decoded faster than full size; 5/8 to 7/8 take longer."""
_MODES = {1: "GRAY", 3: "RGB", 4: "CMYK"}
_SAFE_BLOCKS = 2**16
"""Blocks of 8 x 8 px in a component whose means, told by differences below 2**15, cannot overflow;
of components that are not asked for the decoder does not notice it."""
_SCALES = (8, 4, 2)
"""Sides of the blocks whose means are decoded, px."""
_LEAST_BLOCKS = 24
"""Along the short side, for `near_hash`: half as much again as the 16 frequencies that it keeps."""


def decode_jpeg(data: bytes, config: ShardConfig) -> Decoded:
    """Decode a JPEG that starts at the first byte, as small as what is stored allows.

    Raises:
        RefusedError: It does not decode strictly, or is of a kind or size that is not taken.
    """
    header = read_jpeg_header(data, config)
    turn = 1 if header.exif is None else exif_orientation(header.exif)
    notes = _notes(header, turn)
    size = header.width, header.height
    try:
        if turn in (None, 1) and _stays(header, config):
            return _as_it_is(header, notes)
        pixels = _decode_strictly(header, stored_size(*size, config.max_side))
    except RefusedError as error:
        if not (config.accept_partial and error.reason == "truncated"):
            raise
        pixels = _decode_what_is_there(header, config)
        notes = [*(note for note in notes if note != "missing_end"), "partial"]
    if turn is not None and turn != 1:
        pixels = upright(pixels, turn)
        size = size[::-1] if turn >= 5 else size
    return Decoded(pixels, *size, notes)


def _notes(header: JpegHeader, turn: int | None) -> list[str]:
    found = (
        ("metadata_dropped", header.dropped),
        ("metadata_broken", header.junk or turn is None),
        ("trailing_bytes", header.trailing),
        ("missing_end", not header.ended),
        ("first_frame", header.multiple),
        ("cmyk", len(header.components) == 4),
        ("oriented", turn not in (None, 1)),
    )
    return [note for note, is_true in found if is_true]


def _stays(header: JpegHeader, config: ShardConfig) -> bool:
    """Tell whether an upright JPEG is stored as it is, if it decodes."""
    size = header.width, header.height
    if stored_size(*size, config.max_side) != size:
        return False
    try:
        # GPU decoders take three channels for YCbCr, whatever the file says.
        colours = simplejpeg.decode_jpeg_header(header.plain)[2]
    except ValueError:  # Among others: its sampling is not known.
        return False
    declared = decoded_size(np.frombuffer(header.plain, np.uint8))
    return colours in ("Gray", "YCbCr") and declared == (header.height, header.width)


def _as_it_is(header: JpegHeader, notes: list[str]) -> Decoded:
    """Decode what is stored as it is; with its colours only where they could hide damage."""
    width, height = size = header.width, header.height
    blocks = (width // 8 + 4) * (height // 8 + 4)  # Up to 32 px are filled up.
    if len(header.components) == 1 or blocks > _SAFE_BLOCKS:
        return Decoded(_decode_strictly(header, size), *size, notes, header.plain)
    scale = next((scale for scale in _SCALES if min(size) >= _LEAST_BLOCKS * scale), 1)
    luma = _decode_strictly(header, (-(-width // scale), -(-height // scale)), "GRAY")
    in_colour = partial(_decode_strictly, header, size)
    return Decoded(luma, *size, notes, header.plain, in_colour, scale)


def _decode_strictly(
    header: JpegHeader, size: tuple[int, int], mode: str | None = None
) -> NDArray[np.uint8]:
    """Decode to at least `size` (width, height), in colour unless `mode` is GRAY."""
    if not (header.ended or header.is_complete()):
        raise RefusedError("truncated")
    try:
        return _pixels(header, size, mode, strict=True)
    except ValueError as error:
        if "subsampling" in str(error) and header.ended:
            return _decode_odd_sampling(header)
        raise RefusedError("undecodable" if header.ended else "truncated") from None
    except MemoryError:
        raise RefusedError("undecodable") from None


def _decode_what_is_there(header: JpegHeader, config: ShardConfig) -> NDArray[np.uint8]:
    size = stored_size(header.width, header.height, config.max_side)
    try:
        return _pixels(header, size, strict=False)
    except (ValueError, MemoryError):
        raise RefusedError("truncated") from None


def _pixels(
    header: JpegHeader, size: tuple[int, int], mode: str | None = None, *, strict: bool
) -> NDArray[np.uint8]:
    mode = mode or _MODES[len(header.components)]
    scaled = 0, 0
    if size != (header.width, header.height):
        sides = ((-(-header.width * n // 8), -(-header.height * n // 8)) for n in _EIGHTHS)
        scaled = next((side for side in sides if side[0] >= size[0] and side[1] >= size[1]), (0, 0))
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        header.plain, mode, min_width=scaled[0], min_height=scaled[1], strict=strict
    )
    if mode == "CMYK":  # Stored inverted, as Adobe began to.
        size = pixels.shape[1], pixels.shape[0]
        return np.asarray(Image.frombytes("CMYK", size, (255 - pixels).tobytes()).convert("RGB"))
    return pixels


def _decode_odd_sampling(header: JpegHeader) -> NDArray[np.uint8]:
    """Decode chroma of a resolution that simplejpeg does not know; rare, and not strictly."""
    try:
        with Image.open(io.BytesIO(header.plain), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, MemoryError):
        raise RefusedError("undecodable") from None
