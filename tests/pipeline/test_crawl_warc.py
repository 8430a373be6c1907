import gzip
import hashlib
import io
import zlib

import pyarrow as pa
import pytest
import zstandard
from crawl_inputs import JPEG, items_of, pairs, repacked, warc_records, write
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

PAGES = [
    ("http://h/1.jpg", "image/jpeg", JPEG + b"1"),
    ("http://h/page", "text/html", b"<html>"),
    ("http://h/2", "application/octet-stream", JPEG + b"2"),
    ("http://h/3.jpg", "image/jpeg", JPEG + b"3"),
]
IMAGES = [
    ("http://h/1.jpg", JPEG + b"1"),
    ("http://h/2", JPEG + b"2"),
    ("http://h/3.jpg", JPEG + b"3"),
]


def expected(name, lost=(), offset=0):
    """Every image but the lost ones, whose place is the bad record's."""
    found = [(f"{name}!{url}", data) for url, data in IMAGES]
    for number in lost:
        found[number] = (f"{name}!@{offset}", "bad_record")
    return found


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_records_with_images_are_inputs(tmp_path, name):
    (tmp_path / name).write_bytes(b"".join(warc_records(PAGES, packed=name.endswith("gz"))))
    items = items_of(tmp_path / name)
    assert pairs(items) == expected(name)
    assert items[0].metadata == {"url": "http://h/1.jpg", "date": "2020-01-02T03:04:05Z"}


def test_other_records_are_no_inputs(tmp_path):
    sink = io.BytesIO()
    writer = WARCWriter(sink, gzip=True)
    write(writer, writer.create_warcinfo_record("a", {"software": "none"}))
    request = StatusAndHeaders("GET / HTTP/1.1", [("Host", "h")], is_http_request=True)
    write(writer, writer.create_warc_record("http://h/", "request", http_headers=request))
    write(writer, writer.create_revisit_record("http://h/", "sha1:" + "A" * 32, "http://h/", ""))
    for kind, data in (("image/png", b"svg"), ("text/plain", JPEG), ("text/plain", b"BM no")):
        write(
            writer,
            writer.create_warc_record(
                f"file:{kind}", "resource", payload=io.BytesIO(data), warc_content_type=kind
            ),
        )
    (tmp_path / "a.warc.gz").write_bytes(sink.getvalue())
    assert pairs(items_of(tmp_path / "a.warc.gz")) == [
        ("a.warc.gz!file:image/png", b"svg"),
        ("a.warc.gz!file:text/plain", JPEG),
    ]


def http(head, body):
    return b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n" + head + b"\r\n\r\n" + body


def raw_record(block, url="http://h/1.jpg", more=""):
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n{more}"
    return f"{head}Content-Length: {len(block)}\r\n\r\n".encode() + block + b"\r\n\r\n"


CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"5\r\n" + JPEG[:5] + b"\r\n%x\r\n" % (len(JPEG) - 5) + JPEG[5:] + b"\r\n0\r\n\r\n"


def chunk(body):
    return b"%x;a=b\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


packer = zlib.compressobj(9, zlib.DEFLATED, -15)  # Without the header of zlib.
RAW_DEFLATED = packer.compress(JPEG) + packer.flush()
BR_OF_GZIP = pa.Codec("brotli").compress(gzip.compress(JPEG), asbytes=True)


@pytest.mark.parametrize(
    ("head", "body", "what"),
    [
        (CHUNKED, CHUNKS, JPEG),
        (CHUNKED, CHUNKS[:-5], "bad_record"),  # The last chunk is missing.
        (CHUNKED, CHUNKS.replace(b"5\r\n", b"9\r\n", 1), "bad_record"),
        (CHUNKED, JPEG, JPEG),  # The crawler undid the chunks and kept the header.
        (b"Content-Encoding: gzip", gzip.compress(JPEG, mtime=0), JPEG),
        (b"Content-Encoding: gzip", gzip.compress(JPEG, mtime=0)[:-9], "bad_record"),
        (b"Content-Encoding: gzip", JPEG, JPEG),
        (b"Content-Encoding: gzip", gzip.compress(bytes(2**24), mtime=0), "too_big"),
        (b"Content-Encoding: BR", pa.Codec("brotli").compress(JPEG, asbytes=True), JPEG),
        (b"Content-Encoding: zstd", zstandard.compress(JPEG), JPEG),
        (b"Content-Encoding: deflate", zlib.compress(JPEG), JPEG),
        (b"Content-Encoding: deflate", RAW_DEFLATED, JPEG),
        (b"Content-Encoding: gzip, gzip", gzip.compress(gzip.compress(JPEG)), JPEG),
        (b"Content-Encoding: gzip\r\nContent-Encoding: br", BR_OF_GZIP, JPEG),
        (b"Content-Encoding: x-gzip", gzip.compress(JPEG[:9]) + gzip.compress(JPEG[9:]), JPEG),
        (CHUNKED, CHUNKS[:-2] + b"X-Checksum: 1\r\nX-More: 2\r\n\r\n", JPEG),
        (b"Transfer-Encoding: gzip, Chunked", chunk(gzip.compress(JPEG)), JPEG),
        (CHUNKED + b"\r\nContent-Encoding: zstd", chunk(zstandard.compress(JPEG)), JPEG),
        (b"Content-Encoding: br", zstandard.compress(JPEG), "bad_record"),
        (b"Content-Encoding: gzip, compress", b"\x1f\x9d\x90", "unknown_coding"),
        (b"Content-Length: 0", b"", "empty"),
        (b"Server: none", JPEG * 300, "too_big"),
        (b"Server: none", JPEG * 10_000, "too_big"),  # More than is read of a record.
    ],
    ids=range(23),  # Compressed bodies hold the time they were made at.
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_bodies_are_what_http_says(tmp_path, head, body, what, pack):
    name = "a.warc.gz"
    records = [raw_record(http(head, body)), raw_record(http(b"Server: none", JPEG), "http://h/2")]
    (tmp_path / name).write_bytes(b"".join(map(pack, records)))
    place = "@0" if what == "bad_record" else "http://h/1.jpg"
    found = pairs(items_of(tmp_path / name))
    assert found == [(f"{name}!{place}", what), (f"{name}!http://h/2", JPEG)]


def test_an_unknown_coding_is_named(tmp_path):
    (tmp_path / "a.warc").write_bytes(raw_record(http(b"Content-Encoding: compress", b"LZW")))
    (item,) = items_of(tmp_path / "a.warc")
    assert (item.problem, item.metadata["coding"]) == ("unknown_coding", "compress")


@pytest.mark.parametrize(
    ("status", "kept"),
    [("200 OK", None), ("206 Partial Content", "206"), ("404 Not Found", "404"), ("503", "503")],
)
def test_an_image_counts_whatever_the_status_which_is_kept(tmp_path, status, kept):
    block = http(b"Server: none", JPEG).replace(b"200 OK", status.encode())
    (tmp_path / "a.warc").write_bytes(raw_record(block))
    (item,) = items_of(tmp_path / "a.warc")
    assert (item.data, item.metadata.get("status")) == (JPEG, kept)


@pytest.mark.parametrize("stage", range(3))
def test_a_payload_digest_may_be_of_any_stage_of_the_body(tmp_path, stage):
    stages = [chunk(zstandard.compress(JPEG)), zstandard.compress(JPEG), JPEG]
    block = http(CHUNKED + b"\r\nContent-Encoding: zstd", stages[0])
    digest = hashlib.sha256(stages[stage]).hexdigest()
    record = raw_record(block, more=f"WARC-Payload-Digest: sha256:{digest}\r\n")
    (tmp_path / "a.warc").write_bytes(record)
    assert pairs(items_of(tmp_path / "a.warc")) == [("a.warc!http://h/1.jpg", JPEG)]


@pytest.mark.parametrize("digest", ["WARC-Block-Digest", "WARC-Payload-Digest"])
@pytest.mark.parametrize("value", ["sha1:" + "A" * 32, "sha256:" + "0" * 64, "md5:" + "0" * 32])
def test_a_wrong_digest_is_a_problem(tmp_path, digest, value):
    record = raw_record(http(b"Server: none", JPEG), more=f"{digest}: {value}\r\n")
    (tmp_path / "a.warc").write_bytes(record)
    assert pairs(items_of(tmp_path / "a.warc")) == [("a.warc!@0", "bad_record")]


@pytest.mark.parametrize("packed", [False, True])
def test_a_flipped_payload_byte_is_found_by_the_digest(tmp_path, packed):
    records = warc_records(PAGES, packed=packed)

    def flip(record):
        return record.replace(JPEG + b"2", JPEG + b"x")

    records[2] = repacked(records[2], flip) if packed else flip(records[2])
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    offset = sum(map(len, records[:2]))
    assert pairs(items_of(tmp_path / "a.warc")) == expected("a.warc", [1], offset)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", ["cut", "zeros", "start", "length"])
def test_behind_a_damaged_record_the_next_one_is_found(tmp_path, packed, damage):
    records = warc_records(PAGES, packed=packed)
    third = records[2]
    match damage:
        case "cut":
            records[2] = third[: len(third) // 2]
        case "zeros":
            middle = len(third) // 2 if packed else len(third) - 30
            records[2] = third[:middle] + bytes(20) + third[middle + 20 :]
        case "start":
            records[2] = b"XXXXX" + third[5:]
        case "length":  # The header promises more than there is.

            def more(record):
                return record.replace(b"\r\nContent-Length: ", b"\r\nContent-Length: 1", 1)

            records[2] = repacked(third, more) if packed else more(third)
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    offset = sum(map(len, records[:2]))
    assert pairs(items_of(tmp_path / "a.warc")) == expected("a.warc", [1], offset)


@pytest.mark.parametrize("packed", [False, True])
def test_a_warc_cut_anywhere_keeps_what_is_whole_before(tmp_path, packed):
    records = warc_records(PAGES, packed=packed)
    whole = b"".join(records)
    ends = [0]
    for record in records:
        ends.append(ends[-1] + len(record))
    slack = 0 if packed else 4  # An uncompressed record is whole without the blank lines behind.
    for cut in range(1, len(whole), 13):
        (tmp_path / "a.warc").write_bytes(whole[:cut])
        num_whole = sum(end - slack <= cut for end in ends[1:])
        kept = [data for data in (b"1", b"", b"2", b"3")[:num_whole] if data]
        items = items_of(tmp_path / "a.warc")
        assert [item.data[-1:] for item in items if item.data] == kept
        is_inside = not ends[num_whole] - slack <= cut <= ends[num_whole]
        problems = [item.name for item in items if item.problem == "bad_record"]
        assert problems == [f"a.warc!@{ends[num_whole]}"] * is_inside


def test_one_gzip_member_of_many_records_is_read(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress(b"".join(warc_records(PAGES, packed=False))))
    assert pairs(items_of(tmp_path / "a.warc.gz")) == expected("a.warc.gz")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_arc_files_are_read(tmp_path, pack):
    version = b"1 0 none\nURL IP-address Archive-date Content-type Archive-length\n"
    parts = [b"filedesc://a.arc 0.0.0.0 20200102030405 text/plain %d\n" % len(version) + version]
    for url, data in IMAGES:
        body = http(b"Server: none", data)
        parts.append(
            b"%s 1.2.3.4 20200102030405 image/jpeg %d\n" % (url.encode(), len(body)) + body
        )
    parts[2] = parts[2].replace(b"image/jpeg 1", b"image/jpeg 9", 1)
    (tmp_path / "a.arc.gz").write_bytes(b"".join(pack(part + b"\n") for part in parts))
    items = items_of(tmp_path / "a.arc.gz")
    offset = sum(len(pack(part + b"\n")) for part in parts[:2])
    assert pairs(items) == expected("a.arc.gz", [1], offset)
    assert items[0].metadata == {"url": "http://h/1.jpg", "date": "2020-01-02T03:04:05Z"}


def test_a_url_twice_gives_two_names(tmp_path):
    (tmp_path / "a.warc").write_bytes(b"".join(warc_records(PAGES[:1] * 2, packed=False)))
    assert [item.name for item in items_of(tmp_path / "a.warc")] == [
        "a.warc!http://h/1.jpg",
        "a.warc!http://h/1.jpg#2",
    ]


@pytest.mark.parametrize("content", [b"<html>" * 500, b"\x1f\x8b\x08 no gzip", b"\n\n x"])
def test_what_is_no_warc_is_one_problem(tmp_path, content):
    (tmp_path / "a.warc.gz").write_bytes(content)
    (item,) = items_of(tmp_path / "a.warc.gz")
    assert item.problem == "bad_record"
