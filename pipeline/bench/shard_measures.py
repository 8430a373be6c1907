"""Further measures of shards: growth of the stage, its driver's memory, and the walk of tars."""

import io
import json
import mmap
import multiprocessing
import os
import random
import sys
import tarfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.bench.contest import Progress
from pipeline.bench.machine import memory_mib, watch
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.folder import ShardRequest
from pipeline.ingest.sources.source_list import parse_sources
from pipeline.ingest.stage import make_shards
from pipeline.shards.manifest import Ledger
from pipeline.shards.tar import walk_tar
from pipeline.shards.third_party.scan import ScanSpec, scan_shard

_FEW = 4
_SIDE = 48  # px
_CELLS = 6  # Colours per side: enough that no two images look alike.
_COPY_EVERY = 10
_FILES_PER_FOLDER = 1_000

_WALK_SAMPLES = 20_000
_WALK_BYTES = 2_000
_WALK_REPEATS = 5
_WALK_FORMATS = {
    "ustar": (tarfile.USTAR_FORMAT, 0),
    "gnu": (tarfile.GNU_FORMAT, 0),
    "pax": (tarfile.PAX_FORMAT, 1_700_000_000.123456),  # The fraction: as WebDataset writes them.
}
"""Format, and modification time of the members, s."""


def measure_growth(
    steps: Sequence[int], scratch: Path, cores: int, on_progress: Progress
) -> dict[str, dict[str, float]]:
    """Make shards of ever more tiny images, one in ten a copy, each time by a new driver.

    Args:
        steps: Numbers of images, ascending.
        scratch: Empty folder; takes the images.
        cores: Workers beside the driver.
        on_progress: Called before each step.

    Returns:
        By number of images: seconds per input; seconds that a run of few images took before, which
        is what starting and compiling take; the driver's peak resident memory, MiB, mapped files
        included; and the peak of its own memory without them, sampled every 20 ms.

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
        module = "pipeline.bench.shard_measures"
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


def measure_walk(folder: Path) -> dict[str, Any]:
    """Write tars of 40,000 members, an image and a text each, and measure the best of 5.

    Args:
        folder: For the tars, which are removed, and the indexes.

    Returns:
        By format: members walked per CPU-second by `walk_tar` and by the standard library, and
        images indexed per CPU-second, fast and whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"members": 2 * _WALK_SAMPLES, "image_bytes": _WALK_BYTES}
    for name, (tar_format, mtime) in _WALK_FORMATS.items():
        path = folder / f"walk-{name}.tar"
        _write_tar(path, tar_format, mtime)
        try:
            results[name] = _measure_walk(path, folder)
        finally:
            path.unlink()
    return results


def _measure_walk(path: Path, folder: Path) -> dict[str, float]:
    def index(fast: bool) -> None:
        path.touch()  # Changed, to go by its time.
        scan_shard(ScanSpec(str(path), folder, fast))

    members = 2 * _WALK_SAMPLES
    return {
        "members_per_cpu_s": members / _best(lambda: _walk(path), _WALK_REPEATS),
        "tarfile_members_per_cpu_s": members / _best(lambda: _list(path), 1),
        "fast_index_images_per_cpu_s": _WALK_SAMPLES
        / _best(lambda: index(fast=True), _WALK_REPEATS),
        "index_images_per_cpu_s": _WALK_SAMPLES / _best(lambda: index(fast=False), _WALK_REPEATS),
    }


def _walk(path: Path) -> None:
    with path.open("rb") as file:
        buffer = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    assert sum(1 for _ in walk_tar(buffer, path.name)) == 2 * _WALK_SAMPLES


def _list(path: Path) -> None:
    with tarfile.open(path) as tar:
        assert sum(1 for _ in tar) == 2 * _WALK_SAMPLES


def _best(work: Callable[[], None], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def _write_tar(path: Path, tar_format: int, mtime: float) -> None:
    image = _image()
    with tarfile.open(path, "w", format=tar_format) as tar:
        for number in range(_WALK_SAMPLES):
            for ending, content in (("jpg", image), ("json", b'{"caption": "none"}')):
                info = tarfile.TarInfo(f"{number:09}.{ending}")
                info.size, info.mtime = len(content), mtime
                tar.addfile(info, io.BytesIO(content))


def _image() -> bytes:
    """Encode a JPEG, padded after its end to `_WALK_BYTES`."""
    noise = random.Random(0).randbytes(40 * 30 * 3)
    sink = io.BytesIO()
    Image.frombytes("RGB", (40, 30), noise).save(sink, "JPEG", quality=20)
    return sink.getvalue().ljust(_WALK_BYTES, b"\0")


if __name__ == "__main__":
    main()
