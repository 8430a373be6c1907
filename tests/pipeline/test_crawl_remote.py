import gzip
import io
import logging

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from crawl_inputs import JPEG, chunks_of, items_of, pairs, tar_with, warc_records
from moto.server import ThreadedMotoServer

from pipeline.config import ConfigError
from pipeline.ingest.sources import files as opened
from pipeline.ingest.sources.chunks import read_chunk
from pipeline.remote.fetch import FetchConfig


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(opened, "_FETCH", FetchConfig(attempts=3, backoff=0.01, timeout=5))


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield lambda path, data: system.pipe(path, data)
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def archives():
    table = pa.table({"image": [JPEG, None]})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return {
        "a.tar": tar_with([("cat/1.jpg", JPEG)]),
        "b.tar.gz": gzip.compress(tar_with([("2.jpg", JPEG)])),
        "c.warc.gz": b"".join(warc_records([("http://h/3", "image/jpeg", JPEG)], packed=True)),
        "d.parquet": sink.getvalue(),
        "e.jpg": JPEG,
    }


FOUND = [
    ("e.jpg", JPEG),
    ("a.tar!cat/1.jpg", JPEG),
    ("b.tar.gz!2.jpg", JPEG),
    ("c.warc.gz!http://h/3", JPEG),
    ("d.parquet!0", JPEG),
    ("d.parquet!1", "empty"),
]


def test_any_store_holds_folders_images_and_archives(memory):
    for name, data in archives().items():
        memory(f"/set/{name}", data)
    memory("/tree/dog/1.jpg", b"one")
    memory("/tree/dog/2.jpg", b"")
    memory("/tree/3.jpg", b"x" * 10_001)
    assert pairs(items_of("memory://set/*")) == [(f"set/{name}", what) for name, what in FOUND]
    items = items_of("memory://tree")
    assert [(item.name, item.problem or item.data, item.label) for item in items] == [
        ("tree/3.jpg", "too_big", None),
        ("tree/dog/1.jpg", b"one", "dog"),
        ("tree/dog/2.jpg", "empty", "dog"),
    ]


def test_what_changes_in_a_store_is_a_problem(memory):
    for name in ("tree/1.jpg", "tree/2.jpg", "tree/3.jpg"):
        memory(f"/{name}", b"data")
    memory("/a.tar", tar_with([("1.jpg", b"1")]))
    chunks = chunks_of("memory://tree", "memory://a.tar")
    memory("/tree/1.jpg", b"longer data")
    fsspec.filesystem("memory").rm("/tree/2.jpg")
    memory("/a.tar", tar_with([("1.jpg", bytes(20_000))]))
    found = [pair for chunk in chunks for pair in pairs(read_chunk(chunk, max_bytes=10_000))]
    assert found == [
        ("tree/1.jpg", "changed"),
        ("tree/2.jpg", "changed"),
        ("tree/3.jpg", b"data"),
        ("a.tar!@0", "changed"),
    ]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://gone/a.tar", r"source \(=memory://gone/a.tar\) cannot be read: no such file"),
        ("memory://gone/*.tar", "cannot be read: no such file"),
    ],
)
def test_a_missing_source_is_named(memory, url, message):
    with pytest.raises(ConfigError, match=message):
        chunks_of(url)


@pytest.fixture
def s3(monkeypatch):
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    made = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    s3fs.S3FileSystem.clear_instance_cache()
    host, port = made.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="crawl")
    yield lambda key, data: client.put_object(Bucket="crawl", Key=key, Body=data)
    client.close()
    s3fs.S3FileSystem.clear_instance_cache()
    made.stop()


def test_buckets_are_sources(s3):
    for name, data in archives().items():
        s3(f"set/{name}", data)
    for i in range(20):
        s3(f"tree/cat/{i:02} #.jpg", b"data %d" % i)
    assert pairs(items_of("s3://crawl/set/*")) == [(f"set/{name}", what) for name, what in FOUND]
    items = items_of("s3://crawl/tree", chunk_inputs=7)
    assert pairs(items) == [(f"tree/cat/{i:02} #.jpg", b"data %d" % i) for i in range(20)]
    assert {item.label for item in items} == {"cat"}
    chunks = chunks_of("s3://crawl/set/a.tar")
    s3("set/a.tar", tar_with([("dog/1.jpg", JPEG)]))  # As many bytes, another tag.
    assert pairs(read_chunk(chunks[0], max_bytes=10)) == [("a.tar!@0", "changed")]


def test_files_over_http_are_sources(server):
    for name, data in archives().items():
        server.files[f"/set/{name}"] = data
    server.faults["/set/a.tar"].extend(["503", "reset"])
    urls = [f"{server.url}/set/{name}?key=secret" for name in archives()]
    found = [pair for url in urls for pair in pairs(items_of(url))]
    assert sorted(found) == sorted(FOUND)
    braces = items_of(f"{server.url}/set/{{a.tar,e.jpg}}")
    assert [item.name for item in braces] == ["set/e.jpg", "set/a.tar!cat/1.jpg"]


def test_a_signature_is_no_part_of_what_a_chunk_is(server):
    server.files["/a.tar"] = archives()["a.tar"]
    first, second = (chunks_of(f"{server.url}/a.tar?sign={i}") for i in range(2))
    assert first[0].id == second[0].id


def test_paths_of_a_remote_table_lie_beside_it(server):
    server.files["/set/1.jpg"] = JPEG
    server.files["/set/a.jsonl"] = b'{"path": "1.jpg"}\n{"path": "2.jpg"}\n{"path": "../b"}\n'
    found = [what for _, what in pairs(items_of(f"{server.url}/set/a.jsonl"))]
    assert found == [JPEG, "missing", "bad_record"]


def test_http_has_no_folders(server):
    with pytest.raises(ConfigError, match="is of no kind known by its name"):
        chunks_of(f"{server.url}/set/")
    with pytest.raises(ConfigError, match=r"a\.tar\) cannot be read: missing \(HTTP status 404\)"):
        chunks_of(f"{server.url}/a.tar")
