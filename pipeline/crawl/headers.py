"""What PNG, WebP and GIF declare, read without decoding a pixel or inflating a profile."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.crawl.config import ShardConfig
from pipeline.crawl.refusal import RefusedError

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_FRAMES = (b"acTL", b"fcTL", b"fdAT")
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


@dataclass(slots=True)
class Header:
    """What an image declares, and what a decoder is given of it."""

    width: int = 0
    """px a decoder allocates, as stored."""
    height: int = 0
    """px a decoder allocates, as stored."""
    metadata_bytes: int = 0
    """Of text, profiles and EXIF, unpacked as far as the limit."""
    exif: bytes | None = None
    """The EXIF block, a TIFF."""
    broken: bool = False
    """Whether metadata does not unpack."""
    frames: int = 1
    """2 stands for any number above one."""
    ended: bool = False
    """Whether the end was marked."""
    trailing: bool = False
    """Whether bytes follow the end."""
    data: bytes = b""
    """The image for the decoder."""

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


def read_png_header(data: bytes, config: ShardConfig) -> Header:
    """Walk the chunks of a PNG; `data` of the result has only those that make pixels.

    Raises:
        RefusedError: It is malformed or exceeds a limit of `config`.
    """
    header, view = Header(), memoryview(data)
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
    """Yield the name, start and end of each whole chunk."""
    start = 8
    while (end := start + 12 + int.from_bytes(data[start : start + 4], "big")) <= len(data):
        yield data[start + 4 : start + 8], start, end
        start = end


def _read_png_metadata(header: Header, name: bytes, body: bytes, config: ShardConfig) -> None:
    if name == b"acTL":
        header.frames = min(2, int.from_bytes(body[:4], "big"))
    elif name == b"eXIf":
        header.exif = body.removeprefix(b"Exif\0\0")
    if name in _PNG_FRAMES:
        return
    header.add_metadata(len(body), config)
    if packed := _packed_part(name, body):
        try:
            left = config.max_metadata_bytes - header.metadata_bytes
            unpacked = len(zlib.decompressobj().decompress(packed, left + 1))
        except zlib.error:
            header.broken = True
        else:
            header.add_metadata(unpacked, config)


def _packed_part(name: bytes, body: bytes) -> bytes:
    """Find what is deflated of a chunk of text or a profile."""
    behind_keyword = body.partition(b"\0")[2]
    if name in (b"zTXt", b"iCCP"):
        return behind_keyword[1:]
    if name == b"iTXt" and behind_keyword[:1] == b"\1":  # Then method, language, keyword.
        return behind_keyword[2:].partition(b"\0")[2].partition(b"\0")[2]
    return b""


def read_webp_header(data: bytes, config: ShardConfig) -> Header:
    """Walk the chunks of a WebP.

    Raises:
        RefusedError: It is cut, malformed, or exceeds a limit of `config`.
    """
    header, frames = Header(), 0
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
            header.set_size(*_webp_size(name, data[body.start : body.start + 10]), config)
        if name in (b"ICCP", b"EXIF", b"XMP "):
            header.add_metadata(length, config)
            if name == b"EXIF":
                header.exif = data[body].removeprefix(b"Exif\0\0")
        frames += name == b"ANMF"
        start += 8 + length + length % 2
    header.frames = min(max(frames, 1), 2)
    return header


def _webp_size(name: bytes, body: bytes) -> tuple[int, int]:
    if name == b"VP8X":
        sides = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    elif name == b"VP8 ":
        sides = (
            int.from_bytes(body[6:8], "little") & 0x3FFF,
            int.from_bytes(body[8:10], "little") & 0x3FFF,
        )
    elif name == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        sides = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        sides = 0, 0
    return sides


def read_gif_header(data: bytes, config: ShardConfig) -> Header:
    """Walk the blocks of a GIF up to its second frame.

    Raises:
        RefusedError: It is cut before its first frame, malformed, or exceeds a limit of `config`.
    """
    header, frames = Header(data=data), 0
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
            # The decoder makes room for a frame that is larger than the screen.
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
    """Bytes of the colour table that `flags` announce."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _gif_blocks_end(data: bytes, position: int) -> int:
    while position < len(data) and data[position]:
        position += 1 + data[position]
    return position + 1
