"""The gate's fast path: a JPEG decoded once, strictly, by the library used in training.

simplejpeg wraps libjpeg-turbo, as does the CPU backend of nvImageCodec, with bit-identical pixels.
nvImageCodec delivers damaged pictures with a note on stderr, Pillow without any; simplejpeg turns
each warning into an error, is a fifth faster than either (0.90 ms against 1.09 and 1.12 for
500 x 375 px), and decodes at reduced size. Its input is what a shard would store, stripped of
metadata and junk, so that the trainer reads nothing that was not checked.

Of a JPEG that is stored unchanged, only luma is decoded, at an eighth of the size: the coded data
of all components are still read and checked, and the third of the time that colour and pixels take
is saved.
"""

import io
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.dali.decode import decoded_size
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.decoded import Decoded, RefusedError, exif_orientation, upright
from pipeline.ingest.gate.encode import stored_size
from pipeline.ingest.gate.formats import EOI, SOS

_COM = 0xFE
_APP0, _APP1, _APP2, _APP14, _APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
_HUFFMAN = (0xC0, 0xC1, 0xC2)
"""Frames that may be stored unchanged; the last is progressive."""
_LOSSLESS = 0xC3
_ARITHMETIC = (0xC9, 0xCA)
"""The second is progressive."""
_FRAMES = (*_HUFFMAN, _LOSSLESS, *_ARITHMETIC)
_PROGRESSIVE = (0xC2, 0xCA)
_OTHER_FRAMES = frozenset([*range(0xC5, 0xC8), 0xCB, *range(0xCD, 0xD0), 0xF7])
"""Hierarchical; lossless and arithmetic at once; JPEG-LS: no decoder here reads them."""
_START, _END = b"\xff\xd8", b"\xff\xd9"
_JFIF = b"\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
_EXIF = b"Exif\0\0"
_EIGHTHS = (1, 2, 3, 4)
"""Scales that decode faster than full size; 5/8 to 7/8 are slower."""
_MODES = {1: "GRAY", 3: "RGB", 4: "CMYK"}
_SAFE_BLOCKS = 2**16
"""Blocks of 8 x 8 px in a component whose means, coded as differences below 2**15, cannot overflow;
in components that are not requested the decoder would not notice."""
_SCALES = (8, 4, 2)
"""px per side of the blocks whose means are decoded."""
_LEAST_BLOCKS = 24
"""Along the short side, for `near.hash`: half as many again as the 16 frequencies it keeps."""


@dataclass(slots=True)
class _Header:
    """What a JPEG declares, and the part of it that a shard may store."""

    width: int = 0
    """px, as stored."""
    height: int = 0
    """px, as stored."""
    components: bytes = b""
    """Component ids: one for gray, three for colour, four for CMYK."""
    frame: int = 0
    """The second byte of the frame's marker, which tells how pixels are coded."""
    scans: list[bytes] = field(default_factory=list)
    """The parameters of each scan."""
    metadata_bytes: int = 0
    exif: bytes | None = None
    """The first EXIF block, a TIFF."""
    multiple: bool = False
    """Whether it declares further pictures (MPO)."""
    dropped: bool = False
    """Whether `plain` lacks metadata."""
    junk: bool = False
    """Whether there are stray bytes between segments."""
    ended: bool = False
    """Whether there is an end marker; `plain` always has one."""
    trailing: bool = False
    """Whether bytes follow the end marker."""
    plain: bytes = b""
    """The image data, byte for byte; of the APP segments only JFIF and Adobe."""

    def is_complete(self) -> bool:
        """Tell whether the scans declare every coefficient of every component to full precision.

        Without an end mark that shows only for Huffman codes: a cut arithmetic code reads as zeros.
        """
        if self.frame not in _HUFFMAN:
            return False
        missing = {(component, k) for component in self.components for k in range(64)}
        for scan in self.scans:
            first, last, bits = scan[-3:]
            is_part = self.frame in _PROGRESSIVE
            band = range(first, min(last, 63) + 1) if is_part else range(64)
            if bits & 15 == 0:
                missing.difference_update((c, k) for c in scan[1:-3:2] for k in band)
        return not missing


def decode_jpeg(data: bytes, config: ShardConfig) -> Decoded:
    """Decode a JPEG that starts at the first byte, at the smallest size that suffices.

    Raises:
        RefusedError: It does not decode strictly, or is of an unsupported kind or size.
    """
    header = _read_jpeg_header(data, config)
    turn = 1 if header.exif is None else exif_orientation(header.exif)
    notes = _notes(header, turn)
    size = header.width, header.height
    try:
        if turn in (None, 1) and _is_verbatim(header, config):
            return _decode_verbatim(header, notes)
        pixels = _decode_strictly(header, stored_size(*size, config.max_side))
    except RefusedError as error:
        if not (config.accept_partial and error.reason == "truncated"):
            raise
        pixels = _decode_partial(header, config)
        notes = [*(note for note in notes if note != "missing_end"), "partial"]
    if turn is not None and turn != 1:
        pixels = upright(pixels, turn)
        size = size[::-1] if turn >= 5 else size
    return Decoded(pixels, *size, notes)


def _notes(header: _Header, turn: int | None) -> list[str]:
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


def _is_verbatim(header: _Header, config: ShardConfig) -> bool:
    """Tell whether an upright JPEG is stored unchanged if it decodes."""
    size = header.width, header.height
    if header.frame not in _HUFFMAN or stored_size(*size, config.max_side) != size:
        return False
    try:
        # GPU decoders treat three channels as YCbCr, whatever the file says.
        colours = simplejpeg.decode_jpeg_header(header.plain)[2]
    except (ValueError, LookupError):  # An unknown sampling; 4:4:1 is a KeyError.
        return False
    declared = decoded_size(np.frombuffer(header.plain, np.uint8))
    return colours in ("Gray", "YCbCr") and declared == (header.height, header.width)


def _decode_verbatim(header: _Header, notes: list[str]) -> Decoded:
    """Decode what is stored unchanged; in colour only where chroma could hide damage."""
    width, height = size = header.width, header.height
    blocks = (width // 8 + 4) * (height // 8 + 4)  # Padding adds up to 32 px.
    if len(header.components) == 1 or blocks > _SAFE_BLOCKS:
        return Decoded(_decode_strictly(header, size), *size, notes, header.plain)
    scale = next((scale for scale in _SCALES if min(size) >= _LEAST_BLOCKS * scale), 1)
    luma = _decode_strictly(header, (-(-width // scale), -(-height // scale)), "GRAY")
    in_colour = partial(_decode_strictly, header, size)
    return Decoded(luma, *size, notes, header.plain, in_colour, scale)


def _decode_strictly(
    header: _Header, size: tuple[int, int], mode: str | None = None
) -> NDArray[np.uint8]:
    """Decode to at least `size` (width, height), in colour unless `mode` is GRAY."""
    if not (header.ended or header.is_complete()):
        raise RefusedError("truncated")
    try:
        return _pixels(header, size, mode, strict=True)
    except ValueError as error:
        if "subsampling" in str(error) and header.ended:
            return _decode_odd_sampling(header)
        if header.frame == _LOSSLESS and "color conversion" in str(error):
            raise RefusedError("unsupported_codec") from None
        raise RefusedError("undecodable" if header.ended else "truncated") from None
    except MemoryError:
        raise RefusedError("undecodable") from None


def _decode_partial(header: _Header, config: ShardConfig) -> NDArray[np.uint8]:
    size = stored_size(header.width, header.height, config.max_side)
    try:
        return _pixels(header, size, strict=False)
    except (ValueError, MemoryError):
        raise RefusedError("truncated") from None


def _pixels(
    header: _Header, size: tuple[int, int], mode: str | None = None, *, strict: bool
) -> NDArray[np.uint8]:
    mode = mode or _MODES[len(header.components)]
    scaled = 0, 0
    if size != (header.width, header.height) and header.frame != _LOSSLESS:
        sides = ((-(-header.width * n // 8), -(-header.height * n // 8)) for n in _EIGHTHS)
        scaled = next((side for side in sides if side[0] >= size[0] and side[1] >= size[1]), (0, 0))
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        header.plain, mode, min_width=scaled[0], min_height=scaled[1], strict=strict
    )
    if mode == "CMYK":  # Stored inverted, by Adobe's convention.
        size = pixels.shape[1], pixels.shape[0]
        return np.asarray(Image.frombytes("CMYK", size, (255 - pixels).tobytes()).convert("RGB"))
    return pixels


def _decode_odd_sampling(header: _Header) -> NDArray[np.uint8]:
    """Decode a chroma subsampling that simplejpeg does not know; rare, and not strict."""
    try:
        with Image.open(io.BytesIO(header.plain), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, MemoryError):
        raise RefusedError("undecodable") from None


def _read_jpeg_header(data: bytes, config: ShardConfig) -> _Header:
    """Walk all segments of a JPEG that starts at the first byte, without decoding a pixel.

    Raises:
        RefusedError: It is truncated before its first scan, malformed, of a kind that the trainer
            does not decode, or exceeds a limit of `config`.
    """
    from pipeline.ingest.gate.kernels import find_segments  # Numba takes half a second to load.

    header, position = _Header(), len(_START)
    kept: list[bytes | slice] = [_START]
    segments, is_malformed = find_segments(data)
    for marker, start, body_end, end in segments:
        if position < start and marker != EOI:
            header.junk |= data[position:start].strip(b"\xff") != b""
        position = end
        body = data[start + 4 : body_end]
        if _APP0 <= marker <= _APP15 or marker == _COM:
            segment = _read_metadata(header, marker, body, config)
            header.dropped |= segment != data[start:end]
            kept.append(segment)
        elif marker == EOI:
            header.ended = True
        else:
            _read_segment(header, marker, body, config)
            kept.append(slice(start, end))
    if is_malformed:
        raise RefusedError("undecodable")
    if not header.scans:
        raise RefusedError("undecodable" if header.ended else "truncated")
    header.trailing = header.ended and position < len(data)
    kept.append(_END)
    untouched = header.ended and not (header.junk or header.trailing or header.dropped)
    pieces = (data[piece] if isinstance(piece, slice) else piece for piece in kept)
    header.plain = data if untouched else b"".join(pieces)
    return header


def _read_segment(header: _Header, marker: int, body: bytes, config: ShardConfig) -> None:
    if marker in _OTHER_FRAMES:
        raise RefusedError("unsupported_codec")
    if marker in _FRAMES:
        _read_frame(header, body, config)
        header.frame = marker
    elif marker == SOS:
        if not header.components or len(body) < 6 or len(body) != 4 + 2 * body[0]:
            raise RefusedError("undecodable")
        header.scans.append(body)
        if len(header.scans) > config.max_scans:
            raise RefusedError("too_many_scans")


def _read_frame(header: _Header, body: bytes, config: ShardConfig) -> None:
    if header.components or len(body) < 9 or len(body) != 6 + 3 * body[5]:
        raise RefusedError("undecodable")
    header.height = int.from_bytes(body[1:3], "big")
    header.width = int.from_bytes(body[3:5], "big")
    header.components = body[6::3]
    if header.width * header.height > config.max_pixels:
        raise RefusedError("too_many_pixels")
    if body[0] != 8 or len(header.components) not in (1, 3, 4) or header.height == 0:
        raise RefusedError("unsupported_codec")  # 12 bit; or the height follows the pixels (DNL).
    if header.width == 0:
        raise RefusedError("undecodable")


def _read_metadata(header: _Header, marker: int, body: bytes, config: ShardConfig) -> bytes:
    """Note what matters of a segment; returns what is kept: the meaning of the channels."""
    header.metadata_bytes += len(body)
    if header.metadata_bytes > config.max_metadata_bytes:
        raise RefusedError("metadata_too_big")
    if marker == _APP1 and body.startswith(_EXIF) and header.exif is None:
        header.exif = body[len(_EXIF) :]
    if marker == _APP2 and body.startswith(b"MPF\0"):
        header.multiple = True
    if marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 14:
        plain = body[5] == 1 and len(body) == 14  # Else of an unknown version, or with a thumbnail.
        return b"\xff\xe0\0\x10" + body if plain else _JFIF
    if marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
        return b"\xff\xee" + (len(body) + 2).to_bytes(2, "big") + body
    return b""
