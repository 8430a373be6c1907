"""What the tests of a crawl's sources share: archives made of few bytes, and all their items."""

import gzip
import io
import tarfile

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipeline.ingest.sources.chunks import list_chunks, read_chunk
from pipeline.ingest.sources.source_list import parse_sources

JPEG = b"\xff\xd8\xff\xe0 no more than the start of a picture"


def chunks_of(*arguments, include=(), exclude=(), chunk_inputs=256):
    sources = parse_sources([str(text) for text in arguments], include, exclude)
    return list_chunks(sources, chunk_inputs=chunk_inputs)


def items_of(*arguments, max_bytes=10_000, **how):
    """Read all sources; names are unique and plain, and problems have no bytes."""
    items = [
        item
        for chunk in chunks_of(*arguments, **how)
        for item in counted(chunk, list(read_chunk(chunk, max_bytes=max_bytes)))
    ]
    names = [item.name for item in items]
    assert len(set(names)) == len(names)
    assert all((item.problem is None) == bool(item.data) for item in items)
    return items


def counted(chunk, items):
    """Check that a chunk promised as many inputs as it gave."""
    assert chunk.num_inputs in (None, len(items))
    return items


def pairs(items):
    """(name, bytes or problem) of each."""
    return [(item.name, item.problem or item.data) for item in items]


def tar_with(members, path=None, **header):
    """Write (name, content or TarInfo fields) to a tar; returns its bytes."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", **header) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, dict):
                for key, value in content.items():
                    setattr(info, key, value)
                content = bytes(info.size)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    if path is not None:
        path.write_bytes(sink.getvalue())
    return sink.getvalue()


def warc_records(records, *, packed):
    """Write (url, content type, payload) as responses; returns the bytes of each record."""
    made = []
    for url, kind, payload in records:
        sink = io.BytesIO()
        writer = WARCWriter(sink, gzip=packed)
        headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
        record = writer.create_warc_record(
            url,
            "response",
            payload=io.BytesIO(payload),
            http_headers=headers,
            warc_headers_dict={"WARC-Date": "2020-01-02T03:04:05Z"},
        )
        write(writer, record)
        made.append(sink.getvalue())
    return made


def write(writer, record):
    """Write a record, and close the file that warcio keeps its payload in."""
    writer.write_record(record)
    record.raw_stream.close()


def repacked(record, edit):
    """Edit the bytes of a compressed record."""
    return gzip.compress(edit(gzip.decompress(record)))
