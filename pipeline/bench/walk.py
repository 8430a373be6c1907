"""How fast a tar is walked and indexed: members and images per CPU-second, from the page cache."""

import io
import mmap
import random
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.shards.tar import walk_tar
from pipeline.shards.third_party.scan import ScanSpec, scan_shard

_NUM_SAMPLES = 20_000
_IMAGE_BYTES = 2_000
_REPEATS = 5
_FORMATS = {
    "ustar": (tarfile.USTAR_FORMAT, 0),
    "gnu": (tarfile.GNU_FORMAT, 0),
    "pax": (tarfile.PAX_FORMAT, 1_700_000_000.123456),  # The fraction: as WebDataset writes them.
}
"""Format, and time of the members, s."""


def measure_walk(folder: Path) -> dict[str, Any]:
    """Write tars of 40,000 members, an image and a text each, and measure the best of 5.

    Args:
        folder: For the tars, which are removed, and the indexes.

    Returns:
        By format: members walked per CPU-second by `walk_tar` and by the standard library, and
        images indexed per CPU-second, fast and whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"members": 2 * _NUM_SAMPLES, "image_bytes": _IMAGE_BYTES}
    for name, (tar_format, mtime) in _FORMATS.items():
        path = folder / f"walk-{name}.tar"
        _write(path, tar_format, mtime)
        try:
            results[name] = _measure(path, folder)
        finally:
            path.unlink()
    return results


def _measure(path: Path, folder: Path) -> dict[str, float]:
    def index(fast: bool) -> None:
        path.touch()  # Changed, by its time.
        scan_shard(ScanSpec(str(path), folder, fast))

    members = 2 * _NUM_SAMPLES
    return {
        "members_per_cpu_s": members / _best(lambda: _walk(path), _REPEATS),
        "tarfile_members_per_cpu_s": members / _best(lambda: _list(path), 1),
        "fast_index_images_per_cpu_s": _NUM_SAMPLES / _best(lambda: index(fast=True), _REPEATS),
        "index_images_per_cpu_s": _NUM_SAMPLES / _best(lambda: index(fast=False), _REPEATS),
    }


def _walk(path: Path) -> None:
    with path.open("rb") as file:
        buffer = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    assert sum(1 for _ in walk_tar(buffer, path.name)) == 2 * _NUM_SAMPLES


def _list(path: Path) -> None:
    with tarfile.open(path) as tar:
        assert sum(1 for _ in tar) == 2 * _NUM_SAMPLES


def _best(work: Callable[[], None], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def _write(path: Path, tar_format: int, mtime: float) -> None:
    image = _image()
    with tarfile.open(path, "w", format=tar_format) as tar:
        for number in range(_NUM_SAMPLES):
            for ending, content in (("jpg", image), ("json", b'{"caption": "none"}')):
                info = tarfile.TarInfo(f"{number:09}.{ending}")
                info.size, info.mtime = len(content), mtime
                tar.addfile(info, io.BytesIO(content))


def _image() -> bytes:
    """Encode a JPEG, padded behind its end to the size that is asked for."""
    noise = random.Random(0).randbytes(40 * 30 * 3)
    sink = io.BytesIO()
    Image.frombytes("RGB", (40, 30), noise).save(sink, "JPEG", quality=20)
    return sink.getvalue().ljust(_IMAGE_BYTES, b"\0")
