import gc
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import pytest

from pipeline.dali.graph import GraphOptions
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.shards.damage import DamageError
from pipeline.shards.store import Store

SCRIPT = Path(__file__).with_name("endless_loader.py")
ROOT = Path(__file__).parents[2]
JIGSAW = JigsawConfig(name="jigsaw", crop_px=33, tile_px=9, num_permutations=20)
MB = 2**20


@pytest.fixture
def start():
    """Start the script; what a failed test leaves of it is killed."""
    with ExitStack() as started:

        def run(*arguments):
            process = subprocess.Popen(
                [sys.executable, "-u", SCRIPT, *map(str, arguments)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield run


def next_row(process):
    ready, _, _ = select.select([process.stdout], [], [], 60)
    assert ready, "no line within a minute"
    return json.loads(process.stdout.readline())


@pytest.mark.multiprocess
def test_ten_epochs_take_no_more_memory_threads_or_files_than_three(start, shards):
    process = start(shards, "epochs", 10)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    *epochs, closed = map(json.loads, out.splitlines())
    assert [row["epoch"] for row in epochs] == list(range(10))
    for name in ("threads", "files", "children"):
        assert len({row[name] for row in epochs}) == 1, name
    assert epochs[9]["anonymous"] - epochs[2]["anonymous"] < 4 * MB
    assert closed["threads"] < epochs[0]["threads"]
    assert closed["files"] < epochs[0]["files"]
    for row in (*epochs, closed):
        assert not row["children"]
        assert not row["shared"]


@pytest.mark.multiprocess
def test_an_interrupt_ends_within_seconds_and_leaves_nothing(start, shards):
    process = start(shards, "interrupts", 4)
    rows = []
    for turn in range(4):
        assert next_row(process) == {"started": turn}
        time.sleep(random.uniform(0, 0.3))
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        if turn < 3:
            rows.append(next_row(process))
        else:
            _, err = process.communicate(timeout=60)
        assert time.monotonic() - sent < 30  # Well under a second, but on a busy machine.
    assert process.returncode == -signal.SIGINT
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert all(row["state"]["epoch"] + row["state"]["step"] > 0 for row in rows)
    # The first graph starts what all later ones share.
    assert len({(row["threads"], row["files"]) for row in rows}) == 1
    assert not any(row["children"] or row["shared"] for row in rows)
    with pytest.raises(ProcessLookupError):  # No process is left of its session.
        os.killpg(process.pid, 0)


@pytest.mark.multiprocess
def test_no_interrupt_is_lost_whatever_it_interrupts(start, shards):
    process = start(shards, "alarms", 150)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out) == {"lost": 0}


def num_threads():
    """Threads of this process, also those that Python does not know of."""
    gc.collect()
    return len(list(Path("/proc/self/task").iterdir()))


def take(loader, num):
    options = GraphOptions(max_batch=loader.max_batch, num_threads=3, device_id=None, prefetch=3)
    with closing(loader.batches(options)) as batches:
        return len(list(islice(batches, num)))


def loader_of(folder):
    store = Store(folder)
    config = OrderConfig(global_batch=12, num_lanes=6, window=20)
    data = Mixture([DataSet(store, Order(store.manifest.shard_counts, config, seed=0))])
    return PretextLoader(data, JIGSAW, seed=0, rank_info=RankInfo(0, 1))


def test_threads_end_with_the_batches(shards):
    take(loader_of(shards), 1)  # What the first graph starts for the process stays.
    before = num_threads()
    options = GraphOptions(max_batch=12, num_threads=3, device_id=None, prefetch=3)
    batches = loader_of(shards).batches(options)
    next(batches)
    assert num_threads() > before
    batches.close()
    assert num_threads() == before


def test_threads_end_with_an_error(own_shards):
    take(loader_of(own_shards), 1)
    before = num_threads()
    for tar in own_shards.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    for _ in range(3):
        with pytest.raises(DamageError):
            take(loader_of(own_shards), 1)
    assert num_threads() == before


def test_mappings_end_with_the_loader(own_shards):
    loader = loader_of(own_shards)
    take(loader, 16)
    assert str(own_shards) in Path("/proc/self/maps").read_text()
    loader.close()
    gc.collect()
    assert str(own_shards) not in Path("/proc/self/maps").read_text()
