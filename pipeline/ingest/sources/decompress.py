"""A stream of bytes out of a file that may be compressed, with its bounds."""

import bz2
import gzip
import lzma
import os
import zlib
from typing import IO

import zstandard

from pipeline.ingest.sources.files import InputError

_MAX_WINDOW = 2**27  # bytes of memory for one stream of zstd, what its command line takes, too
_STEP = 2**16
_BOMB_BYTES, _BOMB_RATIO = 2**28, 900
"""More bytes than that at a ratio above that are a bomb: deflate reaches 1032 on zeros, and
archives of images hardly 2."""
_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class DecompressError(Exception):
    """Bytes that are not there; names how many are, and whether the stream is broken for good."""

    def __init__(self, num_bytes: int, *, is_broken: bool) -> None:
        super().__init__(num_bytes)
        self.num_bytes = num_bytes
        self.is_broken = is_broken


class Unpacked:
    """Reads on from a place of a file: as it is, or through gzip, bzip2, xz or zstd.

    Args:
        file: Whole; which compression it has is told by its first bytes.
        first: Where to begin, only in one that is not compressed.
        stop: Where to end; None for the end of the file.
    """

    def __init__(self, file: IO[bytes], first: int = 0, stop: int | None = None) -> None:
        self.offset = first
        """Of the next byte, unpacked."""
        self._file = file
        self._stop = stop
        magic = file.read(6)
        file.seek(first)
        self._stream = _unpack(file, magic)
        self._size = os.fstat(file.fileno()).st_size if self._stream is file else None

    def is_at_stop(self) -> bool:
        """Tell whether the part is read."""
        return self._stop is not None and self.offset >= self._stop

    def read(self, num_bytes: int) -> bytes:
        """Read exactly so many bytes.

        Raises:
            DamageError: The file ends before, or is damaged.
            InputError: It cannot be read now.
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
        """Pass over bytes; raises as `read` does."""
        if self._size is not None:
            self.check_room(num_bytes)
            self.offset += num_bytes
            self._stream.seek(self.offset)
            return
        while num_bytes:
            num_bytes -= len(self.read(min(num_bytes, _STEP)))

    def check_room(self, num_bytes: int) -> None:
        """Raise DamageError where the file is known to end before so many bytes more."""
        if self._size is not None and self.offset + num_bytes > self._size:
            raise DecompressError(max(0, self._size - self.offset), is_broken=False)

    def rewind(self, offset: int, error: DecompressError) -> bool:
        """Go back to a place, to look for more behind damage; False where that is impossible."""
        if error.is_broken or self._size is None:
            return False
        self.offset = offset
        self._stream.seek(offset)
        return True

    def _read_some(self, num_bytes: int) -> bytes:
        try:
            piece: bytes = self._stream.read(min(num_bytes, 2**20))
        except _ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise InputError("unreadable") from None
            raise DecompressError(0, is_broken=True) from None
        is_packed = self._size is None
        if is_packed and self.offset > max(_BOMB_BYTES, _BOMB_RATIO * self._file.tell()):
            raise DecompressError(0, is_broken=True)
        return piece


def _unpack(file: IO[bytes], magic: bytes) -> IO[bytes]:
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if magic.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(file)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        return unpacker.stream_reader(file, read_across_frames=True, closefd=False)
    return file
