"""Whether an input costs the same however many there are, and how much memory the driver takes."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from pipeline.bench.contest import Progress
from pipeline.bench.machine import memory_mib, watch
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.folder import ShardRequest
from pipeline.ingest.sources.source_list import parse_sources
from pipeline.ingest.stage import make_shards
from pipeline.shards.manifest import Ledger

_FEW = 4
_SIDE = 48  # px
_CELLS = 6  # Colours per side: enough that no two images look alike.
_COPY_EVERY = 10
_FILES_PER_FOLDER = 1_000


def measure_growth(
    steps: Sequence[int], scratch: Path, cores: int, on_progress: Progress
) -> dict[str, dict[str, float]]:
    """Make shards of ever more tiny images, one in ten a copy, each time by a driver of its own.

    Args:
        steps: Numbers of images, ascending.
        scratch: Empty folder; takes the images.
        cores: Workers beside the driver.
        on_progress: Called before each step.

    Returns:
        By number of images: seconds per input; seconds of a run of few images before it, which is
        what starting and compiling take; the driver's peak of resident memory, MiB, mapped files
        included; and the peak of its own memory, as seen every 20 ms, without them.

    Raises:
        RuntimeError: A driver failed.
    """
    images, few, have = scratch / "images", scratch / "few", 0
    _write_images(few, 0, _FEW)
    found: dict[str, dict[str, float]] = {}
    for position, num in enumerate(steps):
        on_progress(position, len(steps), f"growth: {num:,} images")
        _write_images(images, have, num)
        have = num
        arguments = (few, images, scratch / f"shards-{num}", cores)
        module = "pipeline.bench.shard_growth"
        about, own_mib = watch(module, arguments, scratch, f"growth (={num})")
        if about["inputs"] != num or about["duplicates"] != num // _COPY_EVERY:
            raise RuntimeError(f"growth (={num}) gave {about}.")
        found[str(num)] = {
            "seconds_per_input": about["seconds"] / num,
            "start_seconds": about["start_seconds"],
            "driver_peak_mib": about["peak_mib"],
            "driver_own_mib": own_mib,
        }
    on_progress(len(steps), len(steps), "")
    return found


def _write_images(folder: Path, first: int, stop: int) -> None:
    """Write images `first` to `stop` - 1; the last of every ten is a copy of the first."""
    for number in range(first, stop):
        is_copy = number % _COPY_EVERY == _COPY_EVERY - 1
        rng = np.random.default_rng(number - _COPY_EVERY + 1 if is_copy else number)
        cells = rng.integers(0, 256, (_CELLS, _CELLS, 3), dtype=np.uint8)
        pixels = cells.repeat(_SIDE // _CELLS, axis=0).repeat(_SIDE // _CELLS, axis=1)
        path = folder / f"{number // _FILES_PER_FOLDER:06d}" / f"{number:09d}.jpg"
        if number % _FILES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(simplejpeg.encode_jpeg(pixels, quality=85))


def main() -> None:
    """Drive the whole stage twice; arguments: few images, images, out, number of workers."""
    few, images, out, cores = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    out.mkdir()
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        start_seconds, _ = _drive(few, out / "few", pool)
        seconds, ledger = _drive(images, out / "all", pool)
    about = {
        "inputs": ledger.inputs,
        "duplicates": ledger.duplicate,
        "seconds": seconds,
        "start_seconds": start_seconds,
        "peak_mib": memory_mib(os.getpid(), "VmHWM"),
    }
    sys.stdout.write(json.dumps(about) + "\n")


def _drive(images: str, out: Path, pool: ProcessPoolExecutor) -> tuple[float, Ledger]:
    """Return seconds, and where the images went."""

    def run(
        call: Callable[[Any], Any], items: Sequence[Any]
    ) -> Generator[tuple[int, Any], None, None]:
        futures = {pool.submit(call, item): row for row, item in enumerate(items)}
        for future in as_completed(futures):
            yield futures[future], future.exception() or future.result()

    out.mkdir()
    start = time.perf_counter()
    job = ShardRequest(out, parse_sources([images], (), ()), ShardConfig())
    made = make_shards(job, run, resume=False, on_progress=lambda progress: None)
    return time.perf_counter() - start, made.ledger


if __name__ == "__main__":
    main()
