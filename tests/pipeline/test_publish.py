import logging
import urllib.request

import boto3
import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from pipeline.config import ConfigError
from pipeline.remote.cache import CacheConfig, ShardCache
from pipeline.shards import publish as module
from pipeline.shards.publish import PublishError, check_target, publish
from pipeline.shards.store import Store

URL = "s3://crawl/sets/first one"


def quiet(done, total, note):
    assert 0 <= done <= total


@pytest.fixture
def bucket(monkeypatch):
    """An S3 server of this machine with an empty bucket; returns its client."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # All servers of a process share what they hold.
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    fsspec.config.conf.pop("s3", None)
    fsspec.filesystem("s3").clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="crawl")
    yield client
    client.close()
    server.stop()


def objects(client):
    listed = client.list_objects_v2(Bucket="crawl").get("Contents", ())
    return {row["Key"].rpartition("/")[2]: row for row in listed}


def test_published_shards_are_read_from_there(bucket, shards, tmp_path):
    publish(shards, URL, on_progress=quiet)
    there = objects(bucket)
    assert {"manifest.json", "ledger.jsonl", "shard-000002.tar"} <= set(there)
    assert there["manifest.json"]["LastModified"] == max(o["LastModified"] for o in there.values())
    store, here = Store(URL), Store(shards)
    cache = ShardCache(CacheConfig(folder=tmp_path / "cache"))
    store.use(cache)
    ids = np.arange(198)
    ours, theirs = here.read(ids), store.read(ids)
    assert not theirs.damaged
    assert all((a == b).all() for a, b in zip(ours.payloads, theirs.payloads, strict=True))
    store.close()
    cache.close()


def test_no_manifest_is_there_before_all_of_its_shards(bucket, own_shards, monkeypatch):
    """Whatever fails, a reader of the URL finds nothing or everything."""
    monkeypatch.setattr(module, "_BACKOFF", 0.001)
    (own_shards / "shard-000001.parquet").unlink()
    (own_shards / "shard-000001.parquet").mkdir()  # No file to copy.
    with pytest.raises(PublishError, match=r"shard-000001\.parquet could not be copied"):
        publish(own_shards, URL, on_progress=quiet)
    assert "manifest.json" not in objects(bucket)


def test_what_was_copied_is_not_copied_again(bucket, own_shards):
    publish(own_shards, URL, on_progress=quiet)
    before = objects(bucket)
    bucket.delete_object(Bucket="crawl", Key="sets/first one/shard-000000.tar")
    bucket.delete_object(Bucket="crawl", Key="sets/first one/manifest.json")
    publish(own_shards, URL, on_progress=quiet)
    after = objects(bucket)
    assert after.keys() == before.keys()
    kept = [name for name in before if name not in ("shard-000000.tar", "manifest.json")]
    assert all(after[name]["LastModified"] == before[name]["LastModified"] for name in kept)


def test_another_set_at_the_url_is_left_alone(bucket, own_shards):
    bucket.put_object(Bucket="crawl", Key="sets/first one/manifest.json", Body=b"{}")
    with pytest.raises(ConfigError, match="holds another set of shards"):
        publish(own_shards, URL, on_progress=quiet)
    assert set(objects(bucket)) == {"manifest.json"}


@pytest.mark.parametrize("url", ["http://host/set", "https://host/set", "ftp://host/set"])
def test_places_that_cannot_be_written_to_are_refused_at_once(url):
    with pytest.raises(ConfigError, match=r"HTTP|scheme"):
        check_target(url)
