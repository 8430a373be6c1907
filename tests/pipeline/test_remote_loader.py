"""The whole loader on shards that lie on a server."""

import json
import os
from contextlib import closing
from itertools import islice

import numpy as np
import pytest

from pipeline.config import parse
from pipeline.dali.graph import GraphOptions
from pipeline.loading.data import DataConfig
from pipeline.loading.loader import open_loader
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import OrderConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.remote.cache import CacheConfig, ShardCache
from pipeline.shards.damage import DamageError
from pipeline.shards.store import Store

JIGSAW = JigsawConfig(name="jigsaw", crop_px=33, tile_px=9, num_permutations=20)
ORDER = OrderConfig(global_batch=12, num_lanes=6, window=20)  # 16 steps of 198 samples.
FAST = {"attempts": 3, "backoff": 0.01, "timeout": 2, "budget": 20}


@pytest.fixture
def location(server, shards):
    """The URL of the shards of the fixture `shards`."""
    for path in shards.iterdir():
        server.files[f"/set/{path.name}"] = path.read_bytes()
    return f"{server.url}/set"


def take(location, cache, num, ledger=None, **changes):
    raw = {"manifest": str(location), "cache": {"folder": cache, "fetch": FAST}, **changes}
    data = parse(DataConfig, raw, "config")
    loader = open_loader(data, ORDER, JIGSAW, seed=0, rank_info=RankInfo(0, 1), ledger=ledger)
    options = GraphOptions(max_batch=12, num_threads=1, device_id=None, prefetch=2)
    with closing(loader), closing(loader.batches(options)) as batches:
        taken = list(islice(batches, num))
        stats = loader.cache.stats() if loader.cache else None
    return [(b.sample_ids.tolist(), b.views.numpy().tobytes()) for b in taken], stats


def test_views_are_those_of_local_shards_and_each_file_is_fetched_once(
    location, server, shards, tmp_path
):
    local, stats = take(shards, tmp_path / "none", 34)
    assert stats is None
    remote, stats = take(location, tmp_path / "cache", 34)
    assert remote == local
    asked = server.asked()
    assert {name for name in asked if name.endswith((".tar", ".parquet"))} == {
        f"/set/shard-00000{n}.{ending}" for n in range(3) for ending in ("tar", "parquet")
    }
    assert all(
        count == 1 for name, count in asked.items() if not name.endswith((".json", ".jsonl"))
    )
    assert stats.corrupt == stats.retries == 0
    # Another process of the node finds them all.
    again, stats = take(location, tmp_path / "cache", 34)
    assert again == local
    assert stats.hits == 6
    assert stats.misses == stats.bytes_fetched == 0


def test_faults_on_the_way_change_nothing(location, server, shards, tmp_path):
    server.faults["/set/shard-000000.tar"].extend(["reset", "503"])
    server.faults["/set/shard-000001.tar"].extend(["short"])
    server.faults["/set/shard-000002.parquet"].extend(["wrong"])
    remote, stats = take(location, tmp_path / "cache", 16)
    assert remote == take(shards, tmp_path / "none", 16)[0]
    assert stats.retries >= 3
    assert not server.faults or not any(server.faults.values())


def test_a_cached_shard_that_rots_in_use_is_fetched_again(location, shards, tmp_path):
    store = Store(location)
    whole = Store(shards).read(np.arange(198))
    with ShardCache(parse(CacheConfig, {"folder": tmp_path, "fetch": FAST}, "c")) as cache:
        store.use(cache)
        payload = store.read(np.array([5])).payloads[0]
        (path,) = tmp_path.rglob("*shard-000000.tar")
        start = path.read_bytes().index(payload.tobytes())
        kept = path.stat()
        with path.open("r+b") as file:
            file.seek(start + 100)
            byte = file.read(1)[0]
            file.seek(start + 100)
            file.write(bytes([byte ^ 1]))
        os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        again = store.read(np.arange(198))
        assert not again.damaged
        pairs = zip(again.payloads, whole.payloads, strict=True)
        assert all(a.tobytes() == b.tobytes() for a, b in pairs)
        store.close()


def test_a_shard_that_is_not_there_stops_the_run_or_is_replaced(location, server, tmp_path):
    del server.files["/set/shard-000001.tar"]
    with pytest.raises(DamageError, match=r"shard shard-000001\.tar: .*/set/shard-000001\.tar"):
        take(location, tmp_path / "a", 16)
    ledger = tmp_path / "quarantine.jsonl"
    remote, _ = take(
        location, tmp_path / "b", 16, ledger, on_damage="quarantine", max_bad_fraction=0.9
    )
    first, second, _ = Store(location).manifest.shard_counts
    ids = np.concatenate([ids for ids, _ in remote])
    assert not ((ids >= first) & (ids < first + second)).any()
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {row["reason"] for row in rows} == {"shard"}
    assert {row["shard"] for row in rows} == {"shard-000001.tar"}
