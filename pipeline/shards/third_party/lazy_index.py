"""What a fast index leaves out, made up when a shard is first read: image sizes and hashes."""

import glob
import hashlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from pipeline.atomic import write_atomic
from pipeline.config import ConfigError
from pipeline.shards.headers import HeaderError, read_size
from pipeline.shards.index import ShardIndex, encode_index, hash_spans, read_index

_ENDING = ".used.parquet"
_HASH_DIGITS = 16


def complete_index(index: ShardIndex, tar: memoryview, index_path: Path) -> ShardIndex:
    """Fill in sizes and hashes of all samples; the result is kept beside the index.

    A sample whose image cannot be used by its header keeps width and height 0. Kept under a name
    with its own hash, so that a damaged or foreign file is told and made again; processes that do
    this at once write equal bytes. Where the folder cannot be written, nothing is kept.

    Args:
        index: As `tessera index --fast` wrote it.
        tar: uint8, the whole shard.
        index_path: Where the index lies; the result lies beside it.

    Returns:
        The same rows, complete.
    """
    kept = _read_kept(index, index_path)
    if kept is not None:
        return kept
    sizes, hashes = [], []
    for offset, size in zip(index.offsets.tolist(), index.sizes.tolist(), strict=True):
        image = tar[offset : offset + size]
        sizes.append(_size_or_zeros(image))
        hashes.append(xxhash.xxh3_64_intdigest(image))
    widths, heights = np.array(sizes, np.int32).reshape(-1, 2).T
    completed = replace(
        index,
        widths=widths,
        heights=heights,
        hashes=np.array(hashes, np.uint64),
        span_hashes=hash_spans(tar, index.starts),
    )
    encoded = encode_index(completed)
    digest = hashlib.sha256(encoded).hexdigest()[:_HASH_DIGITS]
    with suppress(OSError):  # A read-only folder, a full disk: it is made up again next time.
        write_atomic(index_path.with_name(f"{index_path.stem}.{digest}{_ENDING}"), encoded)
    return completed


def kept_files(index_path: Path) -> list[Path]:
    """List what was kept beside an index, damaged files too, by name."""
    pattern = f"{glob.escape(index_path.stem)}.{'?' * _HASH_DIGITS}{_ENDING}"
    return sorted(index_path.parent.glob(pattern))


def index_name(kept: str) -> str:
    """Name the index that a kept file belongs to, by the file's name; "" for another file."""
    if not kept.endswith(_ENDING):
        return ""
    return f"{kept[: -len(_ENDING) - _HASH_DIGITS - 1]}.parquet"


def _read_kept(index: ShardIndex, index_path: Path) -> ShardIndex | None:
    for path in kept_files(index_path):
        with suppress(OSError, ConfigError):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if path.name == f"{index_path.stem}.{digest[:_HASH_DIGITS]}{_ENDING}":
                kept = read_index(path, sha256=digest)
                if _have_equal_rows(kept, index):
                    return kept
    return None


def _have_equal_rows(one: ShardIndex, other: ShardIndex) -> bool:
    """Whether two indexes name the same samples at the same places."""
    return one.keys == other.keys and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("starts", "offsets", "sizes", "labels")
    )


def _size_or_zeros(image: memoryview) -> tuple[int, int]:
    try:
        return read_size(image)
    except HeaderError:
        return 0, 0
