"""Bodies of HTTP responses: transfer and content codings undone, in the standard's order.

RFC 9112, 6.1 and RFC 9110, 8.4: a coding is listed when it is applied, so the last one comes off
first, all transfer codings before the content codings. Libraries of WARCs each miss some of this.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from pipeline.ingest.gate.formats import is_image

MAX_FRAMING = 2**16
"""Bytes that headers, chunk marks and codings may add to an image."""
_MAX_CODINGS = 8
_match_chunk_head = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n").match
_GZIP = b"\x1f\x8b"
_is_zstd = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18").match


class CodingError(ValueError):
    """A body that is not whole in the coding that its header names."""


class UnknownCodingError(Exception):
    """A body in a coding that is not known, or in too many."""

    def __init__(self, coding: str) -> None:
        super().__init__(coding)
        self.coding = coding


def decode_body(headers: Sequence[tuple[str, str]], body: bytes, limit: int) -> tuple[bytes, ...]:
    """Undo the codings that the headers of a response name.

    Crawlers that store bodies already decoded often keep the headers: a body that is not in the
    named coding, as far as the coding can be told, stays unchanged.

    Args:
        headers: Names and values, in order.
        body: As the server sent it.
        limit: Bytes of the plain body from which on decoding may stop.

    Returns:
        The body at each stage, the first as it came, the last plain; the last has more than
        `limit` bytes if the plain body has.

    Raises:
        CodingError: The body is damaged.
        UnknownCodingError: It is in a coding that is not known.
    """
    codings = [*_codings(headers, "content-encoding"), *_codings(headers, "transfer-encoding")]
    forms = [body]
    if len(codings) > _MAX_CODINGS:
        raise UnknownCodingError(f"{len(codings)} codings")
    while codings and len(forms[-1]) <= limit + MAX_FRAMING:
        coding = codings.pop()
        encoded = forms[-1]
        room = limit + (MAX_FRAMING if codings else 0)  # Of a form that is coded again.
        decoded = _undo(coding, encoded, room + 1)
        if decoded is not encoded:
            forms.append(decoded)
    return tuple(forms)


def _codings(headers: Sequence[tuple[str, str]], name: str) -> Iterator[str]:
    """Yield the codings of all headers of this name, in the order in which they were applied."""
    for key, value in headers:
        if key.strip().lower() == name:
            for element in value.split(","):
                coding = element.partition(";")[0].strip().lower()
                if coding not in ("", "identity"):
                    yield coding


def _undo(coding: str, data: bytes, most: int) -> bytes:
    """Undo one coding, up to `most` bytes; returns `data` itself where it is not coded so."""
    known = _CODINGS.get(coding)
    if not data or (known is None and is_image(data[:16])):
        return data
    if known is None:
        raise UnknownCodingError(coding)
    may_be, decode = known
    if not may_be(data):
        return data
    try:
        return decode(data, most)
    except (zlib.error, OSError, CodingError):
        if is_image(data[:16]):
            return data
        raise CodingError(coding) from None


def _join_chunks(data: bytes, most: int) -> bytes:
    """Join the chunks of a body; what follows the last one, such as trailers, is no content."""
    pieces: list[bytes] = []
    position = 0
    while head := _match_chunk_head(data, position):
        start, size = head.end(), int(head[1], 16)
        if not size:
            return b"".join(pieces)
        position = start + size + 2
        if data[start + size : position] != b"\r\n":
            break
        pieces.append(data[start : start + size])
    raise CodingError


def _inflate(data: bytes, most: int, window: int) -> tuple[bytes, bytes]:
    """Inflate one whole stream; returns its content and what follows it."""
    inflater = zlib.decompressobj(window)
    plain = inflater.decompress(data, most)
    if not inflater.eof and len(plain) < most:
        raise CodingError
    return plain, inflater.unused_data


def _gunzip(data: bytes, most: int) -> bytes:
    """Inflate all members of a gzip file; other bytes after a member are passed over."""
    pieces, size = [], 0
    while data.startswith(_GZIP) and size < most:
        plain, data = _inflate(data, most - size, 31)
        pieces.append(plain)
        size += len(plain)
    return b"".join(pieces)


def _undeflate(data: bytes, most: int) -> bytes:
    """Inflate a zlib stream, as the standard wants it, or a raw one, as many servers send it."""
    try:
        return _inflate(data, most, 15)[0]
    except (zlib.error, CodingError):
        return _inflate(data, most, -15)[0]


def _decompress(codec: str) -> Callable[[bytes, int], bytes]:
    def decompress(data: bytes, most: int) -> bytes:
        with pa.CompressedInputStream(pa.BufferReader(data), codec) as stream:
            return bytes(stream.read(most))

    return decompress


def _always(data: bytes) -> bool:
    """Stand for codings whose data cannot be told by its first bytes."""
    return True


def _is_gzip(data: bytes) -> bool:
    return data.startswith(_GZIP)


_gzip = (_is_gzip, _gunzip)
_CODINGS: dict[str, tuple[Callable[[bytes], object], Callable[[bytes, int], bytes]]] = {
    "chunked": (_match_chunk_head, _join_chunks),
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": (_always, _undeflate),
    "br": (_always, _decompress("brotli")),
    "zstd": (_is_zstd, _decompress("zstd")),
}
"""How to tell that data is in a coding, and how to undo it."""
