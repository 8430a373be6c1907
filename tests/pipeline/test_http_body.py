import gzip
import zlib
from itertools import pairwise

import pyarrow as pa
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.ingest.sources.http_body import CodingError, UnknownCodingError, decode_body

JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(256)) * 8
LIMIT = 10_000


def pieces_of(data, cuts):
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(bounds)]


def gzipped(data, cuts):
    return b"".join(gzip.compress(piece, mtime=0) for piece in pieces_of(data, cuts))


def raw_deflated(data, cuts):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def brotlied(data, cuts=()):
    return pa.Codec("brotli").compress(data, asbytes=True)


def zstded(data, cuts):
    return b"".join(zstandard.compress(piece) for piece in pieces_of(data, cuts))


def chunked(data, cuts):
    found = [piece for piece in pieces_of(data, cuts) if piece]
    marks = [b"%x", b"%X;a=b", b"000%x ", b'%x;q="1"'] * (len(found) // 4 + 1)
    chunks = (m % len(c) + b"\r\n" + c + b"\r\n" for m, c in zip(marks, found, strict=False))
    return b"".join(chunks) + b"0\r\n" + b"X-Trailer: 1\r\n" * len(cuts) + b"\r\n"


CODINGS = [
    ("gzip", gzipped),
    ("x-gzip", gzipped),
    ("deflate", lambda data, cuts: zlib.compress(data)),
    ("deflate", raw_deflated),
    ("br", brotlied),
    ("zstd", zstded),
    ("identity", lambda data, cuts: data),
]
stacks = st.lists(st.sampled_from(CODINGS), max_size=3)


@given(
    payload=st.one_of(st.binary(max_size=3000), st.binary(max_size=300).map(JPEG.__add__)),
    content=stacks,
    transfer=st.one_of(stacks, stacks.map(lambda stack: [*stack, ("chunked", chunked)])),
    cuts=st.lists(st.integers(0, 5000), max_size=5),
    case=st.sampled_from([str.lower, str.upper, str.title]),
    one_header=st.booleans(),
)
@example(
    JPEG, [("gzip", gzipped)] * 2, [("br", brotlied), ("chunked", chunked)], [9], str.lower, True
)
def test_any_stack_of_codings_gives_the_payload(payload, content, transfer, cuts, case, one_header):
    body, headers = payload, []
    for header, stack in (("Content-Encoding", content), ("Transfer-Encoding", transfer)):
        for _, encode in stack:
            body = encode(body, cuts)
        names = [case(name) for name, _ in stack]
        values = [" , ".join(names)] if one_header else names
        headers += [(case(header), value) for value in values]
    forms = decode_body(headers, body, LIMIT)
    assert forms[0] == body
    assert forms[-1] == payload


@pytest.mark.parametrize(("name", "encode"), [*CODINGS[:-1], ("chunked", chunked)])
@given(place=st.integers(20, 5000), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_body_is_told_or_changes_its_content(name, encode, place, flip, cut):
    """Only brotli, raw deflate and chunks have no checksum, and then only a flip can pass."""
    body = encode(JPEG, ())
    place %= len(body)
    damaged = (
        body[:place] if cut else body[:place] + bytes([body[place] ^ flip]) + body[place + 1 :]
    )
    header = "Transfer-Encoding" if name == "chunked" else "Content-Encoding"
    if place < 20 or (name == "chunked" and place > len(body) - 6):
        return  # Too short to be known for what it is, or behind all content.
    try:
        found = decode_body([(header, name)], damaged, LIMIT)[-1]
    except CodingError:
        return
    assert found == JPEG or not cut


@pytest.mark.parametrize(
    ("header", "body", "plain"),
    [
        ("gzip", JPEG, JPEG),  # The crawler undid the coding and kept the header.
        ("deflate", JPEG, JPEG),
        ("br", JPEG, JPEG),
        ("zstd", JPEG, JPEG),
        ("utf-8", JPEG, JPEG),  # No coding at all, as some servers say.
        ("gzip, gzip", gzip.compress(JPEG), JPEG),
        ("gzip", gzip.compress(JPEG) + bytes(512), JPEG),  # Padded.
        (", gzip,,", gzip.compress(JPEG), JPEG),
        ("br", b"", b""),
    ],
)
def test_a_body_without_the_coding_of_its_header_is_unchanged(header, body, plain):
    assert decode_body([("Content-Encoding", header)], body, LIMIT)[-1] == plain


@pytest.mark.parametrize("header", ["compress", "gzip, dcb", "aes128gcm"])
def test_a_coding_that_is_not_known_is_named(header):
    with pytest.raises(UnknownCodingError, match=header.rpartition(" ")[2]):
        decode_body([("Content-Encoding", header)], b"whatever", LIMIT)


def test_a_long_stack_is_not_undone():
    with pytest.raises(UnknownCodingError, match="99 codings"):
        decode_body([("Content-Encoding", ",".join(["gzip"] * 99))], gzip.compress(JPEG), LIMIT)


@pytest.mark.parametrize(
    ("header", "encode"), [*CODINGS[:-1], ("gzip, gzip", lambda d, c: gzipped(gzipped(d, c), c))]
)
def test_a_bomb_is_inflated_up_to_the_limit(header, encode):
    bomb = encode(bytes(2**24), ())
    forms = decode_body([("Content-Encoding", header)], bomb, LIMIT)
    assert LIMIT < len(forms[-1]) <= LIMIT + 2**16 + 1
