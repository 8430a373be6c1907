"""Play ranks of a loader, one after the other, and write a line for every batch they are given.

python delivering_ranks.py JOB.json...
"""

import json
import os
import sys
import time
from contextlib import closing
from pathlib import Path

import xxhash

from pipeline.dali.graph import GraphOptions
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.loading.quarantine import DamagePolicy
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.shards.store import Store

JIGSAW = JigsawConfig(name="jigsaw", crop_px=33, tile_px=9, num_permutations=20)


def open_loader(job, rank, world_size):
    store = Store(job["shards"])
    order = Order(store.manifest.shard_counts, OrderConfig(**job["order"]), seed=0)
    policy = DamagePolicy(job.get("on_damage", "error"), 0.5, None)
    rank_info = RankInfo(rank, world_size)
    loader = PretextLoader(
        Mixture([DataSet(store, order)]), JIGSAW, seed=0, rank_info=rank_info, policy=policy
    )
    if job.get("state"):
        loader.restore(job["state"])
    return loader


def batches_of(job, rank, world_size):
    """What a rank is given, up to the first batch of `until` (epoch, step); None: for ever."""
    loader = open_loader(job, rank, world_size)
    options = GraphOptions(
        max_batch=loader.max_batch,
        num_threads=1,
        device_id=None,
        prefetch=job.get("prefetch", 2),
    )
    until = tuple(job["until"]) if job.get("until") else (sys.maxsize, 0)
    with closing(loader.batches(options)) as batches:
        for batch in batches:
            if (batch.epoch, batch.step) >= until:
                return
            yield {
                "epoch": batch.epoch,
                "step": batch.step,
                "ids": batch.sample_ids.tolist(),
                "views": [xxhash.xxh3_64_intdigest(v.tobytes()) for v in batch.views.numpy()],
                "labels": batch.labels.tolist(),
                "state": loader.state(),
            }


def main(job):
    for rank, world_size, out in job["ranks"]:
        with Path(out).open("ab") as file:
            file.write(b'"ready"\n')
            file.flush()
            while job.get("go") and not Path(job["go"]).exists():
                time.sleep(0.005)
            for row in batches_of(job, rank, world_size):
                file.write(json.dumps(row).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                time.sleep(job.get("pause", 0))


if __name__ == "__main__":
    for path in sys.argv[1:]:
        main(json.loads(Path(path).read_text()))
