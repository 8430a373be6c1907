"""Whether throughput stays as shards become more and batches larger."""

import os
from pathlib import Path
from typing import Any

from pipeline.bench.contenders import CONTENDERS
from pipeline.bench.contest import Effort, Entrant, Progress, hold
from pipeline.bench.repeated import write_repeated
from pipeline.bench.work import LoaderWork

SHARDS = (10, 100, 1_000, 10_000)
SAMPLES_PER_SHARD = 1_000  # 50 MB of photographs: small for the web, where 100 MB is usual.
SMALLER = (100, 10)  # Samples a shard, where shards are cut far too small.
BATCHES = (16, 64, 256, 1_024)


def growth(
    images: list[bytes], scratch: Path, *, cores: int, effort: Effort, on_progress: Progress
) -> dict[str, Any]:
    """Measure our tiles with 10 to 10,000 shards, with tiny shards, and by batch size.

    Returns:
        For "shards", "samples_per_shard" and "batch": images per second (median of the rounds) and
        per CPU-second by count, and the spread, the largest over the smallest rate less 1.
    """
    works = {}
    for num in SHARDS:
        folder = scratch / f"shards-{num}"
        write_repeated(images, folder, num_shards=num, samples_per_shard=SAMPLES_PER_SHARD)
        works["shards", num] = _work(folder, scratch, 64, cores)
    for size in SMALLER:
        folder = scratch / f"shards-of-{size}"
        num = SHARDS[0] * SAMPLES_PER_SHARD // size
        write_repeated(images, folder, num_shards=num, samples_per_shard=size)
        works["samples_per_shard", size] = _work(folder, scratch, 64, cores)
    for batch in BATCHES:
        works["batch", batch] = _work(scratch / f"shards-{SHARDS[1]}", scratch, batch, cores)
    ours = next(one for one in CONTENDERS if one.role == "ours")
    standings = hold([Entrant(ours, work) for work in works.values()], effort, on_progress)
    found: dict[str, Any] = {"shards": {}, "samples_per_shard": {}, "batch": {}}
    for (kind, num), standing in zip(works, standings, strict=True):
        if standing.failure is not None:
            raise RuntimeError(f"{kind} (={num}): {standing.failure}")
        found[kind][num] = {
            "images_per_s": standing.images_per_s,
            "images_per_cpu_s": standing.images_per_cpu_s,
        }
    found["samples_per_shard"][SAMPLES_PER_SHARD] = found["shards"][SHARDS[0]]
    for kind in tuple(found):
        rates = [one["images_per_cpu_s"] for one in found[kind].values()]
        found[f"{kind}_spread"] = max(rates) / min(rates) - 1
    return found


def _work(shards: Path, scratch: Path, batch: int, cores: int) -> LoaderWork:
    return LoaderWork(shards=shards, scratch=scratch, view="tiles", batch=batch, cores=cores)


def images_of(folder: Path) -> list[bytes]:
    """Read the loose files of a run."""
    return [Path(entry.path).read_bytes() for entry in sorted(os.scandir(folder), key=_name)]


def _name(entry: "os.DirEntry[str]") -> str:
    return entry.name
