"""What the bench of the loader measures: contests, growth, a first batch, overheads, the GPU."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from pipeline.bench.contest import Effort, Progress, Standing, Steps, start, take_turns
from pipeline.bench.loader_peers import CONTENDERS, Contender, webdataset_variants
from pipeline.bench.repeated import shrink, write_repeated
from pipeline.bench.work import GRID, SEED, LoaderWork, graph_options, make_loader
from pipeline.bench.worker import Batches, run
from pipeline.loading.order import Order, OrderConfig
from pipeline.shards.store import Store

_MEAN_BAND = 25.0  # Of 255: means of a batch of 64 photographs differ by 5 from draw to draw.

SHARDS = (10, 100, 1_000, 10_000)
SAMPLES_PER_SHARD = 1_000  # 50 MB of photographs: small for the web, where 100 MB is usual.
SMALLER = (100, 10)  # Samples a shard, where shards are cut far too small.
BATCHES = (16, 64, 256, 1_024)

FIRST_SHARDS, FIRST_SAMPLES = 1_000, 1_000
_FIRST_SIDE = 96  # px; small images, so that the set is made quickly.

_WARM = 10
_SYNTHETIC_SHARDS, _SYNTHETIC_SAMPLES = 100_000, 1_000_000_000

_GPU_LOADS = (0.0, 0.3, 0.65, 0.9)  # Shares of images that go to the hardware decoder.
_GPU_WARM, _GPU_SECONDS, _GPU_STEPS = 2.0, 8.0, 50
_TILES = GRID * GRID


def contest(
    entrants: Sequence[tuple[Contender, LoaderWork]], effort: Effort, on_progress: Progress
) -> list[Standing]:
    """Measure contenders in turn, each on its work.

    Returns:
        A standing for each entrant, in their order; each has rounds or a failure.
    """
    step = Steps(on_progress, (effort.rounds + 1) * len(entrants))
    step.within("starting")

    def choose(standing: Standing) -> None:
        for answer in standing.ask({"seconds": effort.choose}):
            standing.setting, standing.mean = answer["setting"], answer["mean"]

    def measure(standing: Standing) -> None:
        standing.add(standing.ask({"warm": effort.warm, "seconds": effort.seconds}))

    jobs = [{"name": contender.name, **asdict(work)} for contender, work in entrants]
    with ExitStack() as stack:
        target = "pipeline.bench.loader_peers:contend"
        processes = start(stack, target, jobs, entrants[0][1].scratch)
        standings = [
            Standing(contender.name, contender.title, [process], contender.role)
            for (contender, _), process in zip(entrants, processes, strict=True)
        ]
        take_turns(standings, "choosing settings", choose, step)
        exclude_strangers(standings)
        for number in range(1, effort.rounds + 1):
            take_turns(standings, f"round {number} of {effort.rounds}", measure, step)
    step.finish()
    return standings


def exclude_strangers(standings: Sequence[Standing]) -> None:
    """Let nobody win by showing other images: fail those whose mean is far from the median."""
    means = [standing.mean for standing in standings if standing.mean is not None]
    for standing in standings:
        if standing.mean is not None and abs(standing.mean - median(means)) > _MEAN_BAND:
            standing.failure = (
                f"failed: its images have a mean of {standing.mean:.0f}, those of the others "
                f"{median(means):.0f} of 255"
            )


def growth(
    images: list[bytes], scratch: Path, *, cores: int, effort: Effort, on_progress: Progress
) -> dict[str, Any]:
    """Measure our tiles with 10 to 10,000 shards, with tiny shards, and by batch size.

    Returns:
        For "shards", "samples_per_shard" and "batch": images per second (median of the rounds) and
        per CPU second by count, and the spread, the largest over the smallest rate less 1.
    """

    def work(shards: Path, batch: int = 64) -> LoaderWork:
        return LoaderWork(shards=shards, scratch=scratch, view="tiles", batch=batch, cores=cores)

    works = {}
    for num in SHARDS:
        folder = scratch / f"shards-{num}"
        write_repeated(images, folder, num_shards=num, samples_per_shard=SAMPLES_PER_SHARD)
        works["shards", num] = work(folder)
    for size in SMALLER:
        folder = scratch / f"shards-of-{size}"
        num = SHARDS[0] * SAMPLES_PER_SHARD // size
        write_repeated(images, folder, num_shards=num, samples_per_shard=size)
        works["samples_per_shard", size] = work(folder)
    for batch in BATCHES:
        works["batch", batch] = work(scratch / f"shards-{SHARDS[1]}", batch)
    ours = next(one for one in CONTENDERS if one.role == "ours")
    standings = contest([(ours, work) for work in works.values()], effort, on_progress)
    found: dict[str, Any] = {"shards": {}, "samples_per_shard": {}, "batch": {}}
    for (kind, num), standing in zip(works, standings, strict=True):
        if standing.failure is not None:
            raise RuntimeError(f"{kind} (={num}): {standing.failure}")
        speeds = standing.speeds()
        found[kind][num] = {key: speeds[key] for key in ("images_per_s", "images_per_cpu_s")}
    found["samples_per_shard"][SAMPLES_PER_SHARD] = found["shards"][SHARDS[0]]
    for kind in tuple(found):
        rates = [one["images_per_cpu_s"] for one in found[kind].values()]
        found[f"{kind}_spread"] = max(rates) / min(rates) - 1
    return found


def images_of(folder: Path) -> list[bytes]:
    """Read the loose files of a run."""
    with os.scandir(folder) as entries:
        return [Path(path).read_bytes() for path in sorted(entry.path for entry in entries)]


def first_batch(images: list[bytes], folder: Path, *, threads: int, times: int) -> dict[str, float]:
    """Time the first batch of fresh processes on 10^6 samples in 1,000 indexed shards.

    Returns:
        Medians in seconds: `seconds` in all, of it `imports` (with the start of Python) and `own`
        (open, order, plan, graph, first batch).
    """
    small = shrink(images, FIRST_SAMPLES, _FIRST_SIDE)
    write_repeated(small, folder, num_shards=FIRST_SHARDS, samples_per_shard=FIRST_SAMPLES)
    runs: list[dict[str, float]] = []
    for _ in range(times):
        job = {"shards": str(folder), "threads": threads, "started": time.monotonic()}
        with ExitStack() as stack:
            processes = start(stack, "pipeline.bench.work:fresh_start", [job], folder.parent)
            standing = Standing("first_batch", "first batch", processes)
            take_turns([standing], "", lambda one: runs.extend(one.ask({})), lambda what: None)
        if standing.failure is not None:
            raise RuntimeError(f"first_batch {standing.failure}")
    return {name: median(one[name] for one in runs) for name in runs[0]}


def python_overhead(shards: Path, *, batch: int, batches: int) -> dict[str, float]:
    """Measure the CPU time of the thread that plans, reads, hashes and feeds, without the graph's.

    Returns:
        Microseconds per sample: `python_us` without the hash, `hash_us` for the bytes that are
        checked, `plan_us` of it for order, draws and plan; and `kib` of an encoded image.
    """
    loader = make_loader(shards, batch)
    stream = loader.batches(graph_options(batch, threads=1))
    for _ in islice(stream, _WARM):
        pass
    before, begin = loader.counters.copy(), time.thread_time()
    for _ in islice(stream, batches):
        pass
    spent = time.thread_time() - begin
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
    begin = time.thread_time()
    for payload in payloads:
        xxhash.xxh3_64_intdigest(payload.data)
    spent = time.thread_time() - begin
    store.close()
    return 1e6 * spent / num


def restore(*, seconds: float = 1.0) -> dict[str, Any]:
    """Measure the order alone, for 10^9 samples in 10^5 shards of uneven sizes.

    Args:
        seconds: CPU time spent on planning.

    Returns:
        `seconds` from counts to the first batch at a position far inside an epoch; and
        `samples_per_cpu_s` of the steps after it.
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
        step += 1  # Fewer steps than remain in the epoch.
        planned += len(order.global_batch(7, step))
    return {
        "samples": order.num_samples,
        "shards": len(counts),
        "seconds": restored,
        "samples_per_cpu_s": planned / spent,
    }


def cuda(work: LoaderWork) -> dict[str, Any]:
    """Measure on the first GPU.

    Returns:
        A row for each measure; without a GPU, or where one fails, a string that says so.
    """
    measures: dict[str, Callable[[LoaderWork], Any]] = {
        "tiles_per_s": lambda w: _TILES * _rate(_views(w)),
        "decode_only_images_per_s": _decode_only,
        "webdataset_tiles_per_s": lambda w: _TILES * _rate(_webdataset(w)),
        "gpu_idle_share_resnet50": _idle_share,
        "after_a_bad_image": _after_a_bad_image,
        "difference_to_cpu": _difference_to_cpu,
    }
    if not torch.cuda.is_available():
        return dict.fromkeys(measures, "not measured: no CUDA device")
    found: dict[str, Any] = {}
    for name, measure in measures.items():
        try:
            found[name] = measure(work)
        except RuntimeError as error:
            found[name] = f"failed: {str(error).splitlines()[0]}"
    return found


def _rate(batches: Batches) -> float:
    """Return images per second of batches that are ready on the GPU."""
    try:
        return run(_synchronised(batches), warm=_GPU_WARM, seconds=_GPU_SECONDS).images_per_s
    finally:
        batches.close()


def _synchronised(batches: Iterator[Any]) -> Batches:
    for batch in batches:
        torch.cuda.synchronize()
        yield batch


def _views(work: LoaderWork, device_id: int | None = 0) -> Batches:
    options = graph_options(work.batch, work.cores, device_id)
    for batch in make_loader(work.shards, work.batch).batches(options):
        yield batch.views


def _decode_only(work: LoaderWork) -> dict[str, float]:
    """Try shares of the hardware decoder; by share, images per second."""
    from pipeline.dali.peer import decode_only

    options = graph_options(work.batch, work.cores, 0)
    rates = {}
    for load in _GPU_LOADS:
        sizes = decode_only(work.tars(), options, hw_decoder_load=load)
        rates[f"hw_decoder_load {load}"] = _rate(range(num) for num in sizes)
    return rates


def _webdataset(work: LoaderWork) -> Batches:
    make = next(iter(webdataset_variants(work).values()))
    for batch in make():
        yield batch.pin_memory().to("cuda", non_blocking=True)


def _idle_share(work: LoaderWork) -> float:
    """Compare training on the loader's tiles with training on one batch that never changes."""
    from torchvision.models import resnet50

    model = resnet50().to("cuda", memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step(views: Tensor) -> None:
        pixels = views.flatten(0, 1).permute(0, 3, 1, 2).float().div(255)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(pixels).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    batches = _views(work)
    fixed = next(batches).clone()
    ideal = _seconds(lambda: step(fixed))
    real = _seconds(lambda: step(next(batches)))
    batches.close()
    return max(0.0, 1 - ideal / real)


def _seconds(step: Callable[[], None]) -> float:
    for _ in range(_GPU_STEPS // 5):
        step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(_GPU_STEPS):
        step()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def _after_a_bad_image(work: LoaderWork) -> str:
    """Decode a batch with a truncated image on the GPU, then whole ones."""
    from pipeline.dali.peer import decode_batch

    payloads = Store(work.shards).read(np.arange(work.batch)).payloads
    truncated = [payloads[0][: payloads[0].size // 2], *payloads[1:]]
    outcomes = decode_batch([payloads, truncated, payloads], graph_options(work.batch, 1, 0))
    return "whole batch, bad batch, whole batch: " + ", ".join(outcomes)


def _difference_to_cpu(work: LoaderWork) -> dict[str, float]:
    """Compare the same tiles, cut on the GPU and on the CPU; of 255."""
    pairs = zip(islice(_views(work), 4), islice(_views(work, None), 4), strict=True)
    gaps = [(a.cpu().int() - b.int()).abs().float() for a, b in pairs]
    return {
        "mean": float(torch.stack([gap.mean() for gap in gaps]).mean()),
        "max": float(torch.stack([gap.max() for gap in gaps]).max()),
    }
