"""Kill readers of shards at random, resume with another number of them, count every sample."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.dali.graph import GraphOptions
from pipeline.loading.loader import PretextLoader
from pipeline.loading.mixture import DataSet, Mixture, RankInfo
from pipeline.loading.order import Order, OrderConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store

ORDER = OrderConfig(global_batch=64, num_lanes=8, window=1024)
PRETEXT = JigsawConfig(name="jigsaw", crop_px=129, tile_px=32, min_scale=0.6, num_permutations=100)
"""As in the demo: small tiles, so that many epochs pass in a minute."""
WORLD_SIZES = (2, 3)

State = dict[str, Any]
Row = dict[str, Any]

_POLL_S = 0.05
_PATIENCE_S = 300.0  # Readers wait for each other as ranks do; the first imports take a while.


@dataclass(frozen=True, slots=True)
class _ReaderTask:
    """The task of a set of readers."""

    folder: str
    seed: int
    epochs: int
    state: State | None
    """Where to resume; None is the start."""
    number: int
    """Number of the set."""
    scratch: Path

    def ledger(self, rank: int) -> Path:
        """Return the file of one reader, a line per batch."""
        return self.scratch / f"{self.number}_{rank}.jsonl"


@dataclass(frozen=True, slots=True)
class _Delivery:
    """What a set of readers delivered before it was killed or finished."""

    world_size: int
    rows: list[Row]
    """Rows of all readers before `state`."""
    state: State | None
    """The position that all readers had passed."""
    rolled_back: int
    """Images delivered after it, which the next readers deliver again."""
    seconds: float
    """From the first batch to the last."""

    @property
    def num_images(self) -> int:
        """Images that count."""
        return _num_images(self.rows)


def soak(
    folder: Path,
    scratch: Path,
    *,
    epochs: int,
    world_sizes: Sequence[int] = WORLD_SIZES,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Read shards for several epochs by processes that are killed midway.

    Each set of readers but the last is killed by SIGKILL at a random moment, all at once; the next
    one resumes at the last position that all had passed, as it would at a checkpoint. Every reader
    logs what it was given.

    Args:
        folder: Shards, or their manifest.
        scratch: New folder for the ledgers, one per process; they stay there.
        epochs: Number of epochs in all.
        world_sizes: Numbers of readers, one set after the other.
        seed: Seed of the order.
        on_progress: Called with (images delivered, images in all) several times a second.

    Returns:
        A JSON object. `lost`, `repeated` and `misplaced` count samples over all epochs and must be
        0; `remainder` samples of each epoch fill no step.
    """
    context = multiprocessing.get_context("spawn")  # DALI does not live through a fork.
    order = Order(read_manifest(folder).shard_counts, ORDER, seed=seed)
    scratch.mkdir(parents=True)
    total = epochs * order.steps_per_epoch * ORDER.global_batch
    stretches: list[_Delivery] = []
    done, state = 0, None
    for number, world_size in enumerate(world_sizes):
        left = len(world_sizes) - number
        # Killed within an even share of the remaining images.
        share = (total - done) / left * random.uniform(0.4, 1.0)
        enough = total if left == 1 else int(done + share)
        job = _ReaderTask(str(folder), seed, epochs, state, number, scratch)
        barrier = context.Barrier(world_size)
        readers = _start(context, job, barrier)
        try:
            for now in _watch(readers, [job.ledger(rank) for rank in range(world_size)]):
                on_progress(min(done + now, enough), total)
                if done + now >= enough and left > 1:
                    break
        finally:
            _kill(readers)
        stretches.append(_commit([job.ledger(rank) for rank in range(world_size)], state))
        state, done = stretches[-1].state, done + stretches[-1].num_images
    return _result(stretches, order, epochs)


def read(job: _ReaderTask, rank_info: RankInfo, barrier: Barrier, parent: int) -> None:
    """Be one reader, in step with the others, until the epochs end or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then kills.
    store = Store(job.folder)
    order = Order(store.manifest.shard_counts, ORDER, seed=job.seed)
    data = Mixture([DataSet(store, order)])
    loader = PretextLoader(data, PRETEXT, seed=job.seed, rank_info=rank_info)
    if job.state is not None:
        loader.restore(job.state)
    options = GraphOptions(max_batch=loader.max_batch, num_threads=1, device_id=None, prefetch=2)
    with job.ledger(rank_info.rank).open("ab", buffering=0) as file:
        for batch in loader.batches(options):
            barrier.wait(_PATIENCE_S)
            if batch.epoch == job.epochs or os.getppid() != parent:
                return
            row = {
                "epoch": batch.epoch,
                "step": batch.step,
                "at": time.monotonic(),
                "ids": batch.sample_ids.tolist(),
                "state": loader.state(),
            }
            file.write(json.dumps(row).encode() + b"\n")


def _start(context: SpawnContext, job: _ReaderTask, barrier: Barrier) -> list[BaseProcess]:
    readers: list[BaseProcess] = []
    for rank in range(barrier.parties):
        arguments = (job, RankInfo(rank, barrier.parties), barrier, os.getpid())
        readers.append(context.Process(target=read, args=arguments, daemon=True))
        readers[-1].start()
    return readers


def _watch(readers: Sequence[BaseProcess], ledgers: Sequence[Path]) -> Iterator[int]:
    """Yield how many images the readers have delivered, every 50 ms, until they end.

    Raises:
        RuntimeError: A reader failed.
    """
    seen, done = [0] * len(ledgers), 0
    alive = True
    while alive:
        time.sleep(_POLL_S)
        alive = any(reader.is_alive() for reader in readers)
        for n, ledger in enumerate(ledgers):
            rows, seen[n] = _rows(ledger, seen[n])
            done += _num_images(rows)
        codes = [reader.exitcode for reader in readers if reader.exitcode]
        if codes:
            raise RuntimeError(f"a reader ended with exit code {codes[0]}; see its error above.")
        yield done


def _kill(readers: Sequence[BaseProcess]) -> None:
    for reader in readers:
        reader.kill()
    for reader in readers:
        reader.join()


def _commit(ledgers: Sequence[Path], start: State | None) -> _Delivery:
    """Read the ledgers of a set of readers up to the position of the slowest."""
    parts = [_rows(ledger, 0)[0] for ledger in ledgers]
    state = min((part[-1]["state"] if part else start for part in parts), key=_position)
    delivered = [row for part in parts for row in part]
    rows = [row for row in delivered if _position(row) < _position(state)]
    times = [row["at"] for row in delivered] or [0.0]
    return _Delivery(
        world_size=len(ledgers),
        rows=rows,
        state=state,
        rolled_back=_num_images(delivered) - _num_images(rows),
        seconds=max(times) - min(times),
    )


def _rows(ledger: Path, offset: int) -> tuple[list[Row], int]:
    """Read the whole lines from `offset` on; a killed reader may leave a torn one.

    Returns:
        The rows, and the offset of the next one.
    """
    if not ledger.exists():
        return [], offset
    with ledger.open("rb") as file:
        file.seek(offset)
        whole, newline, _ = file.read().rpartition(b"\n")
    return [json.loads(line) for line in whole.split(b"\n") if line], offset + len(whole + newline)


def _num_images(rows: Sequence[Row]) -> int:
    return sum(len(row["ids"]) for row in rows)


def _position(place: dict[str, Any] | None) -> tuple[int, int]:
    return (place["epoch"], place["step"]) if place is not None else (0, 0)


def _result(stretches: Sequence[_Delivery], order: Order, epochs: int) -> dict[str, Any]:
    """Compare all ledgers together with the order."""
    by_step: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for stretch in stretches:
        for row in stretch.rows:
            by_step[_position(row)] += row["ids"]
    lost = repeated = misplaced = 0
    for epoch in range(epochs):
        counts = np.zeros(order.num_samples, np.int64)
        for step in range(order.steps_per_epoch):
            ids = np.array(by_step[epoch, step], np.int64)
            np.add.at(counts, ids, 1)
            misplaced += len(np.setdiff1d(ids, order.global_batch(epoch, step)))
        repeated += int((counts - 1).clip(min=0).sum())
        lost += int((counts == 0).sum()) - order.remainder
    seconds = sum(stretch.seconds for stretch in stretches)
    num_images = sum(stretch.num_images for stretch in stretches)
    return {
        "epochs": epochs,
        "samples": order.num_samples,
        "remainder": order.remainder,
        "images": num_images,
        "lost": lost,
        "repeated": repeated,
        "misplaced": misplaced,
        "images_per_s": (num_images + sum(s.rolled_back for s in stretches)) / max(seconds, 1e-9),
        "stretches": [
            {
                "world_size": stretch.world_size,
                "images": stretch.num_images,
                "rolled_back": stretch.rolled_back,
                "end": list(_position(stretch.state)),
                "seconds": stretch.seconds,
            }
            for stretch in stretches
        ],
    }
