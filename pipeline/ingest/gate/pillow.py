"""The gate's slow path: the formats that the trainer's decoder lacks, by Pillow."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.decoded import Decoded, RefusedError, exif_orientation
from pipeline.ingest.gate.encode import stored_size
from pipeline.ingest.gate.levels import check_depth, in_eight_bits, is_unknown_tiff
from pipeline.shards.headers import webp_size

ImageFile.LOAD_TRUNCATED_IMAGES = (
    False  # Truncated images must raise, whoever imported Pillow before.
)

_TRANSPOSE = {  # EXIF orientation -> operation that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_FRAMES = (b"acTL", b"fcTL", b"fdAT")
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
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


@dataclass(slots=True)
class _Header:
    """What an image declares, and the part of it that the decoder gets."""

    width: int = 0
    """px that a decoder allocates, as stored."""
    height: int = 0
    """px that a decoder allocates, as stored."""
    metadata_bytes: int = 0
    """Bytes of text, profiles and EXIF, decompressed up to the limit."""
    exif: bytes | None = None
    """The EXIF block, a TIFF."""
    broken: bool = False
    """Whether metadata cannot be decompressed."""
    frames: int = 1
    """2 stands for any number above one."""
    ended: bool = False
    """Whether there is an end mark."""
    trailing: bool = False
    """Whether bytes follow the end mark."""
    data: bytes = b""
    """Input for the decoder."""

    def add_metadata(self, num_bytes: int, config: ShardConfig) -> None:
        self.metadata_bytes += num_bytes
        if self.metadata_bytes > config.max_metadata_bytes:
            raise RefusedError("metadata_too_big")

    def set_size(self, width: int, height: int, config: ShardConfig) -> None:
        if width * height > config.max_pixels:
            raise RefusedError("too_many_pixels")
        if width == 0 or height == 0:
            raise RefusedError("undecodable")
        self.width, self.height = width, height


def decode_by_pillow(data: bytes, image_format: str, config: ShardConfig) -> Decoded:
    """Decode the first frame of an image other than a JPEG.

    Raises:
        RefusedError: It does not decode, or is of an unsupported kind or size.
    """
    header = _Header(data=data, ended=True)
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


def _open(header: _Header, image_format: str, config: ShardConfig) -> ImageFile.ImageFile:
    """Open the image lazily, and only as `image_format`."""
    name = image_format
    if image_format == "HEIC":
        name = _register_heif()
    elif image_format == "AVIF" and "AVIF" not in _known_formats():
        raise RefusedError("unsupported_codec")
    try:
        image = Image.open(io.BytesIO(header.data), formats=[name])
    except UnidentifiedImageError:
        if name == "TIFF" and is_unknown_tiff(header.data):
            raise RefusedError("unsupported_depth") from None
        raise
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
        import pillow_heif  # Optional: its codec has another licence.
    except ImportError:
        raise RefusedError("unsupported_codec") from None
    pillow_heif.register_heif_opener()
    return "HEIF"


def _notes(header: _Header, image: ImageFile.ImageFile) -> list[str]:
    """Collect notes from the header; to be called before `load`, which drops what it applies.

    Raises:
        RefusedError: Samples are of an unknown range.
    """
    check_depth(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Counting its frames would walk them all.
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
    image: ImageFile.ImageFile, header: _Header, notes: list[str], config: ShardConfig
) -> Decoded:
    """Make a loaded image upright 8-bit RGB or gray, with alpha composited on the background."""
    plain = in_eight_bits(image, header.data)
    turn = _orientation(image, header)
    if turn is None:
        notes.append("metadata_broken")
    elif turn in _TRANSPOSE:
        notes.append("oriented")
        plain = plain.transpose(_TRANSPOSE[turn])
    width, height = plain.size
    target = stored_size(width, height, config.max_side)
    if width >= 2 * target[0]:  # A box filter; the result is less than twice too large.
        plain = plain.reduce(min(width // target[0], height // target[1]))
    if plain.mode in ("LA", "RGBA"):
        rgba = plain.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            notes.append("alpha")
        ground = Image.new("RGBA", rgba.size, (*config.background, 255))
        plain = Image.alpha_composite(ground, rgba).convert("RGB")
    pixels = np.asarray(plain)
    return Decoded(pixels.reshape(*pixels.shape[:2], -1), width, height, list(dict.fromkeys(notes)))


def _orientation(image: Image.Image, header: _Header) -> int | None:
    """Read the orientation still to be applied, None if EXIF is broken."""
    if image.format in _WALKERS:
        return 1 if header.exif is None else exif_orientation(header.exif)
    try:  # After `load`, which turns TIFFs upright and drops their tag.
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, RuntimeError, struct.error):
        return None
    return value if value == 1 or value in _TRANSPOSE else None


def _read_png_header(data: bytes, config: ShardConfig) -> _Header:
    """Walk the chunks of a PNG; `data` of the result has only those that affect pixels.

    Raises:
        RefusedError: It is malformed or exceeds a limit of `config`.
    """
    header, view = _Header(), memoryview(data)
    kept = [view[:8]]
    for name, start, end in _png_chunks(data):
        is_first = not header.width
        if is_first != (name == b"IHDR") or (is_first and end - start != 25):
            raise RefusedError("undecodable")
        if is_first:
            width, height = struct.unpack_from(">II", data, 16)
            header.set_size(width, height, config)
        if name in _PNG_PIXELS:
            kept.append(view[start:end])
        else:
            _read_png_metadata(header, name, data[start + 8 : end - 4], config)
        if name == b"IEND":
            header.ended, header.trailing = True, end < len(data)
            break
    if not header.width:
        raise RefusedError("truncated")
    if not header.ended:
        kept.append(memoryview(_PNG_END))
    untouched = sum(len(part) for part in kept) == len(data) and header.ended
    header.data = data if untouched else b"".join(kept)
    return header


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, start and end of each complete chunk."""
    start = 8
    while (end := start + 12 + int.from_bytes(data[start : start + 4], "big")) <= len(data):
        yield data[start + 4 : start + 8], start, end
        start = end


def _read_png_metadata(header: _Header, name: bytes, body: bytes, config: ShardConfig) -> None:
    if name == b"acTL":
        header.frames = min(2, int.from_bytes(body[:4], "big"))
    elif name == b"eXIf":
        header.exif = body.removeprefix(b"Exif\0\0")
    if name in _PNG_FRAMES:
        return
    header.add_metadata(len(body), config)
    if deflated := _deflated_part(name, body):
        try:
            left = config.max_metadata_bytes - header.metadata_bytes
            inflated = len(zlib.decompressobj().decompress(deflated, left + 1))
        except zlib.error:
            header.broken = True
        else:
            header.add_metadata(inflated, config)


def _deflated_part(name: bytes, body: bytes) -> bytes:
    """Return the deflated part of a text or profile chunk."""
    after_keyword = body.partition(b"\0")[2]
    if name in (b"zTXt", b"iCCP"):
        return after_keyword[1:]
    if name == b"iTXt" and after_keyword[:1] == b"\1":  # Then method, language, keyword.
        return after_keyword[2:].partition(b"\0")[2].partition(b"\0")[2]
    return b""


def _read_webp_header(data: bytes, config: ShardConfig) -> _Header:
    """Walk the chunks of a WebP.

    Raises:
        RefusedError: It is truncated, malformed, or exceeds a limit of `config`.
    """
    header, frames = _Header(), 0
    size = 8 + int.from_bytes(data[4:8], "little")
    if size > len(data):
        raise RefusedError("truncated")
    header.data, header.ended, header.trailing = data[:size], True, size < len(data)
    start = 12
    while start + 8 <= size:
        name, length = (
            data[start : start + 4],
            int.from_bytes(data[start + 4 : start + 8], "little"),
        )
        body = slice(start + 8, start + 8 + length)
        if not header.width:
            first = data[body.start : body.start + 10]
            header.set_size(*(webp_size(name, first) or (0, 0)), config)
        if name in (b"ICCP", b"EXIF", b"XMP "):
            header.add_metadata(length, config)
            if name == b"EXIF":
                header.exif = data[body].removeprefix(b"Exif\0\0")
        frames += name == b"ANMF"
        start += 8 + length + length % 2
    header.frames = min(max(frames, 1), 2)
    return header


def _read_gif_header(data: bytes, config: ShardConfig) -> _Header:
    """Walk the blocks of a GIF up to its second frame.

    Raises:
        RefusedError: It is truncated before its first frame, malformed, or exceeds a limit of
            `config`.
    """
    header, frames = _Header(data=data), 0
    screen = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    position = 13 + _gif_table(data[10:11])
    while block := data[position : position + 1]:
        if block == b",":
            frames += 1
            if frames == 2:
                break
            left, top, width, height = (
                int.from_bytes(data[at : at + 2], "little")
                for at in range(position + 1, position + 9, 2)
            )
            # The decoder allocates for a frame that exceeds the screen.
            header.set_size(max(screen[0], left + width), max(screen[1], top + height), config)
            position = _gif_blocks_end(data, position + 11 + _gif_table(data[position + 9 :][:1]))
        elif block == b"!":
            end = _gif_blocks_end(data, position + 2)
            header.add_metadata(end - position, config)
            position = end
        else:
            header.ended, header.trailing = block == b";", position + 1 < len(data)
            break
    if not frames:
        raise RefusedError("undecodable" if header.ended else "truncated")
    header.frames = frames
    return header


def _gif_table(flags: bytes) -> int:
    """Return the bytes of the colour table that `flags` declare."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _gif_blocks_end(data: bytes, position: int) -> int:
    while position < len(data) and data[position]:
        position += 1 + data[position]
    return position + 1


_WALKERS = {"PNG": _read_png_header, "WEBP": _read_webp_header, "GIF": _read_gif_header}
