"""Walk the markers of a JPEG: what it declares, and its image data without anything else."""

from dataclasses import dataclass, field

from pipeline.crawl.config import ShardConfig
from pipeline.crawl.refusal import RefusedError

SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
_COM = 0xFE
_APP0, _APP1, _APP2, _APP14, _APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
_PROGRESSIVE = 0xC2
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)
_OTHER_FRAMES = frozenset([0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7])
"""Lossless, hierarchical, arithmetic; JPEG-LS."""
_START, _END = b"\xff\xd8", b"\xff\xd9"
_JFIF = b"\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
_EXIF = b"Exif\0\0"


@dataclass(slots=True)
class JpegHeader:
    """What a JPEG declares, and what of it a shard may store."""

    width: int = 0
    """px, as stored."""
    height: int = 0
    """px, as stored."""
    components: bytes = b""
    """Their numbers; one is gray, three are colour, four are CMYK."""
    progressive: bool = False
    scans: list[bytes] = field(default_factory=list)
    """The parameters of each scan."""
    metadata_bytes: int = 0
    exif: bytes | None = None
    """The first EXIF block, a TIFF."""
    multiple: bool = False
    """Whether more pictures are announced to follow (MPO)."""
    dropped: bool = False
    """Whether `plain` lacks metadata."""
    junk: bool = False
    """Whether bytes between markers belonged to none of them."""
    ended: bool = False
    """Whether the end was marked; `plain` always is."""
    trailing: bool = False
    """Whether bytes follow the end."""
    plain: bytes = b""
    """The image data, byte for byte, from start to end; of APP segments only JFIF and Adobe."""

    def is_complete(self) -> bool:
        """Tell whether the scans announce each coefficient of each component, with all its bits."""
        missing = {(component, k) for component in self.components for k in range(64)}
        for scan in self.scans:
            first, last, bits = scan[-3:]
            band = range(first, min(last, 63) + 1) if self.progressive else range(64)
            if bits & 15 == 0:
                missing.difference_update((c, k) for c in scan[1:-3:2] for k in band)
        return not missing


def read_jpeg_header(data: bytes, config: ShardConfig) -> JpegHeader:
    """Walk all markers of a JPEG that starts at the first byte; no pixel is decoded.

    Raises:
        RefusedError: It is cut before its first scan, malformed, of a kind that the trainer does
            not decode, or exceeds a limit of `config`.
    """
    from pipeline.crawl.jpeg_markers import find_segments  # Numba takes half a second to load.

    header, position = JpegHeader(), len(_START)
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


def _read_segment(header: JpegHeader, marker: int, body: bytes, config: ShardConfig) -> None:
    if marker in _OTHER_FRAMES:
        raise RefusedError("unsupported_codec")
    if marker in _FRAMES:
        _read_frame(header, body, config)
        header.progressive = marker == _PROGRESSIVE
    elif marker == SOS:
        if not header.components or len(body) < 6 or len(body) != 4 + 2 * body[0]:
            raise RefusedError("undecodable")
        header.scans.append(body)
        if len(header.scans) > config.max_scans:
            raise RefusedError("too_many_scans")


def _read_frame(header: JpegHeader, body: bytes, config: ShardConfig) -> None:
    if header.components or len(body) < 9 or len(body) != 6 + 3 * body[5]:
        raise RefusedError("undecodable")
    header.height = int.from_bytes(body[1:3], "big")
    header.width = int.from_bytes(body[3:5], "big")
    header.components = body[6::3]
    if header.width * header.height > config.max_pixels:
        raise RefusedError("too_many_pixels")
    if body[0] != 8 or len(header.components) not in (1, 3, 4) or header.height == 0:
        raise RefusedError("unsupported_codec")  # 12 bit; or its height stands behind the pixels.
    if header.width == 0:
        raise RefusedError("undecodable")


def _read_metadata(header: JpegHeader, marker: int, body: bytes, config: ShardConfig) -> bytes:
    """Note what training needs of it, and return what stays: what tells the meaning of channels."""
    header.metadata_bytes += len(body)
    if header.metadata_bytes > config.max_metadata_bytes:
        raise RefusedError("metadata_too_big")
    if marker == _APP1 and body.startswith(_EXIF) and header.exif is None:
        header.exif = body[len(_EXIF) :]
    if marker == _APP2 and body.startswith(b"MPF\0"):
        header.multiple = True
    if marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 14:
        plain = body[5] == 1 and len(body) == 14  # Else of no known version, or with a thumbnail.
        return b"\xff\xe0\0\x10" + body if plain else _JFIF
    if marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
        return b"\xff\xee" + (len(body) + 2).to_bytes(2, "big") + body
    return b""
