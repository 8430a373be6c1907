import hashlib
import logging

import boto3
import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from pipeline.remote import transport
from pipeline.remote.cache import CacheConfig, ShardCache
from pipeline.remote.fetch import FetchConfig, FetchError, fetch_file, read_bytes
from pipeline.remote.location import FileRequest

QUICK = FetchConfig(attempts=3, backoff=0.01, timeout=5)


@pytest.fixture
def at(monkeypatch):
    """A function that makes an endpoint the one of this machine's S3."""

    def at(endpoint):
        s3fs.S3FileSystem.clear_instance_cache()  # Instances remember the endpoint.
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)

    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield at
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def moto():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    made = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    yield f"http://{host}:{port}"
    made.stop()


@pytest.fixture
def bucket(moto, at):
    """An S3 bucket with an object of 5 MB: more than one request."""
    at(moto)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")
    data = np.random.default_rng(0).bytes(5_000_000)
    client.put_object(Bucket="shards", Key="set/a b#1.tar", Body=data)
    client.close()
    return data


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("known", [True, False])
def test_objects_arrive_in_ranges(bucket, tmp_path, known):
    fetched = fetch_file(
        "s3://shards/set/a b#1.tar",
        tmp_path / "a.tar",
        num_bytes=len(bucket) if known else None,
        sha256=sha256(bucket) if known else None,
        config=QUICK,
    )
    assert (tmp_path / "a.tar").read_bytes() == bucket
    assert (fetched.num_bytes, fetched.sha256, fetched.tries) == (5_000_000, sha256(bucket), 1)


def test_objects_are_cached(bucket, tmp_path):
    wanted = FileRequest("s3://shards/set/a b#1.tar", len(bucket), sha256(bucket))
    with ShardCache(CacheConfig(folder=tmp_path, fetch=QUICK)) as cache:
        for _ in range(2):
            with cache.get(wanted.url, num_bytes=None, sha256=wanted.sha256) as pin:
                assert pin.path.read_bytes() == bucket
        assert (cache.stats().misses, cache.stats().hits) == (1, 1)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("s3://shards/set/gone.tar", "missing"),
        ("s3://no-such-bucket/a.tar", "missing"),
    ],
)
def test_missing_objects_are_one_line(bucket, url, kind):
    with pytest.raises(
        FetchError, match=rf"^{url}: .*, after 2 tries. Check the address"
    ) as caught:
        read_bytes(url, QUICK)
    assert caught.value.kind == kind


@pytest.mark.parametrize("size", [4_999_999, 5_000_001])
def test_an_object_of_another_size_is_not_taken(bucket, tmp_path, size):
    with pytest.raises(FetchError, match=f"has 5000000 bytes, not {size}, after 2") as caught:
        fetch_file(
            "s3://shards/set/a b#1.tar",
            tmp_path / "a.tar",
            num_bytes=size,
            sha256=sha256(bucket),
            config=QUICK,
        )
    assert caught.value.kind == "corrupt"
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_credentials_is_told_so(at, monkeypatch):
    at("http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(FetchError, match="Give this machine credentials") as caught:
        read_bytes("s3://shards/a.tar", QUICK)
    assert caught.value.kind == "forbidden"


@pytest.mark.parametrize(
    ("fault", "begun"),
    [
        ("503", 1),
        ("reset", 1),
        ("wait", 1),
        ("wrong", 2),
        ("no range", 2),  # More than was asked for.
    ],
)
def test_objects_arrive_whole_through_faults(server, at, tmp_path, monkeypatch, fault, begun):
    at(server.url)
    monkeypatch.setattr(transport, "_STEPS", (100_000, 100_000))
    data = server.put("/shards/a.tar", 300_000, "", fault)
    fetch_file(
        "s3://shards/a.tar",
        tmp_path / "a.tar",
        num_bytes=len(data),
        sha256=sha256(data),
        config=QUICK.model_copy(update={"timeout": 0.5}),
    )
    assert (tmp_path / "a.tar").read_bytes() == data
    assert [first for _, first in server.requests].count(0) == begun  # Else resumed.
