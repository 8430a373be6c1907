"""WARC and ARC files as sources: a response or resource with an image is an input."""

import base64
import binascii
import hashlib
import io
import logging
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from warcio.bufferedreaders import ChunkedDataException, ChunkedDataReader
from warcio.exceptions import ArchiveLoadFailed
from warcio.recordloader import ArcWarcRecordLoader
from warcio.statusandheaders import StatusAndHeadersParserException

from pipeline.ingest.gate.formats import is_image
from pipeline.ingest.item import Item
from pipeline.ingest.sources.files import InputError, open_archive
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.names import Names, member_name, place_name
from pipeline.shards.samples import plain_text

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


logging.getLogger("warcio").setLevel(logging.ERROR)  # It tells of every space in a URL.
_MAX_HEADERS = 2**16
"""Bytes of HTTP headers and chunk marks on top of an image."""
_ERRORS = (
    *(ArchiveLoadFailed, StatusAndHeadersParserException, ChunkedDataException, EOFError),
    *(ValueError, AssertionError, IndexError, AttributeError, zlib.error),
)
_is_chunk = re.compile(rb"[0-9A-Fa-f]{1,8}[ \t]*(;[^\r\n]*)?\r\n").match
_COMPRESSED = {"gzip": b"\x1f\x8b", "x-gzip": b"\x1f\x8b", "deflate": b"\x78"}
_KINDS = ("response", "resource")


def read_warc(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read the images among the records; a damaged record is a problem named by its offset.

    What the HTTP headers call an image counts as one, and so does what begins like one. Digests
    are compared where the record has them.
    """
    file = chunk.files[0]
    archive, names, offset = chunk.name(file), Names(), 0
    try:
        if file.size == 0:
            raise InputError("empty")
        with open_archive(chunk.location(file), file) as opened:
            size = opened.seek(0, io.SEEK_END)
            for raw in cut_records(opened, size, max_bytes + _MAX_HEADERS):
                offset = raw.offset
                item = _read(archive, raw, max_bytes)
                if item is not None and _is_wanted(chunk, archive, item):
                    yield _renamed(item, names.take(item.name))
    except InputError as error:
        yield Item(names.take(place_name(archive, offset)), problem=error.reason)


def _is_wanted(chunk: Chunk, archive: str, item: Item) -> bool:
    return item.problem == "bad_record" or chunk.wants(item.name.removeprefix(f"{archive}!"))


def _renamed(item: Item, name: str) -> Item:
    return Item(name, item.data, item.problem, metadata=item.metadata)


def _read(archive: str, raw: RawRecord, max_bytes: int) -> Item | None:
    """Make the item of a record; None where it holds no image."""
    bad = Item(place_name(archive, raw.offset), problem="bad_record")
    if not raw.head:
        return bad
    try:
        record = ArcWarcRecordLoader().parse_record_stream(io.BytesIO(raw.head + raw.block))
    except _ERRORS:
        return bad
    if record.rec_type not in _KINDS:
        return None
    return _read_image(archive, raw, record, max_bytes, bad)


def _read_image(
    archive: str, raw: RawRecord, record: Any, max_bytes: int, bad: Item
) -> Item | None:
    metadata = _metadata(record)
    url = metadata.get("url")
    name = member_name(archive, url) if url else place_name(archive, raw.offset)
    body = record.raw_stream.read()
    is_cut = raw.length > len(raw.block)
    try:
        forms = (body,) if is_cut else _decode(record.http_headers, body, max_bytes)
    except _ERRORS:
        return bad if _holds_image(record, body) else None
    payload = forms[-1]
    if not _holds_image(record, payload):
        return None
    if is_cut or len(payload) > max_bytes:
        return Item(name, problem="too_big", metadata=metadata)
    if not _are_digests_right(record.rec_headers, raw.block, forms):
        return bad
    return Item(name, payload, None if payload else "empty", metadata=metadata)


def _holds_image(record: Any, payload: bytes) -> bool:
    kind = _header(record.http_headers, "content-type") or (record.content_type or "")
    return kind.lower().startswith("image/") or is_image(payload[:16])


def _header(headers: Any, name: str) -> str:
    return (headers.get_header(name) or "").strip().lower() if headers else ""


def _decode(headers: Any, body: bytes, max_bytes: int) -> tuple[bytes, ...]:
    """Undo chunks and compression of HTTP; returns the body in all its forms, the last is plain.

    Crawlers that store bodies without chunks or compression often keep the headers that promise
    them: then the body is taken as it is.
    """
    forms = [body]
    transfer = _header(headers, "transfer-encoding")
    content = _header(headers, "content-encoding")
    if transfer == "chunked" and _is_chunk(body):
        forms.append(ChunkedDataReader(io.BytesIO(body), raise_exceptions=True).read())
    packed = forms[-1]
    start = _COMPRESSED.get(content)
    if start is not None and packed.startswith(start):
        unpacker = zlib.decompressobj(47)  # Either format.
        forms.append(unpacker.decompress(packed, max_bytes + 1))
        if not unpacker.eof and len(forms[-1]) <= max_bytes:
            raise EOFError
    return tuple(forms)


def _metadata(record: Any) -> dict[str, str]:
    url = record.rec_headers.get_header("WARC-Target-URI")  # Of an ARC, too: warcio renames it.
    date = record.rec_headers.get_header("WARC-Date")
    return {key: plain_text(text) for key, text in (("url", url), ("date", date)) if text}


def _are_digests_right(headers: Any, block: bytes, forms: tuple[bytes, ...]) -> bool:
    """Compare a record with its digests; writers disagree which form of a body is the payload."""
    of_block = headers.get_header("WARC-Block-Digest") or ""
    of_payload = headers.get_header("WARC-Payload-Digest") or ""
    return _matches(of_block, block) and any(_matches(of_payload, form) for form in forms)


def _matches(digest: str, data: bytes) -> bool:
    """Compare with a digest such as sha1:BASE32; one that cannot be read is taken for right."""
    algorithm, _, value = digest.strip().partition(":")
    try:
        found = hashlib.new(
            algorithm.lower().replace("-", ""), data, usedforsecurity=False
        ).digest()
    except (ValueError, TypeError):
        return True
    written = (base64.b32encode(found), base64.b64encode(found), binascii.hexlify(found))
    return value.rstrip("=").lower() in {text.decode().rstrip("=").lower() for text in written}
