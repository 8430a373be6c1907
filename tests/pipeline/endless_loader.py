"""Take batches for many epochs, or until interrupted, and print what the process holds then.

python endless_loader.py SHARDS epochs NUM
python endless_loader.py SHARDS interrupts NUM
python endless_loader.py SHARDS alarms NUM
"""

import gc
import json
import os
import random
import signal
import sys
from contextlib import closing
from itertools import islice
from pathlib import Path

from pipeline.bench.machine import memory_mib
from pipeline.dali.graph import GraphOptions
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.shards.store import Store

JIGSAW = JigsawConfig(name="jigsaw", crop_px=33, tile_px=9, num_permutations=20)
ORDER = OrderConfig(global_batch=12, num_lanes=6, window=20)
OPTIONS = GraphOptions(max_batch=12, num_threads=2, device_id=None, prefetch=3)


def open_loader(shards):
    store = Store(shards)
    order = Order(store.manifest.shard_counts, ORDER, seed=0)
    return PretextLoader(Mixture([DataSet(store, order)]), JIGSAW, seed=0, rank_info=RankInfo(0, 1))


def held():
    """What this process holds; memory that no file stands behind, in bytes."""
    gc.collect()
    process = Path("/proc/self")
    children = (process / f"task/{os.getpid()}/children").read_text().split()
    return {
        "anonymous": int(memory_mib(os.getpid(), "RssAnon") * 2**20),
        "threads": len(list((process / "task").iterdir())),
        "files": len(list((process / "fd").iterdir())),
        "children": len(children),
        "shared": "/dev/shm/" in (process / "maps").read_text(),
    }


def say(**row):
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def run_epochs(shards, num):
    """A line for every epoch, in the middle of the work, and one when all is closed."""
    loader = open_loader(shards)
    with closing(loader.batches(OPTIONS)) as batches:
        for batch in batches:
            if batch.step == loader.steps_per_epoch - 1:
                say(epoch=batch.epoch, **held())
                if batch.epoch == num - 1:
                    break
    loader.close()
    say(closed=True, **held())


def run_until_interrupted(shards, num):
    """A line at each start, and after each interrupt when all is closed; the last one is fatal."""
    for turn in range(num):
        loader = open_loader(shards)
        try:
            take_for_ever(loader, turn)
        except KeyboardInterrupt:
            if turn == num - 1:
                raise
        loader.close()
        say(interrupted=turn, state=loader.state(), **held())


def take_for_ever(loader, turn):
    with closing(loader.batches(OPTIONS)) as batches:
        next(batches)
        say(started=turn)
        for _ in batches:
            pass


def run_under_alarms(shards, num):
    """One line: how many of `num` interrupts, at random instants of the work, were not raised."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    lost = 0
    for _ in range(num):
        loader = open_loader(shards)
        try:
            with closing(loader.batches(OPTIONS)) as batches:
                next(batches)
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.02))
                # Far more batches than 20 ms are enough for.
                lost += len(list(islice(batches, 500))) == 500
        except KeyboardInterrupt:
            pass
        loader.close()
    say(lost=lost)


if __name__ == "__main__":
    _, path, mode, number = sys.argv
    modes = {
        "epochs": run_epochs,
        "interrupts": run_until_interrupted,
        "alarms": run_under_alarms,
    }
    modes[mode](path, int(number))
