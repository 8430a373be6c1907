"""Room on the disk, looked at before the work begins."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.config import ConfigError
from pipeline.crawl.config import ShardConfig
from pipeline.crawl.inputs import Chunk

_COPIES = 2  # Parts and shards lie side by side until the end.
_MARGIN = 1.2
_BYTES_PER_PIXEL = 0.75
"""Of a large stored image, at most as a rule."""
_LONG_SIDES = 2
"""Long side of a stored image in short sides, at most as a rule."""


def check_room(out: Path, chunks: Sequence[Chunk], config: ShardConfig) -> None:
    """Compare an estimate of what will be written with what is free where `out` lies.

    Sources whose sizes are not known, or say little (web archives hold mostly text), count nothing.

    Raises:
        ConfigError: There is too little room.
    """
    wanted = _COPIES * _MARGIN * estimate(chunks, config)
    there = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    free = shutil.disk_usage(out).free
    if wanted - there > free:
        raise ConfigError(
            f"out (={out}) has {free / 1e9:.1f} GB free, about {(wanted - there) / 1e9:.1f} GB are "
            "needed (shards, and as much again until they are whole); free some or choose another "
            "disk."
        )


def estimate(chunks: Iterable[Chunk], config: ShardConfig) -> float:
    """Estimate the bytes of the stored images: those of the inputs, but none above a bound."""
    most = config.max_side**2 * _LONG_SIDES * _BYTES_PER_PIXEL
    total = 0.0
    archives: dict[str, int] = {}
    for chunk in chunks:
        if chunk.kind == "files":
            total += sum(min(file.size or 0, most) for file in chunk.files)
        elif chunk.kind != "warc":
            archives.update({chunk.location(file): file.size or 0 for file in chunk.files})
    return total + sum(archives.values())
