"""WARC and ARC files as sources: a response or resource with an image is an input."""

import base64
import binascii
import hashlib
import io
import logging
import re
import zlib
from collections.abc import Iterator
from typing import Any

from warcio.bufferedreaders import ChunkedDataException, ChunkedDataReader
from warcio.exceptions import ArchiveLoadFailed
from warcio.recordloader import ArcWarcRecordLoader
from warcio.statusandheaders import StatusAndHeadersParserException

from pipeline.crawl.inputs import Chunk
from pipeline.crawl.item import Item
from pipeline.crawl.magic import is_image
from pipeline.crawl.names import Names, member_name, place_name, plain_text
from pipeline.crawl.opened import InputError, open_archive
from pipeline.crawl.warc_records import RawRecord, cut_records

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
