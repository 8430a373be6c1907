"""Walk a tar as a stream, compressed or not and in any state: intact members, damaged places."""

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

import zstandard

from pipeline.ingest.item import Reason
from pipeline.ingest.sources.files import InputError
from pipeline.ingest.sources.names import is_unsafe
from pipeline.shards.tar import decode_name, parse_pax

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_MAX_EXTENSION = 2**20  # bytes; real ones have a few hundred
_PAX, _LONG_NAME = tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME
_EXTENSIONS = (_PAX, tarfile.XGLTYPE, _LONG_NAME, tarfile.GNUTYPE_LONGLINK, tarfile.SOLARIS_XHDTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_NO_BODY = (b"1", b"2", b"3", b"4", b"5", b"6", b"V")  # links, devices, folders, FIFOs, the label
_SILENT = (tarfile.DIRTYPE, b"V")

_MAX_WINDOW = 2**27  # bytes of memory for a zstd stream, the limit of its command line, too
_STEP = 2**16
_BOMB_BYTES, _BOMB_RATIO = 2**28, 900
"""A stream of more bytes at a higher ratio is a bomb: deflate reaches 1032 on zeros, and archives
of images hardly 2."""
_DECOMPRESS_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


@dataclass(frozen=True, slots=True)
class StreamMember:
    """A member of an archive, or a damaged place in it."""

    name: str | None
    """As the archive has it; None for a damaged place."""
    offset: int
    """First byte, decompressed."""
    data: bytes = b""
    problem: Reason | None = None


class DecompressError(Exception):
    """Bytes are missing: how many are there, and whether the stream is broken for good."""

    def __init__(self, num_bytes: int, *, is_broken: bool) -> None:
        super().__init__(num_bytes)
        self.num_bytes = num_bytes
        self.is_broken = is_broken


class Decompressed:
    """Reads a file from an offset on: plain, or through gzip, bzip2, xz or zstd.

    Args:
        file: The whole file; its first bytes tell the compression.
        first: Where to begin; only for an uncompressed file.
        stop: Where to end; None for the end of the file.
    """

    def __init__(self, file: IO[bytes], first: int = 0, stop: int | None = None) -> None:
        self.offset = first
        """Offset of the next byte, decompressed."""
        self._file = file
        self._stop = stop
        magic = file.read(6)
        file.seek(first)
        self._stream = _decompress(file, magic)
        self._size = os.fstat(file.fileno()).st_size if self._stream is file else None

    def is_at_stop(self) -> bool:
        """Tell whether the part has been read."""
        return self._stop is not None and self.offset >= self._stop

    def read(self, num_bytes: int) -> bytes:
        """Read exactly `num_bytes`.

        Raises:
            DecompressError: The file ends early or is damaged.
            InputError: It cannot be read at present.
        """
        pieces: list[bytes] = []
        missing = num_bytes
        while missing:
            piece = self._read_some(missing)
            if not piece:
                raise DecompressError(num_bytes - missing, is_broken=False)
            pieces.append(piece)
            missing -= len(piece)
            self.offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def skip(self, num_bytes: int) -> None:
        """Skip bytes; raises as `read` does."""
        if self._size is not None:
            self.require(num_bytes)
            self.offset += num_bytes
            self._stream.seek(self.offset)
            return
        while num_bytes:
            num_bytes -= len(self.read(min(num_bytes, _STEP)))

    def require(self, num_bytes: int) -> None:
        """Raise DecompressError if the file is known to end before `num_bytes` more."""
        if self._size is not None and self.offset + num_bytes > self._size:
            raise DecompressError(max(0, self._size - self.offset), is_broken=False)

    def rewind(self, offset: int, error: DecompressError) -> bool:
        """Go back to an offset to search for members after damage; False if that is impossible."""
        if error.is_broken or self._size is None:
            return False
        self.offset = offset
        self._stream.seek(offset)
        return True

    def _read_some(self, num_bytes: int) -> bytes:
        try:
            piece: bytes = self._stream.read(min(num_bytes, 2**20))
        except _DECOMPRESS_ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise InputError("unreadable") from None
            raise DecompressError(0, is_broken=True) from None
        is_compressed = self._size is None
        if is_compressed and self.offset > max(_BOMB_BYTES, _BOMB_RATIO * self._file.tell()):
            raise DecompressError(0, is_broken=True)
        return piece


def _decompress(file: IO[bytes], magic: bytes) -> IO[bytes]:
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if magic.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(file)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        zstd = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        return zstd.stream_reader(file, read_across_frames=True, closefd=False)
    return file


@dataclass(slots=True)
class _State:
    """State of the walk."""

    limit_of: Callable[[int], int | None]
    extra: dict[str, str] = field(default_factory=dict)
    """What extension headers say of the next member: path, size, sparse, broken."""
    start: int = 0
    """Offset of the next member's first header."""
    is_lost: bool = False
    """Whether the last block could not be a header."""
    has_ended: bool = False
    """Whether the last block was the end mark."""

    def begin(self, offset: int) -> None:
        """Arrive at the next header, which may be the first of a member."""
        if not self.extra:
            self.start = offset

    def miss(self, block: bytes) -> bool:
        """Note a block that is no header; returns whether that is damage not yet reported."""
        is_damage = bool(self.extra) if block == _ZEROS else not self.is_lost
        self.has_ended = self.has_ended or block == _ZEROS
        self.is_lost = self.is_lost or block != _ZEROS
        self.extra = {}
        return is_damage

    def is_cut(self, error: DecompressError) -> bool:
        """Tell whether the end of the bytes is damage not yet reported."""
        is_early = error.is_broken or error.num_bytes or not self.has_ended
        return bool(is_early) and not self.is_lost


def read_members(
    tar: Decompressed, limit_of: Callable[[int], int | None]
) -> Iterator[StreamMember]:
    """Yield the regular files of a tar in order, and the damaged places between them.

    After damage the walk resumes at the next valid header. Links, devices, sparse files and names
    that lead out of the folder are members with a problem; folders are skipped. A tar appended to
    another one is read on.

    Args:
        tar: Positioned at its first header.
        limit_of: Tells by a member's first byte how large it may be for its data to be read; None
            where they are not wanted. Larger ones are a problem.
    """
    state = _State(limit_of)
    while not tar.is_at_stop():
        state.begin(tar.offset)
        try:
            block = tar.read(_BLOCK)
        except DecompressError as error:
            if state.is_cut(error):
                yield StreamMember(None, state.start, problem="bad_record")
            return
        info, after = _parse(block, strict=state.is_lost), tar.offset
        if info is None:
            if state.miss(block):
                yield StreamMember(None, state.start, problem="bad_record")
            continue
        state.is_lost = state.has_ended = False
        try:
            yield from _read_one(tar, info, block, state)
        except DecompressError as error:
            yield StreamMember(None, state.start, problem="bad_record")
            state.extra, state.is_lost = {}, True
            if not tar.rewind(after, error):
                return


def _parse(block: bytes, *, strict: bool) -> tarfile.TarInfo | None:
    """Parse a header, None if it is none; `strict`, after damage, requires the ustar magic."""
    if strict and block[257:262] != b"ustar":
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return info if info.size >= 0 else None


def _read_one(
    tar: Decompressed, info: tarfile.TarInfo, block: bytes, state: _State
) -> Iterator[StreamMember]:
    """Read a header and its body; raises DecompressError where that is cut."""
    if info.type in _EXTENSIONS:
        _read_extension(tar, info, state)
        return
    extra, state.extra = state.extra, {}
    name = extra.get("path", info.name)
    if info.type not in _FILES:
        _skip_special(tar, info, block)
        if info.type not in _SILENT:
            yield StreamMember(name, state.start, problem="bad_record")
        return
    size = int(extra.get("size", info.size))
    tar.require(size)
    if "broken" in extra or "sparse" in extra or is_unsafe(name):
        tar.skip(_padded(size))
        yield StreamMember(name, state.start, problem="bad_record")
    elif (limit := state.limit_of(state.start)) is None:
        tar.skip(_padded(size))
        yield StreamMember(name, state.start)
    elif size > limit:
        tar.skip(_padded(size))
        yield StreamMember(name, state.start, problem="too_big")
    else:
        data = tar.read(size)
        tar.skip(_padded(size) - size)
        yield StreamMember(name, state.start, data, None if size else "empty")


def _skip_special(tar: Decompressed, info: tarfile.TarInfo, block: bytes) -> None:
    is_extended = info.type == tarfile.GNUTYPE_SPARSE and block[482]
    while is_extended:
        is_extended = tar.read(_BLOCK)[504]
    if info.type not in _NO_BODY:
        tar.skip(_padded(info.size))


def _read_extension(tar: Decompressed, info: tarfile.TarInfo, state: _State) -> None:
    tar.require(info.size)
    if info.size > _MAX_EXTENSION:
        tar.skip(_padded(info.size))
        state.extra["broken"] = ""
        return
    body = tar.read(_padded(info.size))[: info.size]
    state.extra["seen"] = ""  # The member begins with this header.
    if info.type in (_PAX, tarfile.SOLARIS_XHDTYPE):
        state.extra.update(parse_pax(body))
    elif info.type == _LONG_NAME:
        state.extra["path"] = decode_name(body)


def _padded(size: int) -> int:
    return (size + _BLOCK - 1) // _BLOCK * _BLOCK
