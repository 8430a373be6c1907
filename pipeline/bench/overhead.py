"""What Python costs for a sample, and what a resume costs in a very large set."""

import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.bench.ours import SEED, graph_options, make_loader
from pipeline.loading.order import Order, OrderConfig
from pipeline.shards.store import Store

_WARM = 10
_SYNTHETIC_SHARDS, _SYNTHETIC_SAMPLES = 100_000, 1_000_000_000


def python_overhead(shards: Path, *, batch: int, batches: int) -> dict[str, float]:
    """Measure the CPU time of the thread that plans, reads, hashes and feeds, without the graph's.

    Returns:
        Microseconds for a sample: `python_us` without the hash, `hash_us` of the bytes that are
        checked, `plan_us` of it for order, draws and plan; and `kib` of an encoded image.
    """
    loader = make_loader(shards, batch)
    stream = loader.batches(graph_options(batch, threads=1))
    for _ in islice(stream, _WARM):
        pass
    before, start = loader.counters.copy(), time.thread_time()
    for _ in islice(stream, batches):
        pass
    spent = time.thread_time() - start
    done = loader.counters.since(before)
    stream.close()  # type: ignore[attr-defined]
    loader.close()
    hash_us = _hash_us(shards, done.images)
    return {
        "python_us": 1e6 * spent / done.images - hash_us,
        "hash_us": hash_us,
        "plan_us": 1e6 * done.plan_s / done.images,
        "kib": done.bytes_read / done.images / 1024,
    }


def _hash_us(shards: Path, num: int) -> float:
    """Hash the payloads of `num` random samples, as the store does with what it reads."""
    store = Store(shards)
    ids = np.random.default_rng(0).integers(store.manifest.num_samples, size=num)
    payloads = store.read(ids).payloads
    start = time.thread_time()
    for payload in payloads:
        xxhash.xxh3_64_intdigest(payload.data)
    spent = time.thread_time() - start
    store.close()
    return 1e6 * spent / num


def restore(*, seconds: float = 1.0) -> dict[str, Any]:
    """Measure the order alone, for 10^9 samples in 10^5 shards of uneven sizes.

    Args:
        seconds: Planned for that long.

    Returns:
        `seconds` from counts to the first batch at a position far inside an epoch; and
        `samples_per_cpu_s` of the steps behind it.
    """
    rng = np.random.default_rng(SEED)
    mean = _SYNTHETIC_SAMPLES // _SYNTHETIC_SHARDS
    counts = rng.integers(mean // 2, mean + mean // 2 + 1, _SYNTHETIC_SHARDS)
    counts += (_SYNTHETIC_SAMPLES - counts.sum()) // _SYNTHETIC_SHARDS
    counts[: _SYNTHETIC_SAMPLES - counts.sum()] += 1  # What does not divide.
    config = OrderConfig(global_batch=4096, num_lanes=64, window=16_384)
    small = OrderConfig(global_batch=64, num_lanes=64, window=1)
    Order(np.full(64, 64), small, seed=SEED).global_batch(0, 0)  # What is compiled once, is.
    started = time.perf_counter()
    order = Order(counts, config, seed=SEED)
    step = order.steps_per_epoch * 3 // 4
    order.global_batch(7, step)
    restored = time.perf_counter() - started
    begin, planned = time.process_time(), 0
    while (spent := time.process_time() - begin) < seconds:
        step += 1  # Fewer than what is left of the epoch.
        planned += len(order.global_batch(7, step))
    return {
        "samples": order.num_samples,
        "shards": len(counts),
        "seconds": restored,
        "samples_per_cpu_s": planned / spent,
    }
