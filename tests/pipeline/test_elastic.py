import dataclasses
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from crawls import judge_with
from PIL import Image

from pipeline.ingest.config import ShardConfig
from pipeline.ingest.folder import ShardRequest, finish_folder, start_folder
from pipeline.ingest.parts import PartSpec, make_part
from pipeline.ingest.plan import make_plan
from pipeline.ingest.sources.chunks import list_chunks
from pipeline.ingest.sources.source_list import parse_sources
from pipeline.ingest.write import make_shard, shard_specs

SCRIPT = Path(__file__).with_name("delivering_ranks.py")
ROOT = Path(__file__).parents[2]
ORDER = {"global_batch": 12, "num_lanes": 6, "window": 20}
WORLD_SIZES = (1, 2, 3, 4, 6)
UNEVEN = (
    (1000, 1),
    (30, 29, 31),  # Fewer shards than ranks; the lanes of six are shorter than their shards.
)

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def deliver():
    """The script's function (job, rank, world size) in this process: rows of batches."""
    return runpy.run_path(str(SCRIPT))["batches_of"]


def make_uneven(folder, sizes):
    """Make shards of the given numbers of tiny images."""
    crawl, out = folder / "crawl", folder / "shards"
    crawl.mkdir(parents=True)
    for number in range(sum(sizes)):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((36, 34)).save(crawl / f"{number}.jpg", "JPEG")
    config = ShardConfig(samples_per_shard=sum(sizes), near_duplicates=False)
    job = ShardRequest(out, parse_sources([str(crawl)], (), ()), config)
    chunks = list_chunks(job.sources)
    start_folder(job)
    parts = [PartSpec(job.parts, chunk, config) for chunk in chunks]
    for part in parts:
        make_part(part, judge_with(config))
    plan = make_plan([part.table_path for part in parts], sum(sizes), job.plan, config)
    cut = dataclasses.replace(plan, borders=tuple(np.cumsum([0, *sizes]).tolist()))
    specs = shard_specs(cut, out, job.parts, config)
    made = finish_folder(job, cut, [make_shard(spec) for spec in specs], chunks, {})
    assert made.shard_counts.tolist() == list(sizes)
    return out


def start(*jobs):
    """Start the script on job files; it leads a process group of its own."""
    return subprocess.Popen(
        [sys.executable, SCRIPT, *jobs],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def write(path, job):
    path.write_text(json.dumps({**job, "order": ORDER}))
    return path


def rows_in(path):
    """Whole lines of a file: a killed process may leave half a line, and that alone."""
    *whole, _ = path.read_bytes().split(b"\n")
    return [row for row in map(json.loads, whole) if row != "ready"]


def by_sample(rows):
    """(epoch, step, sample) to the hash of its view and its labels; each must come once."""
    found = {}
    for row in rows:
        for sample, view, labels in zip(row["ids"], row["views"], row["labels"], strict=True):
            key = (row["epoch"], row["step"], sample)
            assert key not in found
            found[key] = (view, tuple(labels))
    return found


def position(row):
    return row["epoch"], row["step"]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, deliver):
    """Shard sizes to what every rank of every world was given, and what one alone was."""
    folder = tmp_path_factory.mktemp("worlds")
    jobs, found = [[], []], {}
    for number, sizes in enumerate(UNEVEN):
        job = {"shards": str(make_uneven(folder / f"{number}", sizes)), "until": (1, 2)}
        outs = [folder / f"{number}_{r}_of_{size}" for size in WORLD_SIZES for r in range(size)]
        ranks = [(r, size) for size in WORLD_SIZES for r in range(size)]
        plays = [(*rank, str(out)) for rank, out in zip(ranks, outs, strict=True)]
        for turn in range(2):  # Two processes take turns: neighbours run apart from each other.
            path = folder / f"{number}_{turn}.json"
            jobs[turn].append(write(path, {**job, "ranks": plays[turn::2]}))
        found[sizes] = (dict(zip(ranks, outs, strict=True)), job)
    started = [start(*turn) for turn in jobs]
    assert [process.wait(120) for process in started] == [0, 0]
    return {
        sizes: (
            {rank: rows_in(out) for rank, out in outs.items()},
            list(deliver({**job, "order": ORDER}, 0, 1)),
        )
        for sizes, (outs, job) in found.items()
    }


@pytest.mark.parametrize("sizes", UNEVEN, ids=str)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_any_world_size_delivers_the_same_global_batches(worlds, sizes, world_size):
    rows, alone = worlds[sizes]
    parts = [rows[rank, world_size] for rank in range(world_size)]
    steps = sum(sizes) // 6 // 2
    for part in parts:  # The same steps on every rank, whatever it reads.
        assert [position(row) for row in part] == [position(row) for row in alone]
        assert sum(row["epoch"] == 0 for row in part) == steps
    union = by_sample(row for part in parts for row in part)
    assert union == by_sample(alone)
    epoch = [sample for number, _, sample in union if number == 0]
    assert len(epoch) == len(set(epoch)) == steps * 12  # Each once; the rest fills no step.


def kill_at_random(folder, job, size):
    """Run a world, kill all of it at one instant; returns the rows of each rank."""
    folder.mkdir()
    go, outs = folder / "go", [folder / f"{rank}" for rank in range(size)]
    ranks = [
        start(write(out.with_suffix(".json"), {**job, "ranks": [(r, size, str(out))]}))
        for r, out in enumerate(outs)
    ]
    try:
        wait_until(lambda: all(out.exists() and out.read_bytes() for out in outs), ranks)
        go.touch()
        wait_until(lambda: all(rows_in(out) for out in outs), ranks)
        time.sleep(random.uniform(0, 0.8))
        assert [process.poll() for process in ranks] == [None] * size
    finally:
        for process in ranks:
            os.killpg(process.pid, signal.SIGKILL)
    assert [process.wait(30) for process in ranks] == [-signal.SIGKILL] * size
    return [rows_in(out) for out in outs]


def wait_until(happened, processes):
    deadline = time.monotonic() + 60
    while not happened():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_worlds_go_on_bit_for_bit_at_other_sizes(shards, deliver, tmp_path):
    kept, state = [], None
    for size in (2, 3):
        go = str(tmp_path / f"{size}" / "go")
        job = {"shards": str(shards), "state": state, "go": go, "pause": 0.01}
        parts = kill_at_random(tmp_path / f"{size}", job, size)
        # A checkpoint holds the one position that all ranks have passed.
        state = min((part[-1]["state"] for part in parts), key=lambda s: (s["epoch"], s["step"]))
        committed = (state["epoch"], state["step"])
        kept += [row for part in parts for row in part if position(row) < committed]
    job = {"shards": str(shards), "order": ORDER, "until": (state["epoch"] + 1, 3)}
    rest = [row for rank in range(4) for row in deliver({**job, "state": state}, rank, 4)]
    assert by_sample([*kept, *rest]) == by_sample(deliver(job, 0, 1))
