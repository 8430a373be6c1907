"""Cut WARC and ARC files into records, whatever state they are in."""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from pipeline.crawl.opened import InputError

_STEP = 2**16
_MAX_HEAD = 2**16
"""Bytes of a record's own header; real ones have some hundred."""
_OVERLAP = 2**12
_BOMB_BYTES, _BOMB_RATIO = 2**28, 900
"""More bytes out of a gzip member than that, at a ratio above that, are a bomb."""
_GZIP = b"\x1f\x8b\x08"
_version = re.compile(rb"WARC/\d\.\d+\r?\n")
_is_warc, _find_version = _version.match, _version.search
_is_arc = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*:[^ \n]* \S+ \d{8,14} [^\n]* (\d+)\r?\n").match
_find_candidates = re.compile(rb"\x1f\x8b\x08|WARC/\d|(?<=\n)https?:").finditer
_find_length = re.compile(rb"(?im)^content-length:[ \t]*(\d{1,15})[ \t]*\r?$").search


class BrokenError(Exception):
    """A place where no record goes on."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record, or the place of a damaged one."""

    offset: int
    """In the file, of its first byte; where it is compressed, of the gzip member."""
    head: bytes
    """Its own header with the blank line; empty where it is damaged."""
    block: bytes = b""
    """What the header speaks of, as far as `limit` goes."""
    length: int = 0
    """Bytes of the whole block."""


def cut_records(file: IO[bytes], size: int, limit: int) -> Iterator[RawRecord]:
    """Yield the records in order, and one without a header for each damaged place.

    Behind damage the next place that begins like a record, or like a gzip member with one, is
    looked for.

    Args:
        file: Whole, can seek.
        size: Of it, bytes.
        limit: Bytes of a block that are kept.
    """
    position = 0
    while position < size:
        stream = _Stream(file, position)
        try:
            while (offset := stream.begin()) is not None:
                position = offset
                record = _read_record(stream, limit)
                if record is not None:
                    yield record
            position = stream.end()
        except BrokenError:
            yield RawRecord(position, b"")
            found = _find_next(file, position + 1)
            position = size if found is None else found


class _Stream:
    """The bytes of a gzip member, or of an uncompressed file from a place on."""

    def __init__(self, file: IO[bytes], position: int) -> None:
        self.begun = position
        self._file = file
        self._raw = position
        """Position behind what was read of the file."""
        self._buffer = b""
        self._unpacked = 0
        file.seek(position)
        start = file.read(len(_GZIP))
        file.seek(position)
        self._gzip = zlib.decompressobj(31) if start == _GZIP else None

    def begin(self) -> int | None:
        """Pass over blank lines; return where the next record begins, None at the end."""
        while True:
            self._buffer = self._buffer.lstrip(b"\r\n")
            if self._buffer:
                return self.begun if self._gzip else self._raw - len(self._buffer)
            if not self._fill():
                return None

    def read_head(self) -> bytes:
        """Read a record's header: up to a blank line in a WARC, one line in an ARC."""
        while True:
            is_warc = self._buffer.startswith(b"WARC/")
            end = re.search(rb"\r?\n\r?\n" if is_warc else rb"\n", self._buffer)
            if end:
                head, self._buffer = self._buffer[: end.end()], self._buffer[end.end() :]
                return head
            if len(self._buffer) >= _MAX_HEAD or not self._fill():
                raise BrokenError

    def read(self, num_bytes: int) -> bytes:
        """Read exactly so many bytes."""
        pieces, missing = [], num_bytes
        while missing:
            if not self._buffer and not self._fill():
                raise BrokenError
            pieces.append(self._buffer[:missing])
            self._buffer = self._buffer[missing:]
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def skip(self, num_bytes: int) -> None:
        """Pass over so many bytes."""
        while num_bytes:
            num_bytes -= len(self.read(min(num_bytes, _STEP)))

    def ends_well(self) -> bool:
        """Tell whether a record may end here: at a line end, or where everything does.

        Reads on to what follows, and so to the check sum of a gzip member.
        """
        while not self._buffer.strip(b"\r\n") and self._fill():
            pass
        return not self._buffer or self._buffer[:1] in b"\r\n"

    def starts_arc(self) -> bool:
        """Tell whether a record of an ARC begins here, without the blank line before it."""
        return _is_arc(self._buffer[:_MAX_HEAD]) is not None

    def end(self) -> int:
        """Position in the file behind a gzip member or the uncompressed rest."""
        return self._raw - (len(self._gzip.unused_data) if self._gzip else 0)

    def _fill(self) -> bool:
        """Read more into the buffer; False at the end of the member or the file."""
        if self._gzip is not None and self._gzip.eof:
            return False
        try:
            more = self._read_plain() if self._gzip is None else self._unpack(self._gzip)
        except OSError:
            raise InputError("unreadable") from None
        self._buffer += more
        return bool(more)

    def _read_plain(self) -> bytes:
        more = self._file.read(_STEP)
        self._raw += len(more)
        return more

    def _unpack(self, unpacker: Any) -> bytes:
        more = b""
        while not more and not unpacker.eof:
            raw = unpacker.unconsumed_tail
            if not raw:
                raw = self._file.read(_STEP)
                self._raw += len(raw)
            try:
                more = unpacker.decompress(raw, _STEP)
            except zlib.error:
                raise BrokenError from None
            if not raw and not more and not unpacker.eof:
                raise BrokenError  # The file ends inside the member.
        self._unpacked += len(more)
        if self._unpacked > max(_BOMB_BYTES, _BOMB_RATIO * (self._raw - self.begun)):
            raise BrokenError
        return more


def _read_record(stream: _Stream, limit: int) -> RawRecord | None:
    """Read one record; None for a header of an ARC file."""
    offset = stream.begin()
    assert offset is not None
    head = stream.read_head()
    found = _find_length(head) if _is_warc(head) else _is_arc(head)
    if found is None or _find_version(head, 1):  # A header within a header: the first is cut.
        raise BrokenError
    length = int(found[1])
    block = stream.read(min(length, limit))
    stream.skip(length - len(block))
    if not stream.ends_well() and not stream.starts_arc():
        raise BrokenError  # The length in the header is wrong.
    return None if head.startswith(b"filedesc:") else RawRecord(offset, head, block, length)


def _find_next(file: IO[bytes], start: int) -> int | None:
    """Find the next place that begins like a record, or like a gzip member with one."""
    base = start - 1  # The byte before tells whether a line begins.
    while True:
        file.seek(base)
        window = file.read(_STEP + _OVERLAP)
        for candidate in _find_candidates(window):
            place = base + candidate.start()
            if place >= start and candidate.start() <= _STEP and _begins_record(file, place):
                return place
        if len(window) < _STEP + _OVERLAP:
            return None
        base += _STEP


def _begins_record(file: IO[bytes], place: int) -> bool:
    file.seek(place)
    head = file.read(_OVERLAP)
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(31).decompress(head, _OVERLAP)
        except zlib.error:
            return False
    return bool(_is_warc(head) or _is_arc(head))
