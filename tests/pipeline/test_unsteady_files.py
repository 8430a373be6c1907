"""Shards that change while they are open, and limits of the process."""

import resource
import subprocess
import sys
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from pipeline.dali.graph import GraphOptions
from pipeline.ingest.config import ShardConfig
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.loading.quarantine import DamagePolicy
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.shards.damage import DamageError
from pipeline.shards.index import read_index
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store

JIGSAW = JigsawConfig(name="jigsaw", crop_px=33, tile_px=9, num_permutations=20)
ORDER = OrderConfig(global_batch=12, num_lanes=6, window=20)  # 16 steps of 198 samples.

CUT_WHILE_OPEN = """
import os, sys
from pathlib import Path
import numpy as np
from pipeline.shards.store import Store
store = Store(sys.argv[1])
assert not store.read(np.arange(198)).damaged
for tar in Path(sys.argv[1]).glob("*.tar"):
    os.truncate(tar, tar.stat().st_size // 2)
damaged = store.read(np.arange(198)).damaged
print(len(damaged), {damage.reason for damage in damaged.values()})
"""


def loader_of(folder, *, rank=0, world_size=1, on_damage="quarantine"):
    store = Store(folder)
    data = Mixture([DataSet(store, Order(store.manifest.shard_counts, ORDER, seed=0))])
    policy = DamagePolicy(on_damage, 0.9, None)
    return PretextLoader(data, JIGSAW, seed=0, rank_info=RankInfo(rank, world_size), policy=policy)


def rows_of(loader, num, prefetch=3):
    options = GraphOptions(
        max_batch=loader.max_batch, num_threads=1, device_id=None, prefetch=prefetch
    )
    with closing(loader.batches(options)) as batches:
        for batch in islice(batches, num):
            for sample_id, view in zip(batch.sample_ids.tolist(), batch.views.numpy(), strict=True):
                yield batch.epoch, batch.step, sample_id, view.tobytes()


def images_of(folder):
    """(id, tar, offset, size) of every image."""
    start = 0
    for info in read_manifest(folder).shards:
        index = read_index(folder / info.index, sha256=info.index_sha256)
        for row in range(info.num_samples):
            yield start + row, folder / info.name, int(index.offsets[row]), int(index.sizes[row])
        start += info.num_samples


@pytest.mark.multiprocess
def test_a_shard_that_is_cut_while_it_is_open_is_damage_and_not_the_end(own_shards):
    done = subprocess.run(
        [sys.executable, "-c", CUT_WHILE_OPEN, own_shards],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, reasons = done.stdout.split(maxsplit=1)
    assert reasons.strip() == "{'hash'}"
    assert 90 < int(count) < 108  # The half that is gone.


def test_more_shards_than_file_descriptors_are_no_damage(make_shards, tmp_path):
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    for number in range(100):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((36, 34)).save(crawl / f"{number}.jpg", "JPEG")
    make_shards(crawl, tmp_path / "shards", ShardConfig(samples_per_shard=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (90, hard))
    try:
        damaged = Store(tmp_path / "shards").read(np.arange(100)).damaged
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not damaged, next(iter(damaged.values()))


def test_bytes_that_change_after_the_check_are_never_delivered(own_shards, shards):
    clean = {row[:3]: row[3] for row in rows_of(loader_of(shards), 16)}
    got = rows_of(loader_of(own_shards, on_damage="error"), 16, prefetch=4)
    seen = list(islice(got, 36))
    for _, tar, offset, size in images_of(own_shards):
        with tar.open("r+b") as file:  # Keep the header: the image decodes to something else.
            file.seek(offset)
            scan = file.read(size).index(b"\xff\xda") + 14
            file.seek(offset + scan)
            file.write(bytes([0x55]) * (size - scan - 2))
    with pytest.raises(DamageError, match="do not match their hash"):
        seen.extend(got)
    assert len(seen) > 36  # What was ahead in the graph.
    assert all(clean[row[:3]] == row[3] for row in seen)


def test_partly_broken_images_are_replaced_alike_on_every_world_size(own_shards, vouch):
    """Whether a view can be made depends on the part of the image that is decoded for it."""
    for sample_id, tar, offset, size in images_of(own_shards):
        if sample_id % 3 == 0:
            with tar.open("r+b") as file:
                file.seek(offset + int(size * 0.85))
                file.write(bytes(size - int(size * 0.85)))
    vouch(own_shards)
    found, replaced = [], []
    for world_size in (1, 2, 6):
        loaders = [loader_of(own_shards, rank=r, world_size=world_size) for r in range(world_size)]
        found.append({row for loader in loaders for row in rows_of(loader, 18)})
        replaced.append(sum(loader.counters.replaced for loader in loaders))
    assert found[0] == found[1] == found[2]
    assert replaced[0] == replaced[1] == replaced[2] > 0
    # Some of the broken images have a view in one epoch or the other.
    delivered = {row[2] for row in found[0]}
    assert any(sample_id % 3 == 0 for sample_id in delivered)
