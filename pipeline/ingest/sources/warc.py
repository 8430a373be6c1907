"""WARC and ARC files as sources: a response or resource with an image is an input."""

import base64
import binascii
import hashlib
import io
import logging
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

from warcio.exceptions import ArchiveLoadFailed
from warcio.recordloader import ArcWarcRecordLoader
from warcio.statusandheaders import StatusAndHeadersParserException

from pipeline.ingest.gate.formats import is_image
from pipeline.ingest.item import Item
from pipeline.ingest.sources.files import InputError, open_archive
from pipeline.ingest.sources.http_body import (
    MAX_FRAMING,
    CodingError,
    UnknownCodingError,
    decode_body,
)
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.names import Names
from pipeline.shards.labels import plain_text

logging.getLogger("warcio").setLevel(logging.ERROR)  # It warns of every space in a URL.

_STEP = 2**16
_MAX_HEAD = 2**16
"""Bytes of a record's own header; real ones have a few hundred."""
_OVERLAP = 2**12
_BOMB_BYTES, _BOMB_RATIO = 2**28, 900
"""A gzip member of more bytes at a higher ratio is a bomb."""
_GZIP = b"\x1f\x8b\x08"
_version = re.compile(rb"WARC/\d\.\d+\r?\n")
_is_warc, _find_version = _version.match, _version.search
_is_arc = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*:[^ \n]* \S+ \d{8,14} [^\n]* (\d+)\r?\n").match
_find_candidates = re.compile(rb"\x1f\x8b\x08|WARC/\d|(?<=\n)https?:").finditer
_find_length = re.compile(rb"(?im)^content-length:[ \t]*(\d{1,15})[ \t]*\r?$").search
_RECORD_TYPES = ("response", "resource")
"""A revisit refers to an image in another record, and a conversion repeats one."""
_ERRORS = (
    *(ArchiveLoadFailed, StatusAndHeadersParserException, EOFError),
    *(ValueError, AssertionError, IndexError, AttributeError),
)


class _BrokenError(Exception):
    """No record continues here."""


@dataclass(frozen=True, slots=True)
class _RawRecord:
    """A record, or the place of a damaged one."""

    offset: int
    """First byte in the file; of a compressed record, that of its gzip member."""
    head: bytes
    """The record's own header with the blank line; empty where the record is damaged."""
    block: bytes = b""
    """What follows the header, up to the limit."""
    length: int = 0
    """Bytes of the whole block."""


def read_warc(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read the images among the records; a damaged record is a problem named by its offset.

    A record is an image if its HTTP headers or its first bytes say so, whatever its status, which
    is kept where it is not 200. Digests are verified where the record has them.
    """
    names, offset = Names(), 0
    try:
        if chunk.file.size == 0:
            raise InputError("empty")
        with open_archive(chunk) as opened:
            size = opened.seek(0, io.SEEK_END)
            for raw in _cut_records(opened, size, max_bytes + MAX_FRAMING):
                offset = raw.offset
                item = _read(chunk, raw, max_bytes)
                if item and (item.problem == "bad_record" or chunk.wants(item.name)):
                    yield replace(item, name=names.take(item.name))
    except InputError as error:
        item = chunk.problem(offset, error.reason)
        yield replace(item, name=names.take(item.name))


def _read(chunk: Chunk, raw: _RawRecord, max_bytes: int) -> Item | None:
    """Make the item of a record, None if it holds no image."""
    bad = chunk.problem(raw.offset, "bad_record")
    if not raw.head:
        return bad
    try:
        record = ArcWarcRecordLoader().parse_record_stream(io.BytesIO(raw.head + raw.block))
    except _ERRORS:
        return bad
    if record.rec_type not in _RECORD_TYPES:
        return None
    return _read_image(chunk, raw, record, max_bytes)


def _read_image(chunk: Chunk, raw: _RawRecord, record: Any, max_bytes: int) -> Item | None:
    metadata = _metadata(record)
    bad = chunk.problem(raw.offset, "bad_record")
    name = chunk.member(metadata["url"]) if "url" in metadata else bad.name
    body = record.raw_stream.read()
    is_cut = raw.length > len(raw.block)
    headers = record.http_headers.headers if record.http_headers else ()
    try:
        forms = (body,) if is_cut else decode_body(headers, body, max_bytes)
    except CodingError:
        return bad if _holds_image(record, body) else None
    except UnknownCodingError as error:
        if not _holds_image(record, body):
            return None
        return Item.make(name, "unknown_coding", metadata={**metadata, "coding": error.coding})
    payload = forms[-1]
    if not _holds_image(record, payload):
        return None
    if is_cut or len(payload) > max_bytes:
        return Item.make(name, "too_big", metadata=metadata)
    if not _match_digests(record.rec_headers, raw.block, forms):
        return bad
    return Item.make(name, payload or "empty", metadata=metadata)


def _holds_image(record: Any, payload: bytes) -> bool:
    kind = _header(record.http_headers, "content-type") or (record.content_type or "")
    return kind.lower().startswith("image/") or is_image(payload[:16])


def _header(headers: Any, name: str) -> str:
    return (headers.get_header(name) or "").strip().lower() if headers else ""


def _metadata(record: Any) -> dict[str, str]:
    url = record.rec_headers.get_header("WARC-Target-URI")  # In an ARC, too: warcio renames it.
    date = record.rec_headers.get_header("WARC-Date")
    said = {"url": url, "date": date, "status": _unusual_status(record.http_headers)}
    return {key: plain_text(text) for key, text in said.items() if text}


def _unusual_status(headers: Any) -> str:
    """Return the status code of a response that is not 200, "" of others."""
    code = headers.get_statuscode() if headers else ""
    return "" if code == "200" else str(code or "")


def _match_digests(headers: Any, block: bytes, forms: tuple[bytes, ...]) -> bool:
    """Verify a record's digests; writers disagree on which stage of a body is the payload."""
    of_block = headers.get_header("WARC-Block-Digest") or ""
    of_payload = headers.get_header("WARC-Payload-Digest") or ""
    return _matches(of_block, block) and any(_matches(of_payload, form) for form in forms)


def _matches(digest: str, data: bytes) -> bool:
    """Verify a digest such as sha1:BASE32; an unreadable one counts as a match."""
    algorithm, _, value = digest.strip().partition(":")
    try:
        found = hashlib.new(
            algorithm.lower().replace("-", ""), data, usedforsecurity=False
        ).digest()
    except (ValueError, TypeError):
        return True
    written = (base64.b32encode(found), base64.b64encode(found), binascii.hexlify(found))
    return value.rstrip("=").lower() in {text.decode().rstrip("=").lower() for text in written}


def _cut_records(file: IO[bytes], size: int, limit: int) -> Iterator[_RawRecord]:
    """Yield the records in order, and one without a header for each damaged place.

    After damage, reading resumes at the next place that begins like a record, or like a gzip
    member with one.

    Args:
        file: The whole file, seekable.
        size: Size of the file, bytes.
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
        except _BrokenError:
            yield _RawRecord(position, b"")
            found = _find_next(file, position + 1)
            position = size if found is None else found


class _Stream:
    """The bytes of a gzip member, or of an uncompressed file from an offset on."""

    def __init__(self, file: IO[bytes], position: int) -> None:
        self._first = position
        self._file = file
        self._raw = position
        """Position after what has been read of the file."""
        self._buffer = b""
        self._num_inflated = 0
        file.seek(position)
        start = file.read(len(_GZIP))
        file.seek(position)
        self._gzip = zlib.decompressobj(31) if start == _GZIP else None

    def begin(self) -> int | None:
        """Skip blank lines; returns the offset of the next record, None at the end."""
        while True:
            self._buffer = self._buffer.lstrip(b"\r\n")
            if self._buffer:
                return self._first if self._gzip else self._raw - len(self._buffer)
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
                raise _BrokenError

    def read(self, num_bytes: int) -> bytes:
        """Read exactly `num_bytes`."""
        pieces, missing = [], num_bytes
        while missing:
            if not self._buffer and not self._fill():
                raise _BrokenError
            pieces.append(self._buffer[:missing])
            self._buffer = self._buffer[missing:]
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def skip(self, num_bytes: int) -> None:
        """Skip exactly `num_bytes`."""
        while num_bytes:
            num_bytes -= len(self.read(min(num_bytes, _STEP)))

    def ends_well(self) -> bool:
        """Tell whether a record may end here: at a line end, or at the end of the stream.

        Reads ahead, and so verifies the checksum of a gzip member that ends here.
        """
        while not self._buffer.strip(b"\r\n") and self._fill():
            pass
        return not self._buffer or self._buffer[:1] in b"\r\n"

    def starts_arc(self) -> bool:
        """Tell whether an ARC record begins here, without the blank line before it."""
        return _is_arc(self._buffer[:_MAX_HEAD]) is not None

    def end(self) -> int:
        """Return the position in the file after the gzip member or the uncompressed rest."""
        return self._raw - (len(self._gzip.unused_data) if self._gzip else 0)

    def _fill(self) -> bool:
        """Read more into the buffer; False at the end of the member or the file."""
        if self._gzip is not None and self._gzip.eof:
            return False
        try:
            more = self._read_plain() if self._gzip is None else self._inflate(self._gzip)
        except OSError:
            raise InputError("unreadable") from None
        self._buffer += more
        return bool(more)

    def _read_plain(self) -> bytes:
        more = self._file.read(_STEP)
        self._raw += len(more)
        return more

    def _inflate(self, inflater: Any) -> bytes:
        more = b""
        while not more and not inflater.eof:
            raw = inflater.unconsumed_tail
            if not raw:
                raw = self._file.read(_STEP)
                self._raw += len(raw)
            try:
                more = inflater.decompress(raw, _STEP)
            except zlib.error:
                raise _BrokenError from None
            if not raw and not more and not inflater.eof:
                raise _BrokenError  # The file ends inside the member.
        self._num_inflated += len(more)
        if self._num_inflated > max(_BOMB_BYTES, _BOMB_RATIO * (self._raw - self._first)):
            raise _BrokenError
        return more


def _read_record(stream: _Stream, limit: int) -> _RawRecord | None:
    """Read one record; None for the header of an ARC file."""
    offset = stream.begin()
    assert offset is not None
    head = stream.read_head()
    found = _find_length(head) if _is_warc(head) else _is_arc(head)
    if found is None or _find_version(head, 1):  # A header within a header: the first one is cut.
        raise _BrokenError
    length = int(found[1])
    block = stream.read(min(length, limit))
    stream.skip(length - len(block))
    if not stream.ends_well() and not stream.starts_arc():
        raise _BrokenError  # The length in the header is wrong.
    return None if head.startswith(b"filedesc:") else _RawRecord(offset, head, block, length)


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
